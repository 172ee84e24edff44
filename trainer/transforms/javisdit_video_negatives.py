"""Videos that no longer fit their sound: JavisDiT's spatial and temporal video augmentations.

Clips are [T, 3, H, W] in -1 to 1 (0 is mid-grey), on any device; draws come by name from the sample's seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from javisc.trainer.transforms.draws import Draws


def mask_cells(clip: Tensor, rows: Sequence[int], columns: Sequence[int], side: int) -> Tensor:
    """Grey squares of `side` pixels at these pixel positions, in all frames."""
    out = clip.clone()
    for row, column in zip(rows, columns):
        out[..., row : row + side, column : column + side] = 0
    return out


def cell_side(clip: Tensor) -> int:
    """A sixth of the shorter edge."""
    return max(1, min(clip.shape[-2:]) // 6)


def random_mask(clip: Tensor, draws: Draws) -> Tensor:
    """Grey out a share of 0.2 to 0.8 of a grid's cells, drawn with replacement."""
    side = cell_side(clip)
    rows, columns = (range(0, size, side) for size in clip.shape[-2:])
    count = int(len(rows) * len(columns) * draws.uniform("mask.ratio", 0.2, 0.8))
    picked = [
        (
            rows[draws.integer(f"mask.row.{i}", 0, len(rows) - 1)],
            columns[draws.integer(f"mask.column.{i}", 0, len(columns) - 1)],
        )
        for i in range(count)
    ]
    return mask_cells(clip, [row for row, _ in picked], [column for _, column in picked], side)


def mirror(clip: Tensor) -> Tensor:
    """Left and right exchanged."""
    return clip.flip(-1)


def copy_paste(clip: Tensor, draws: Draws) -> Tensor:
    """Cells of the grid copied onto other cells, in all frames."""
    side = cell_side(clip)
    out = clip.clone()
    rows, columns = (range(0, size - side + 1, side) for size in clip.shape[-2:])
    for i in range(int(len(rows) * len(columns) * draws.uniform("paste.ratio", 0.2, 0.8))):
        (y0, y1), (x0, x1) = (
            [places[draws.integer(f"paste.{name}.{end}.{i}", 0, len(places) - 1)] for end in ("from", "to")]
            for name, places in (("row", rows), ("column", columns))
        )
        out[..., y1 : y1 + side, x1 : x1 + side] = clip[..., y0 : y0 + side, x0 : x0 + side]
    return out


def rotate_frames(clip: Tensor, frames: int) -> Tensor:
    """Frame `frames` comes first, those before it go to the end."""
    return clip.roll(-frames, 0)


def temporal_shift(clip: Tensor, draws: Draws) -> Tensor:
    """Rotate by a tenth to a half of the clip."""
    total = len(clip)
    return rotate_frames(clip, draws.integer("shift.frames", max(1, total // 10), max(1, total // 2 - 1)))


def stall(clip: Tensor, start: int, frames: int) -> Tensor:
    """Frame `start` stands for `frames` frames, the rest is delayed and cut."""
    order = torch.arange(len(clip), device=clip.device)
    order = torch.where(order <= start, order, (order - frames + 1).clamp_min(start))
    return clip[order]


def video_stall(clip: Tensor, draws: Draws) -> Tensor:
    """A standstill of 12 frames to the whole clip."""
    total = len(clip)
    frames = draws.integer("stall.frames", min(12, total), total)
    return stall(clip, draws.integer("stall.start", 0, total - frames), frames)


@dataclass(frozen=True)
class Masklet:
    """A stretch of a cut-out moving object: `content` [L, 3, h, w] uint8 and `mask` [L, h, w] bool, squashed to a common size;
    `boxes` [L, 4] (x, y, w, h) in pixels of its source; `visible` [L] bool; `source` (height, width)."""

    content: Tensor
    mask: Tensor
    boxes: Tensor
    visible: Tensor
    source: tuple[int, int]


class MaskletPool(Protocol):
    """Objects to paste."""

    def masklet(self, draws: Draws, frames: int) -> Masklet | None:
        """A stretch of `frames` frames of an object that has so many, else all of the longest one; None if there is none."""


def longest_gap(visible: Tensor) -> int:
    """The longest run of invisible frames."""
    longest = run = 0
    for seen in visible.tolist():
        run = 0 if seen else run + 1
        longest = max(longest, run)
    return longest


def add_masklet(clip: Tensor, pool: MaskletPool | None, draws: Draws) -> Tensor:
    """Paste a moving object over a part of the clip; without a usable object: `random_mask`.

    Scale: uniform between "the source frame fits" and "the box of its motion fits"; place and first frame anywhere. Objects
    hidden for more than 10 frames in a row are left out.
    """
    total, (height, width) = len(clip), clip.shape[-2:]
    wanted = draws.integer("masklet.frames", min(max(12, total // 10), total), total)
    chosen = None if pool is None else pool.masklet(draws, wanted)
    if chosen is None:
        return random_mask(clip, draws)
    frames = min(wanted, len(chosen.visible))
    visible, boxes = chosen.visible[:frames], chosen.boxes[:frames].float()
    if not visible.any() or longest_gap(visible) > 10:
        return random_mask(clip, draws)
    seen = boxes[visible]
    left, top = seen[:, 0].min().item(), seen[:, 1].min().item()
    right, bottom = (seen[:, 0] + seen[:, 2]).max().item(), (seen[:, 1] + seen[:, 3]).max().item()
    whole = min(height / chosen.source[0], width / chosen.source[1])
    motion = min(height / max(bottom - top, 1), width / max(right - left, 1))
    scale = draws.uniform("masklet.scale", min(whole, motion), max(whole, motion))
    scale = min(scale, motion)
    x = draws.uniform("masklet.x", 0, max(width - (right - left) * scale, 0)) - left * scale
    y = draws.uniform("masklet.y", 0, max(height - (bottom - top) * scale, 0)) - top * scale
    start = draws.integer("masklet.start", 0, total - frames)
    out = clip.clone()
    for i in range(frames):
        if bool(visible[i]):
            box = [x + boxes[i, 0].item() * scale, y + boxes[i, 1].item() * scale, *(boxes[i, 2:] * scale).tolist()]
            _paste(out[start + i], chosen.content[i], chosen.mask[i], box)
    return out


def _paste(frame: Tensor, content: Tensor, mask: Tensor, box: Sequence[float]) -> None:
    """Write content [3, h, w] uint8 where mask [h, w] is true into frame [3, H, W] at box (x, y, w, h), in place."""
    x, y, w, h = round(box[0]), round(box[1]), max(1, round(box[2])), max(1, round(box[3]))
    picture = F.interpolate(content[None].to(frame) / 127.5 - 1, size=(h, w), mode="bilinear", align_corners=False)[0]
    shape = F.interpolate(mask[None, None].to(frame), size=(h, w), mode="nearest")[0, 0] > 0
    top, left = max(y, 0), max(x, 0)
    bottom, right = min(y + h, frame.shape[1]), min(x + w, frame.shape[2])
    if bottom > top and right > left:
        inside = slice(top - y, bottom - y), slice(left - x, right - x)
        target = frame[:, top:bottom, left:right]
        target.copy_(torch.where(shape[inside], picture[:, inside[0], inside[1]], target))
