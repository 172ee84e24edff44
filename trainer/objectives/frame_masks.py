"""Which frames of a clip are given and which are generated, drawn in training so that one model fills, extends and animates.

Masks are 1 where a frame is generated, 0 where it is given; Tv, Ta are the video and audio latents' lengths.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from javisc.manifests.errors import UserError

#: Stage 3's probabilities (spelling of `intepolate` as in the reference's configs); the rest is `identity`.
STAGE3_RATIOS: dict[str, float] = {
    "random": 0.01,
    "video_to_audio": 0.05,
    "audio_to_video": 0.05,
    "sound_image_animate": 0.03,
    "intepolate": 0.03,
    "quarter_random": 0.005,
    "quarter_head": 0.05,
    "quarter_tail": 0.005,
    "quarter_head_tail": 0.005,
    "image_random": 0.005,
    "image_head": 0.05,
    "image_tail": 0.005,
    "image_head_tail": 0.005,
}
KINDS = (*STAGE3_RATIOS, "identity")


class Draws(Protocol):
    """The part of `random.Random` that masks draw from."""

    def random(self) -> float: ...
    def uniform(self, a: float, b: float) -> float: ...
    def randint(self, a: int, b: int) -> int: ...


def choose_kind(u: float, ratios: Mapping[str, float]) -> str:
    """The first kind, in the mapping's order and `identity` last, whose cumulative probability exceeds u in [0, 1).

    Raises UserError for an unknown kind or probabilities beyond 1.
    """
    for name in ratios:
        if name not in KINDS:
            raise UserError(f"mask_ratios: unknown kind {name!r}; allowed are {', '.join(KINDS)}")
        if ratios[name] < 0:
            raise UserError(f"mask_ratios.{name}={ratios[name]:g}: it must be 0 to 1; change mask_ratios.{name}")
    if not 0 <= sum(ratios.values()) <= 1 + 1e-9:
        raise UserError(f"mask_ratios add up to {sum(ratios.values()):.4g}; they may add up to 1; lower some")
    reached = 0.0
    for name, ratio in ratios.items():
        reached += ratio
        if reached > u:
            return name
    return "identity"


def frame_masks(
    kind: str, video_frames: int, audio_frames: int, draws: Draws, uniforms: list[float] | None = None
) -> tuple[Tensor, Tensor]:
    """Bool masks [Tv] and [Ta] of one sample.

    `uniforms` are the per-frame draws of kind `random` (taken from `draws` if absent). Clips of fewer than 4 latent
    frames, on which the reference fails, give one frame in the quarter kinds.
    """
    total = video_frames
    video = torch.ones(total, dtype=torch.bool)
    sound = torch.ones(audio_frames, dtype=torch.bool)
    if kind in ("video_to_audio", "audio_to_video", "sound_image_animate"):
        if kind == "video_to_audio":
            return torch.zeros_like(video), sound
        video[:1] = kind == "audio_to_video"
        return video, torch.zeros_like(sound)
    if kind == "random":
        p = draws.uniform(0.1, 0.9)
        uniforms = [draws.random() for _ in range(total)] if uniforms is None else uniforms
        video = torch.tensor(uniforms) > p
        if not video.any():
            video[-1] = True
    elif kind == "intepolate":
        video[draws.randint(0, 1) :: 2] = False
    elif kind.startswith(("quarter_", "image_")):
        shape, where = kind.split("_", 1)
        length = draws.randint(1, max(1, total // 4)) if shape == "quarter" else 1
        if where == "random":
            start = draws.randint(0, total - length)
            video[start : start + length] = False
        if where in ("head", "head_tail"):
            video[:length] = False
        if where in ("tail", "head_tail"):
            video[-length:] = False
    if kind.startswith("image_"):
        return video, sound
    followed = F.interpolate(video.float()[None, None], size=audio_frames, mode="nearest")[0, 0]
    return video, followed.bool()


def draw_masks(
    rows: int, video_frames: int, audio_frames: int, ratios: Mapping[str, float], seeds: list[int]
) -> tuple[Tensor, Tensor] | None:
    """Masks [B, Tv], [B, Ta] of a batch, row i a pure function of `seeds[i]`; None where every frame of every row is
    generated."""
    drawn = []
    for seed in seeds[:rows]:
        rng = random.Random(seed)
        drawn.append(frame_masks(choose_kind(rng.random(), ratios), video_frames, audio_frames, rng))
    video, audio = (torch.stack(side) for side in zip(*drawn))
    return None if bool(video.all() and audio.all()) else (video, audio)
