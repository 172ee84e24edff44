"""From an input table to a compiled dataset: plan, run what is not published, merge."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

if TYPE_CHECKING:
    from javisc.compiler.recipe import Recipe


@dataclass(frozen=True)
class BuildOptions:
    """How a build runs. Only `shard_size`, `shard_samples`, `seed` and `split` have a say in the result."""

    shard_size: int = 512_000_000
    shard_samples: int | None = None
    seed: int = 0
    split: Mapping[str, float] = field(default_factory=dict)
    workers: int | None = None
    time_limit: float = 120.0
    shard_range: tuple[int, int] | None = None
    finish: bool = False
    prune: bool = False
    retry_rejected: bool = False
    scratch: Path | None = None


@dataclass(frozen=True)
class BuildResult:
    """What stands on disk after a build."""

    out: str
    samples: int
    shards: int
    rejected: Mapping[str, int]
    seconds: float
    notes: tuple[str, ...] = ()


def build(
    inputs: pl.LazyFrame | pl.DataFrame, recipe: Recipe, out: str | Path, options: BuildOptions | None = None
) -> BuildResult:
    """Compile the inputs (INPUT_SCHEMA, see compiler.inputs) into the dataset `out`.

    `recipe.kind` chooses what a file becomes: "jav" and "sync" go through transcode, "audio" through transcode_audio.
    """
    raise NotImplementedError
