"""Real annotation files, and stand-ins for corpora of which nothing could be had."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import polars as pl

from javisc.compiler.inputs.corpora import Annotations, of_kind
from javisc.compiler.inputs.table import INPUT_SCHEMA
from support.shared import SHARED, need

ANNOTATIONS = SHARED / "annotations"


@cache
def real(name: str, folder: str) -> Annotations:
    """The annotations of a corpus read from the real files."""
    return of_kind("audio")[name].annotations(need(ANNOTATIONS / folder))


def row(found: Annotations, identity: str) -> dict[str, object]:
    """The annotation of one identity."""
    return found.frame.row(by_predicate=pl.col("identity") == identity, named=True)


def files(*relpaths: str, root: str = "/raw") -> pl.DataFrame:
    """Rows of the input table as the scan makes them."""
    rows = [{"path": f"{root}/{name}", "relpath": name, "id": Path(name).stem} for name in relpaths]
    return pl.DataFrame(rows, schema=INPUT_SCHEMA)
