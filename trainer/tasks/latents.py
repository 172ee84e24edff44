"""What the latent models learn from: latents and text states, made by frozen networks or read from an encoded dataset."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import is_fake

from javisc.trainer.data.sources.clips import ClipData, Clips, ClipSource
from javisc.trainer.data.sources.encoded import Encoded, EncodedSource, stores_latents
from javisc.trainer.data.sources.noise import generators
from javisc.trainer.engine.moving import to_device
from javisc.trainer.models.encoders import Encoders
from javisc.trainer.task import Source


@dataclass(frozen=True)
class Latents:
    """A batch: `audio` [B, 8, R, M]; `video` [B, 4, T, H, W], None for sound alone; `text` [B, 1, L, C] and its `mask` [B, L]
    (1 = real token); `prior_text` [B, L', C'], what the prior reads, None where no prior is.

    `frames`, `height`, `width` and `fps` are the clips' own, one size for the whole batch. `seeds` belong to the samples of this
    epoch: whatever is drawn for a row is drawn from its own.
    """

    audio: Tensor
    video: Tensor | None
    text: Tensor
    mask: Tensor
    prior_text: Tensor | None
    keys: list[str]
    seeds: list[int]
    frames: int
    height: int
    width: int
    fps: float
    #: Real tokens of each row, where they are its first ones: what the host knows it need not read from a device.
    lengths: list[int] | None = None

    def __len__(self) -> int:
        return len(self.audio)

    def to(self, device: torch.device) -> Latents:
        """The same on another device."""
        tensors = {name: x for name, x in vars(self).items() if isinstance(x, Tensor)}
        moved: dict[str, Any] = {name: to_device(x, device) for name, x in tensors.items()}
        return dataclasses.replace(self, **moved, lengths=self.lengths or token_counts(self.mask))


Batch = Clips | Latents


def token_counts(mask: Tensor) -> list[int] | None:
    """How many tokens of each row of a mask [B, L] on the CPU are real, if they are its first; None else."""
    if mask.device.type != "cpu" or is_fake(mask):
        return None
    counts = (mask != 0).sum(1)
    first = torch.arange(mask.shape[1]) < counts[:, None]
    return [int(count) for count in counts.tolist()] if torch.equal(first, mask != 0) else None


@torch.no_grad()
def encode(encoders: Encoders, clips: Clips, *, prior_text: bool) -> Latents:
    """Latents of clips on the encoders' device.

    Posteriors are drawn from each row's own generator: a row's latents do not depend on the batch it came in.
    """
    rows = generators(clips.seeds, "posterior")
    text, mask = encoders.text.encode(clips.captions)
    return Latents(
        audio=encoders.audio.encode(clips.mel, draws=rows),
        video=None if clips.video is None else encoders.video.encode(clips.video, draws=rows),
        text=text,
        mask=to_device(mask, text.device),
        lengths=token_counts(mask),
        prior_text=encoders.prior_text.encode(clips.captions) if prior_text else None,
        keys=clips.keys,
        seeds=clips.seeds,
        frames=clips.frames,
        height=clips.height,
        width=clips.width,
        fps=clips.fps,
    )


def latents_of(batch: Batch, encoders: Encoders, *, prior_text: bool) -> Latents:
    """A batch of either kind as latents on the encoders' device."""
    if isinstance(batch, Latents):
        return batch.to(encoders.device)
    return encode(encoders, batch, prior_text=prior_text)


def source(
    data: ClipData,
    split: str | None,
    *,
    seed: int,
    rank: int = 0,
    world: int = 1,
    with_video: bool = True,
    train: bool = True,
    width: int = 1152,
) -> Source[Batch]:
    """The batches of a split: latents where `javisc encode` stored them, else clips. `width` is the model's, for costs."""
    if data.paths and stores_latents(data):
        needs = ("audio", "text", "mask", *(["video"] if with_video else []))
        make = _with_video if with_video else _without_video
        return EncodedSource(data, split, make, needs=needs, seed=seed, rank=rank, world=world, train=train)
    return ClipSource(data, split, seed=seed, rank=rank, world=world, with_video=with_video, train=train, width=width)


def _with_video(e: Encoded) -> Latents:
    names = ("audio", "video", "text", "mask", "prior_text")
    x = {name: e.tensors.get(name) for name in names}
    return Latents(**x, keys=e.keys, seeds=e.seeds, frames=e.frames, height=e.height, width=e.width, fps=e.fps)  # type: ignore[arg-type]


def _without_video(e: Encoded) -> Latents:
    return dataclasses.replace(_with_video(e), video=None)
