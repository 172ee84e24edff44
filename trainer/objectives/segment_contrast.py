"""Stage 1 of Synchformer: which sound segment belongs to which picture segment, among all of a batch.

Letters: B clips, S segments of each, N = B·S, C width, W segments of a window.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def similarities(seen: Tensor, heard: Tensor, temperature: Tensor) -> tuple[Tensor, Tensor]:
    """Picture against sound and sound against picture (N,N), of unit vectors (N,C): dot products over the temperature."""
    return seen @ heard.T / temperature, heard @ seen.T / temperature


def segment_contrast(seen: Tensor, heard: Tensor, temperature: Tensor) -> Tensor:
    """½ [CE(picture → sound) + CE(sound → picture)] (InfoNCE, as CLIP's): the positive is of the same clip and time."""
    own = torch.arange(len(seen), device=seen.device)
    forth, back = similarities(seen, heard, temperature)
    return (F.cross_entropy(forth, own) + F.cross_entropy(back, own)) / 2


def shifted_windows(heard: Tensor, seen: Tensor, window: int = 8) -> dict[str, Tensor]:
    """How often a window of W segments finds its own of the other stream among all of its clip; unit vectors (B,S,C).

    preds_a, preds_v (B, S-W+1): the sound's window that each of the picture finds, and the picture's for each of the sound;
    precision_a, precision_v (B,): how many are right; precision (B,): their mean. Chance is 1 / (S-W+1).
    Raises ValueError for fewer segments than a window has.
    """
    if not 1 <= window <= heard.shape[1]:
        raise ValueError(f"a window of {window} segments in a clip of {heard.shape[1]}")
    # unfold gives (B, S-W+1, C, W); the order within a window is the same in both streams and does not matter.
    a, v = (stream.unfold(1, window, 1).flatten(2) for stream in (heard, seen))
    similar = a @ v.transpose(1, 2)
    own = torch.arange(similar.shape[1], device=similar.device)
    preds_a, preds_v = similar.argmax(1), similar.argmax(2)
    precision_a, precision_v = ((preds == own).float().mean(1) for preds in (preds_a, preds_v))
    precision = (precision_a + precision_v) / 2
    return {
        "preds_a": preds_a,
        "preds_v": preds_v,
        "precision_a": precision_a,
        "precision_v": precision_v,
        "precision": precision,
    }
