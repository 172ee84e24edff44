"""A table whose columns are copied from where they lie has the bytes of one that polars writes whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from javisc.manifests import io
from javisc.manifests.io import write_table
from javisc.manifests.splice import splice
from javisc.manifests.thrift import read_struct, write_struct

#: A value of every kind that a manifest has; few different ones make a dictionary, nulls alone an empty column.
KINDS: dict[str, tuple[pl.DataType, st.SearchStrategy[Any]]] = {
    "text": (pl.String(), st.text(max_size=4)),
    "few": (pl.String(), st.sampled_from(["one", "two"])),
    "texts": (pl.List(pl.String()), st.lists(st.none() | st.text(max_size=3), max_size=3)),
    "real": (pl.Float64(), st.floats(allow_nan=False)),
    "whole": (pl.Int32(), st.integers(-5, 5)),
    "truth": (pl.Boolean(), st.booleans()),
    "null": (pl.Float32(), st.none()),
}


@st.composite
def tables(draw: st.DrawFn) -> tuple[pl.DataFrame, pl.DataFrame, list[str]]:
    """A table, one of the same rows that has other and new columns, and the columns of both that are wanted, in some order."""
    height = draw(st.integers(1, 30))

    def column(name: str, kind: str) -> pl.Series:
        dtype, value = KINDS[kind]
        return pl.Series(name, draw(st.lists(st.none() | value, min_size=height, max_size=height)), dtype)

    kinds = draw(st.lists(st.sampled_from(sorted(KINDS)), min_size=2, max_size=5))
    base = pl.DataFrame([column(f"c{at}", kind) for at, kind in enumerate(kinds)])
    beside = pl.DataFrame([column("c0", draw(st.sampled_from(sorted(KINDS)))), column("new", "texts")])
    wanted = draw(st.permutations([*base.columns, "new"]))
    return base, beside, list(wanted[: draw(st.integers(1, len(wanted)))])


@settings(max_examples=15, deadline=None)
@given(tables())
def test_columns_copied_have_the_bytes_of_a_table_written_whole(
    tmp_path_factory: pytest.TempPathFactory, given_tables: tuple[pl.DataFrame, pl.DataFrame, list[str]]
) -> None:
    base, beside, wanted = given_tables
    folder = tmp_path_factory.mktemp("splice")
    whole = base.with_columns(beside).select(wanted)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(io, "ROW_GROUP", 7)
        for name, frame in {"base": base, "beside": beside, "like": whole.clear(), "whole": whole}.items():
            write_table(frame, folder / f"{name}.parquet")
    paths = [folder / f"{name}.parquet" for name in ("base", "beside", "like", "out")]
    assert splice(paths[0], paths[1], wanted, paths[2], paths[3])
    assert paths[3].read_bytes() == (folder / "whole.parquet").read_bytes()
    assert pl.read_parquet(paths[3], glob=False).equals(whole)


def test_what_polars_of_this_version_did_not_write_is_left_to_it(tmp_path: Path) -> None:
    base, like, out = (tmp_path / name for name in ("base", "like", "out"))
    frame = pl.DataFrame({"a": ["x", "y"] * 30, "b": range(60)})
    write_table(frame, base)
    write_table(frame.select("b").clear(), like)
    assert splice(base, None, ["b"], like, out)
    good = base.read_bytes()
    assert good.count(b"Polars (python) version") == 1
    for damage in (
        good.replace(b"Polars (python) version", b"Polars (python) wersion"),
        good[:-8] + b"\xff\xff\x00\x00PAR1",
        good[:200],
        good[:40] + b"\0\0\0\0" + good[44:],
        b"",
    ):
        base.write_bytes(damage)
        done = splice(base, None, ["b"], like, out)
        assert not done or out.read_bytes() == _written(good, tmp_path), "what was copied is what lay there"
    write_table(frame.head(59), tmp_path / "shorter")
    base.write_bytes(good)
    assert not splice(base, tmp_path / "shorter", ["b"], like, out)


def _written(good: bytes, folder: Path) -> bytes:
    again = folder / "again"
    again.write_bytes(good)
    write_table(pl.scan_parquet(again, glob=False).select("b"), folder / "whole")
    return (folder / "whole").read_bytes()


def test_structs_are_written_as_they_were_read() -> None:
    struct = [
        (1, 5, -7), (2, 1, True), (3, 2, False), (20, 6, 2**40), (21, 8, b"text"), (22, 3, 200), (23, 7, b"\0" * 8),
        (24, 9, (12, [[(1, 9, (1, [1, 2])), (40, 10, (8, [b"", b"y"] * 9))]])),
    ]  # fmt: skip
    assert read_struct(write_struct(struct)) == struct  # type: ignore[arg-type]
    with pytest.raises((IndexError, ValueError)):
        read_struct(write_struct(struct)[:-30])  # type: ignore[arg-type]
