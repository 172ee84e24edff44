"""How a build runs: what `javisc build` is told beside its inputs and the recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

#: Refusals that another attempt may lift; what --retry-rejected plans again.
RETRIED = ("crashed", "timeout", "internal", "vanished", "unreadable", "no_caption")


@dataclass(frozen=True)
class BuildOptions:
    """How a build runs. Only `shard_size`, `shard_samples`, `seed` and `split` have a say in the result.

    shard_size: bytes of a shard, by estimate; shard_samples overrides it. split: names and shares. workers: processes of the
    local engine, or for one shard on a cluster; None: what fits. address: of the cluster, for engines that have one.
    time_limit: CPU seconds per file, and more by its size. shard_range: build only the shards a ≤ n < b and do
    not merge. part: (i, n), build only the shards whose number leaves i when divided by n, and do not merge. write_plan: plan
    and stop. finish: only merge what is published. prune: rewrite shards whose inputs changed or are gone. retry_rejected:
    try inputs again that were refused for reasons that may pass. scratch: folder for unpacked clips, local to each machine.
    check: compare published shards with their digests, not only with their sizes. repair: make again what is lost or damaged, and
    nothing else. mix_tools: go on with other versions of the tools than the dataset was begun with. offsets: a
    sparsesync.offsets.Offsets, for the manifest's evaluation columns. compiler: what becomes of one file, see
    run.engine.COMPILERS; None: what the recipe says. renditions: shorter sides of smaller pictures, which
    the same pass makes into fields.
    """

    shard_size: int = 512_000_000
    shard_samples: int | None = None
    seed: int = 0
    split: Mapping[str, float] = field(default_factory=dict)
    workers: int | None = None
    engine: str = "local"
    address: str | None = None
    time_limit: float = 120.0
    shard_range: tuple[int, int | None] | None = None
    part: tuple[int, int] | None = None
    write_plan: bool = False
    finish: bool = False
    prune: bool = False
    retry_rejected: bool = False
    check: bool = False
    repair: bool = False
    mix_tools: bool = False
    offsets: Any = None
    scratch: Path | None = None
    compiler: str | None = None
    renditions: tuple[int, ...] = ()

    @property
    def partial(self) -> bool:
        """True if others may build other shards of the same plan at the same time: then nobody merges."""
        return self.shard_range is not None or self.part is not None

    @property
    def what(self) -> str:
        """Which shards this build makes, in words."""
        if self.part is not None:
            return f"part {self.part[0]}/{self.part[1]}"
        if self.shard_range is not None:
            low, high = self.shard_range
            return f"shards {low} to {'the last' if high is None else high - 1}"
        return "the plan" if self.write_plan else "the last merge" if self.finish else "all shards"

    def takes(self, shard: int) -> bool:
        """True if this build is to make the shard."""
        low, high = self.shard_range or (0, None)
        index, count = self.part or (0, 1)
        return low <= shard and (high is None or shard < high) and shard % count == index
