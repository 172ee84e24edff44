"""Samples of one clip, written by hand with DatasetWriter: for a test, and for the process that it kills."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from javisc.compiler.store.writer import DatasetWriter

Sample = tuple[str, dict[str, bytes | Path], dict[str, Any]]


def samples(clip: dict[str, bytes], count: int = 7) -> Iterator[Sample]:
    """`count` samples of the members `clip`: keys out of order, captions, a split each."""
    for number in range(count):
        yield (
            f"clip_{number % 4}_{number}",
            dict(clip),
            {"text": f"caption {number}", "split": "train" if number else "val"},
        )


def fill(out: Path, clips: Iterator[Sample], **options: Any) -> None:
    """Write them in shards of three."""
    with DatasetWriter(out, shard_samples=3, **options) as writer:
        for key, members, columns in clips:
            writer.add(key, members, columns)
