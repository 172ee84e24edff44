"""Predicted time of a sample, for composing steps whose ranks finish together: floating-point operations from token counts.

Only ratios matter. The counts are those of one forward pass; a training step multiplies all of them alike.
"""

from __future__ import annotations

from collections.abc import Callable

from javisc.trainer.data.index.assign import Bucket
from javisc.trainer.data.index.lengths import audio_lengths, latent_frames

#: Layer widths and head counts do not enter the attention terms: 4 * queries * keys * width operations, whatever the heads.
AUDIO_ROWS = 16
PRIOR_TOKENS = 64


def joint_dit_cost(
    width: int = 1152, *, text_tokens: int = 60, fps: float = 24.0, audio_only: bool = False
) -> Callable[[Bucket], float]:
    """Operations per layer of JavisDiT's joint transformer for one sample of a bucket.

    Per token: a self-attention block and MLP twice (spatial, temporal; 24 C² each), text cross-attention twice (4 C²), the
    prior block (24 C²) and the video-audio projections (3 C²); attention by its lengths. `audio_only` counts the audio
    branch alone (stage 1).
    """

    def cost(bucket: Bucket) -> float:
        frames = latent_frames(bucket.frames)
        patches = -(-(bucket.height // 8) // 2) * -(-(bucket.width // 8) // 2)
        times = audio_lengths(bucket.frames, fps).latent // 4
        audio = _branch(times * AUDIO_ROWS, times, AUDIO_ROWS, width, text_tokens, joint=not audio_only)
        if audio_only:
            return audio
        video_tokens, audio_tokens = frames * patches, times * AUDIO_ROWS
        both_ways = 4 * video_tokens * audio_tokens * width
        return audio + both_ways + _branch(video_tokens, frames, patches, width, text_tokens, joint=True)

    return cost


def _branch(tokens: int, times: int, places: int, width: int, text_tokens: int, *, joint: bool) -> float:
    linear = tokens * width**2 * (2 * (24 + 4) + (24 + 3 if joint else 0))
    keys = times + places + 2 * text_tokens + (PRIOR_TOKENS if joint else 0)
    return float(linear + 4 * tokens * keys * width)
