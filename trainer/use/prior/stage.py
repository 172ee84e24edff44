"""The one shape of the stages that make the prior's raw material: a model that is loaded once, and parts that are published.

A part is a fixed slice of the sorted items and becomes one shard. Its commit holds a header of three digests: of the settings, of
the weights and of the items. A resumed run passes over parts whose header is the same and makes anything else again, so what is
published depends on the inputs alone: not on kills, on workers, nor on what lay there before.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TypeVar

import polars as pl

from javisc.compiler.store.rows import rejected_row
from javisc.manifests.entries import named
from javisc.manifests.schema import MANIFEST_SCHEMA
from javisc.trainer.use.prior.networks import digest_of_all

T = TypeVar("T")
#: Stages by name: `module:class`, made with the command's settings.
STAGES = {
    "unpaired": "javisc.trainer.use.prior.unpaired:Unpaired",
    "separate": "javisc.trainer.use.prior.separate:Separate",
    "masklets": "javisc.trainer.use.prior.masklets:Masklets",
}
#: What an item holds only to be found: a dataset that moved gives the same parts.
PLACE = "place"
#: The manifest of a pool that was made of a dataset: javisc's columns, and the clip that a sound belongs to.
POOL_SCHEMA = pl.Schema({**MANIFEST_SCHEMA, "clip_key": pl.String()})


@dataclass(frozen=True)
class Part:
    """Items `items` of shard `number`, in the order of their keys. `header`: digests of settings, weights and items."""

    number: int
    items: list[dict[str, Any]]
    header: dict[str, str]


@dataclass
class Made:
    """What a part became: samples (manifest row, members by extension) and rows of rejected.parquet."""

    samples: list[tuple[dict[str, Any], dict[str, bytes | Path]]] = field(default_factory=list)
    rejects: list[dict[str, Any]] = field(default_factory=list)

    def refuse(self, item: Mapping[str, Any], reason: str, message: str) -> None:
        """Account for an item that gives no sample. reason: a code of compiler.reasons."""
        row = {"path": None, "source_bytes": None, **item}
        self.rejects.append(rejected_row(row, reason, message[:500]))


class Stage(Protocol):
    """One of the stages. Its settings come from the command; nothing but `load` may take much memory or time."""

    name: str
    schema: pl.Schema
    #: That of the pool's members, where one made them.
    recipe: dict[str, Any] | None
    #: Local folders of the networks that `load` loads; empty for a baseline.
    networks: list[Path]

    def header(self) -> dict[str, Any]:
        """What dataset.json says of how the pool was made, and every setting that shapes its bytes."""

    def weights(self) -> str:
        """A digest of all networks; "" without any."""

    def items(self, scratch: Path) -> Iterator[dict[str, Any]]:
        """The work, in the order of the items' `key`s; whatever an item holds beside its PLACE is part of its digest."""

    def load(self, device: str) -> Any:
        """The model, on a device; None without one."""

    def work(self, part: Part, model: Any, scratch: Path) -> Made:
        """Make a part: a function of its items, the settings and the weights."""


class Weighted:
    """What stages have in common: `networks`, the local folders that `load` loads; empty for a baseline."""

    networks: list[Path]

    @cached_property
    def _weights(self) -> str:
        return digest_of_all(self.networks)

    def weights(self) -> str:
        """A digest of all networks; "" without any."""
        return self._weights


def stage_of(name: str, settings: Mapping[str, Any]) -> Stage:
    """The stage called `name`. Raises UserError for settings that do not fit together."""
    stage: Stage = named(STAGES[name])(**settings)
    return stage


def digest(value: Any) -> str:
    """SHA-256 of a value's canonical JSON."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def parts_of(stage: Stage, items: Iterable[dict[str, Any]], size: int, device: str) -> Iterator[Part]:
    """The items cut into parts of `size`. device: its kind (cpu, cuda), since they do not agree to the last digit."""
    settings = digest({**stage.header(), "part_size": size, "device": device if stage.weights() else ""})
    weights = stage.weights()
    coming = iter(items)
    number = 0
    while taken := list(islice(coming, size)):
        told = [{name: value for name, value in item.items() if name != PLACE} for item in taken]
        yield Part(number, taken, {"settings": settings, "weights": weights, "items": digest(told)})
        number += 1


def seed_of(key: str, seed: int, purpose: str) -> int:
    """63 bits for a key's own generator: a row is the same whatever stands beside it in a batch, and wherever it is made."""
    text = f"{purpose}\0{seed}\0{key}".encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1


def padded(rows: Sequence[T], size: int) -> Iterator[tuple[list[T], int]]:
    """Batches of exactly `size` rows, each with how many count: the last is filled up with its own last row."""
    for first in range(0, len(rows), size):
        batch = list(rows[first : first + size])
        yield batch + [batch[-1]] * (size - len(batch)), len(batch)
