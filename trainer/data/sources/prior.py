"""Batches for the prior: clips, and the pools that their negatives are drawn from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from javisc.manifests.errors import UserError
from javisc.trainer.data.bytes.graph import Tensors
from javisc.trainer.data.bytes.loaded import Loaded
from javisc.trainer.data.bytes.reader import ReaderOptions
from javisc.trainer.data.sources.clips import ClipData, Clips, ClipSource
from javisc.trainer.data.sources.negatives import batch_negatives
from javisc.trainer.data.sources.pools import Pools
from javisc.trainer.transforms.javisdit_negatives import NegativeClips, NegativesConfig


@dataclass
class PoolsConfig:
    """Where other material for negatives lies: compiled datasets of masklets, of separated sounds, of sounds made from captions.
    Without one, its augmentations fall back as the reference's do."""

    masklets: str = ""
    sources: str = ""
    unpaired: str = ""

    def open(self, rule: str, reader: ReaderOptions | None = None) -> Pools:
        """The pools, read as `reader` says; `rule` is that of the negatives. Raises UserError."""
        return Pools(self.masklets or None, self.sources or None, self.unpaired or None, rule=rule, reader=reader)


class PriorSource(ClipSource):
    """`ClipSource` whose batches come with their negatives, made on the CPU in the loader's thread: the training step neither
    decodes nor reads a pool. Its state tells which pools were drawn from, so that a resumed run draws the same."""

    def __init__(
        self,
        data: ClipData,
        split: str | None,
        pools: Pools,
        config: NegativesConfig,
        *,
        seed: int,
        rank: int = 0,
        world: int = 1,
        train: bool = True,
    ) -> None:
        def finish(loaded: Loaded) -> NegativeClips:
            return batch_negatives(on_cpu(loaded), pools, config, pin=torch.cuda.is_available())

        super().__init__(data, split, seed=seed, rank=rank, world=world, train=train, whole_sound=True, finish=finish)
        pools.check(self.catalog)
        self.pools = pools.fingerprint()

    def state_dict(self) -> dict[str, Any]:
        """A few integers and digests, the same on every rank."""
        return {**super().state_dict(), "pools": self.pools}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where another source stood. Raises UserError if it had other data, other pools or another seed."""
        if state["pools"] != self.pools:
            raise UserError("the checkpoint's run drew its negatives from other pools: resume with the same pools.*")
        super().load_state_dict(state)


def negatives_of(clips: Clips) -> NegativeClips:
    """The negatives that a batch of `PriorSource` came with: by aspect `video` [B, r, 3, T, H, W] and `audio` [B, r, n]."""
    assert isinstance(clips.loaded.made, NegativeClips)
    return clips.loaded.made


def on_cpu(loaded: Loaded) -> Loaded:
    """The batch with its tensors in host memory. The copy runs beside what the training step has queued."""
    assert loaded.audio is not None
    if not loaded.video.is_cuda:
        return loaded
    beside = torch.cuda.Stream(loaded.video.device)  # type: ignore[no-untyped-call]
    with torch.cuda.stream(beside):
        return replace(loaded, tensors=Tensors(loaded.video.cpu(), loaded.audio.cpu()))
