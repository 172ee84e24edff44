"""How far a build is: what its plan asks for, what is published, what is missing, and how long that will take."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from javisc.compiler.plan.layout import summary
from javisc.compiler.plan.planning import PLAN
from javisc.compiler.store.commits import BUILD, Parts
from javisc.compiler.store.files import Store
from javisc.compiler.store.present import losses
from javisc.compiler.store.running import Builder, builders
from javisc.compiler.store.tables import digest_of
from javisc.manifests.errors import UserError

#: The rate is that of the shards published within so many seconds of the newest one.
RECENT = 3600.0
#: What a dataset's digest is made of.
DIGESTS = ("sha256", "idx_sha256")


@dataclass(frozen=True)
class Status:
    """Shards and inputs of the plan, and those published. rate: inputs per second of late, None if too few shards tell it.

    missing: numbers of the shards that are not published, or of which a file is lost or damaged. lost: these, and how.
    merged: whether the tables are those of everything published. running: the builds and parts that run now.
    """

    shards: int
    inputs: int
    published: int
    inputs_done: int
    samples: int
    rejected: dict[str, int]
    bytes: int
    missing: tuple[int, ...]
    rate: float | None
    merged: bool
    running: tuple[Builder, ...] = ()
    lost: dict[int, str] = field(default_factory=dict)

    @property
    def seconds_left(self) -> float | None:
        """At the present rate; None if it is not known."""
        return None if not self.rate else (self.inputs - self.inputs_done) / self.rate

    def parts(self, count: int) -> tuple[int, ...]:
        """Which of `count` parts (`--part I/count`) have shards that are missing and do not run now."""
        busy = {one.part[0] for one in self.running if one.part is not None and one.part[1] == count}
        return tuple(sorted({shard % count for shard in self.missing} - busy))


def status(path: str) -> Status:
    """The state of the build in the folder or URL `path`. Raises UserError if nothing was planned there."""
    with tempfile.TemporaryDirectory(prefix="javisc-status-") as scratch:
        store = Store(path, Path(scratch))
        if not store.exists(*PLAN):
            raise UserError(f"{path} has no plan: nothing was begun there (`javisc build … --out {path}` does)")
        shards = summary(store.fetch(*PLAN))
        parts = Parts(store)
        done = [row for row in shards.iter_rows(named=True) if parts.done(row["shard"], row["revision"])]
        lost = losses(store, parts, [row["shard"] for row in done])
        done = [row for row in done if row["shard"] not in lost]
        numbers = [row["shard"] for row in done]
        reasons = parts.rejected(numbers).group_by("reason").len().collect(engine="streaming")
        times = store.times(BUILD, "parts")
        commits = [parts.commits[number] for number in numbers]
        return Status(
            shards=shards.height,
            inputs=int(shards["inputs"].sum()),
            published=len(done),
            inputs_done=sum(row["inputs"] for row in done),
            samples=sum(commit["samples"] for commit in commits),
            rejected=dict(reasons.sort(["len", "reason"], descending=[True, False]).iter_rows()),
            bytes=sum(commit.get("bytes") or 0 for commit in commits),
            missing=tuple(sorted(set(shards["shard"].to_list()) - set(numbers))),
            rate=_rate(
                [
                    (times[f"{row['shard']:06d}.json"], row["inputs"])
                    for row in done
                    if f"{row['shard']:06d}.json" in times
                ]
            ),
            merged=len(done) == shards.height and _merged(store, parts, sorted(numbers), times),
            running=tuple(builders(store)),
            lost=lost,
        )


def _merged(store: Store, parts: Parts, shards: Sequence[int], times: dict[str, float]) -> bool:
    """True if the header is of these committed shards: by its digest, and younger than commits that only refused inputs.

    The time of a commit with samples tells nothing: a copy of a dataset has them in any order.
    """
    try:
        header = json.loads(store.read("dataset.json"))
    except (FileNotFoundError, ValueError):
        return False
    made = [shard for shard in shards if parts.commits[shard]["samples"]]
    rows = [{"shard": shard, **{name: parts.commits[shard][name] for name in DIGESTS}} for shard in made]
    table = pl.DataFrame(rows, schema={"shard": pl.Int64, **dict.fromkeys(DIGESTS, pl.String)})
    empty = [times.get(f"{shard:06d}.json", 0.0) for shard in set(shards) - set(made)]
    when = store.times().get("dataset.json", 0.0)
    return isinstance(header, dict) and header.get("digest") == digest_of(table) and when >= max(empty, default=0.0)


def _rate(published: Sequence[tuple[float, int]]) -> float | None:
    """Inputs per second from (when, inputs) of shards: those published after the first of the recent ones, by the time passed."""
    newest = max((when for when, _ in published), default=0.0)
    recent = sorted((when, inputs) for when, inputs in published if when > newest - RECENT)
    passed = newest - recent[0][0] if recent else 0.0
    return sum(inputs for _, inputs in recent[1:]) / passed if passed > 0 else None


def ranges(numbers: Iterable[int]) -> str:
    """Numbers as schedulers write them: 3,7-12. Empty if there are none."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(f"{low}" if low == high else f"{low}-{high}" for low, high in runs)
