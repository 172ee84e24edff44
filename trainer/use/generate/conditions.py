"""Parts of a clip that are given: which latent frames of a reference go where, and how much of them may change.

Letters: B rows, Tv, Ta latent frames of video and audio.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from javisc.manifests.errors import UserError
from javisc.trainer.data.index.lengths import LATENT_RATE, MEL_RATE

#: 17 frames are 5 latent ones; starts lie on these groups.
GROUP, GROUP_FRAMES = 5, 17
#: Longer than any clip: lengths end with the clip or the reference.
_ALL = 1 << 20
#: What is mostly asked for, by name.
NAMED = {
    "image": "0,0,0,0,1,0,1",
    "video": f"0,0,0,0,{_ALL},0,1",
    "sound": f"0,0,0,0,{_ALL},0,2",
    "sound-and-image": "0,0,0,0,1,0,3",
}
MODALITIES = ("both", "video", "audio", "sound and image")


@dataclass(frozen=True)
class Condition:
    """One group of a condition string, in video latent frames.

    `edit` 0 keeps the reference, 1 replaces it, in between it is changed from that share of the noise on. `modality`: 0 both, 1
    video, 2 audio, 3 the whole sound and the reference's frames (sound and image → video).
    """

    loop: int
    reference: int
    reference_start: int
    target_start: int
    length: int
    edit: float
    modality: int


def parse_conditions(text: str) -> list[Condition]:
    """Read "loop,reference,reference start,target start,length,edit ratio,modality" groups separated by ";",
    or one of the names of `NAMED`.

    Starts are snapped down to whole groups of 5 latent frames. Raises UserError that names the group.
    """
    found = []
    text = NAMED.get(text.strip(), text)
    for group in (part.strip() for part in text.split(";") if part.strip()):
        words = [word.strip() for word in group.split(",")]
        usage = "loop,reference,reference start,target start,length,edit ratio (0 to 1),modality (0 to 3)"
        if len(words) != 7:
            raise UserError(f"condition {group!r} has {len(words)} numbers; it needs seven: {usage}")
        try:
            loop, reference, first, target, length = (int(word) for word in words[:5])
            edit, modality = float(words[5]), int(words[6])
        except ValueError:
            raise UserError(f"condition {group!r} is not made of numbers; it needs seven: {usage}") from None
        if not (0 <= edit <= 1 and 0 <= modality < len(MODALITIES) and length > 0 and loop >= 0 and reference >= 0):
            raise UserError(f"condition {group!r} is out of range; it needs {usage}")
        found.append(
            Condition(loop, reference, first // GROUP * GROUP, target // GROUP * GROUP, length, edit, modality)
        )
    return found


def audio_position(video_latent: int, fps: float) -> int:
    """The audio latent frame of a video latent frame: × 17/5 frames / fps seconds × 100 mel frames / 4."""
    return round(video_latent * GROUP_FRAMES / GROUP / fps * MEL_RATE / LATENT_RATE)


def apply_conditions(
    z: dict[str, Tensor],
    conditions: Sequence[Sequence[Condition]],
    references: Sequence[Sequence[dict[str, Tensor]]],
    fps: float,
    *,
    loop: int = 0,
) -> dict[str, Tensor] | None:
    """Write references into the noise z {video [B, c, Tv, h, w], audio [B, c, Ta, m]} in place; return the masks [B,
    Tv], [B, Ta].

    `conditions[b]` and `references[b]` belong to row b; a reference holds latents without the batch axis, "video" [c, t, h, w]
    and "audio" [c, t, m]. Negative starts count from the end. None if no row has a condition for this loop.
    """
    masks = {name: torch.ones(x.shape[0], x.shape[2], device=x.device) for name, x in z.items()}
    used = False
    for row, own in enumerate(conditions):
        for condition in own:
            if condition.loop != loop:
                continue
            if condition.reference >= len(references[row]):
                raise UserError(
                    f"condition of prompt {row} names reference {condition.reference}; it has {len(references[row])}"
                )
            used = True
            given = references[row][condition.reference]
            for name in z:
                if (name == "video" and condition.modality == 2) or (name == "audio" and condition.modality == 1):
                    continue
                if name not in given:
                    raise UserError(
                        f"reference {condition.reference} of prompt {row} has no {name}; choose another modality"
                    )
                _place(z[name][row], masks[name][row], given[name], condition, name, fps)
    return masks if used else None


def _place(x: Tensor, mask: Tensor, given: Tensor, condition: Condition, name: str, fps: float) -> None:
    if given.shape[0] != x.shape[0] or given.shape[2:] != x.shape[2:]:
        raise UserError(
            f"the reference's {name} latent is {list(given.shape)}; {list(x.shape)} is being made: give the same size"
        )
    if name == "audio" and condition.modality == 3:
        first, target, length = 0, 0, x.shape[1]
    else:
        first, target, length = condition.reference_start, condition.target_start, condition.length
        if name == "audio":
            first, target, length = (audio_position(value, fps) for value in (first, target, length))
        first += given.shape[1] if first < 0 else 0
        target += x.shape[1] if target < 0 else 0
    length = min(length, given.shape[1] - first, x.shape[1] - target)
    if length <= 0:
        raise UserError(
            f"a condition on {name} lies outside the reference or the clip ({given.shape[1]}, {x.shape[1]} latent frames)"
        )
    x[:, target : target + length] = given[:, first : first + length].to(x)
    mask[target : target + length] = condition.edit
