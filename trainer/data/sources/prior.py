"""Batches for the prior: clips, and the pools that their negatives are drawn from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from javisc.manifests.errors import UserError
from javisc.trainer.data.bytes.graph import Tensors
from javisc.trainer.data.bytes.loader import Loaded
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

    def open(self, rule: str) -> Pools:
        """The pools; `rule` is that of the negatives. Raises UserError."""
        return Pools(self.masklets or None, self.sources or None, self.unpaired or None, rule=rule)


class PriorSource(ClipSource):
    """`ClipSource` with whole sounds. Its state tells which pools were drawn from, so that a resumed run draws the same."""

    def __init__(
        self,
        data: ClipData,
        split: str | None,
        pools: Pools,
        *,
        seed: int,
        rank: int = 0,
        world: int = 1,
        train: bool = True,
    ) -> None:
        super().__init__(data, split, seed=seed, rank=rank, world=world, train=train, whole_sound=True)
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


def negatives_of(clips: Clips, pools: Pools, config: NegativesConfig, device: torch.device) -> NegativeClips:
    """A batch's negatives, made on the device: by aspect `video` [B, r, 3, T, H, W] and `audio` [B, r, n]."""
    loaded = clips.loaded
    assert loaded.audio is not None
    moved = Tensors(loaded.video.to(device), loaded.audio.to(device))
    return batch_negatives(Loaded(loaded.batch, moved, loaded.labels, sounds=loaded.sounds), pools, config)
