"""Real annotation files, and stand-ins for corpora of which nothing could be had."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import polars as pl

from javisc.compiler.inputs.annotations import Problems
from javisc.compiler.inputs.corpora import READ_SCHEMA, Corpus, Row, of_kind
from javisc.compiler.inputs.table import INPUT_SCHEMA
from javisc.manifests.partitions import ORDER
from support.shared import SHARED, need

ANNOTATIONS = SHARED / "annotations"


@dataclass(frozen=True)
class Annotations:
    """`frame` (ANNOTATION_SCHEMA, one row per identity, in the order of the files), `excluded` (EXCLUDED_SCHEMA), bad rows."""

    frame: pl.DataFrame
    excluded: pl.DataFrame
    problems: Problems


def annotations(corpus: Corpus, root: Path, files: Sequence[str] = ()) -> Annotations:
    """All that the annotation files under `root` say, in memory."""
    problems = Problems()
    rows = pl.concat([pl.DataFrame(schema=READ_SCHEMA), *corpus.batches(root, files, problems)])
    frame, excluded = corpus.labels(rows)
    return Annotations(frame.drop(ORDER), excluded.drop(ORDER), problems)


@cache
def real(name: str, folder: str) -> Annotations:
    """The annotations of a corpus read from the real files."""
    return annotations(of_kind("audio")[name], need(ANNOTATIONS / folder))


def row(found: Annotations, identity: str) -> dict[str, object]:
    """The annotation of one identity."""
    return found.frame.row(by_predicate=pl.col("identity") == identity, named=True)


def files(*relpaths: str, root: str = "/raw") -> pl.DataFrame:
    """Rows of the input table as the scan makes them."""
    rows = [{"path": f"{root}/{name}", "relpath": name, "id": Path(name).stem} for name in relpaths]
    return pl.DataFrame(rows, schema=INPUT_SCHEMA)


class Made(Corpus):
    """A corpus whose rows are given."""

    name = "made"
    folders = ("Made",)
    kinds = frozenset({"audio"})
    layout = "anything"
    sources = ()

    def __init__(self, *rows: Row, bad: int = 0) -> None:
        self._rows, self._bad = rows, bad

    def rows(self, root: Path, files: Iterable[str], problems: Problems) -> Iterator[Row]:
        for line in range(1, self._bad + 1):
            problems.add(root / "made.csv", line, "a bad row")
        yield from self._rows
