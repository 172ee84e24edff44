"""Tables that are longer than memory, in batches: parquet and plain CSV as they are, others checked row by row and kept typed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import polars as pl

from javisc.compiler.fields.table import JOIN_BY, KNOWN, as_type, cell, cleared, names_of, narrower, native, shaped
from javisc.manifests.damage import POLARS_FAULTS, sized
from javisc.manifests.errors import UserError
from javisc.manifests.rows import CAPTION_NAMES, Faults, read_rows, scan_plain_csv
from javisc.manifests.urls import is_url

#: A table of more rows is long, or of more bytes where its rows are not counted yet; it is read in batches of ROWS.
LONG, LONG_BYTES = 250_000, 32 << 20
ROWS = 100_000


@dataclass
class Source:
    """A long table. batches: its rows as `table.read` gives them, but that `texts` are columns whose type all rows decide.

    names: the columns that name samples alone, in the same form. Both raise UserError.
    """

    path: str
    option: str
    columns: list[str]
    batches: Callable[[], Iterator[pl.DataFrame]]
    names: Callable[[], Iterator[pl.DataFrame]]
    texts: list[str] = field(default_factory=list)


def long_source(path: str, option: str, folder: Path) -> Source | None:
    """A table in batches; None for one that is not long. folder: for what is made of it on the way. Raises UserError."""
    if is_url(path) or not Path(path).is_file():
        return None
    try:
        if path.lower().endswith(".parquet"):
            return _parquet(path, option)
        if Path(path).stat().st_size <= LONG_BYTES:
            return None
        if path.lower().endswith((".csv", ".tsv")) and (found := _plain_csv(path, option)) is not None:
            return found
        return _strict(path, option, folder)
    except (OSError, *POLARS_FAULTS) as error:
        raise UserError(f"{option} {path} cannot be read: {error}") from error


def _in_batches(
    lazy: pl.LazyFrame,
    path: str,
    option: str,
    made: Callable[[pl.DataFrame], pl.DataFrame],
    rows: int | None = None,
    *,
    whole: bool = True,
) -> Iterator[pl.DataFrame]:
    """The rows of a scan by their lines, those of a CSV after its header. rows: how many of a CSV there must be.

    made: gives cells their types. whole: not only what names samples.

    They are numbered here: a lazy row index lets polars read on ahead of who takes the batches, up to the whole table.
    """
    first = seen = 1 if rows is None else 2
    try:
        for batch in lazy.collect_batches(chunk_size=ROWS, maintain_order=True):
            lines = pl.int_range(seen, seen + batch.height, eager=True).alias("line")
            seen += batch.height
            if batch.height:
                frame = made(batch).insert_column(0, lines)
                yield shaped(frame, path, option) if whole else names_of(frame, path, option)
    except (OSError, *POLARS_FAULTS) as error:
        raise UserError(f"{option} {path} cannot be read: {error}") from error
    if rows is not None and seen - first != rows:
        raise UserError(
            f"{option} {path}: {seen - first} rows were read of {rows}: it changed meanwhile, or is no table"
        )


def _parquet(path: str, option: str) -> Source | None:
    sized(path)
    lazy = pl.scan_parquet(path, glob=False)
    if lazy.select(pl.len()).collect().item() <= LONG:
        return None
    columns = lazy.collect_schema().names()
    by = [name for name in JOIN_BY if name in columns]
    typed = lambda batch: native(batch, path, option)  # noqa: E731
    return Source(
        path,
        option,
        columns,
        lambda: _in_batches(lazy, path, option, typed),
        lambda: _in_batches(lazy.select(by), path, option, typed, whole=False),
    )


def _plain_csv(path: str, option: str) -> Source | None:
    try:
        found = scan_plain_csv(path)
    except (OSError, UnicodeDecodeError, *POLARS_FAULTS):
        return None
    if found is None:
        return None
    lazy, rows = found
    typed = lambda batch: cleared(batch, narrow=False)  # noqa: E731
    columns = lazy.collect_schema().names()
    by = [name for name in JOIN_BY if name in columns]
    return Source(
        path,
        option,
        columns,
        lambda: _in_batches(lazy, path, option, typed, rows),
        lambda: _in_batches(lazy.select(by), path, option, typed, rows, whole=False),
        [name for name in columns if name not in (*CAPTION_NAMES, *JOIN_BY, *KNOWN, "line")],
    )


@dataclass
class _Column:
    """What is known of a column of cells: where each kind of them came first, in the order they came, and what texts could be."""

    first: dict[type, int] = field(default_factory=dict)
    wide: bool = False
    narrow: list[pl.DataType] | None = None

    def type_of(self, name: str, faults: Faults) -> pl.DataType:
        """The narrowest type that holds every cell; a mixture is a fault."""
        kinds = set(self.first)
        if name in CAPTION_NAMES or kinds == {list}:
            return pl.List(pl.String())
        if name in JOIN_BY or kinds <= {str}:
            return self.narrow[0] if self.narrow and name not in (*JOIN_BY, *KNOWN) else pl.String()
        if kinds <= {int, float}:
            return pl.Int64() if kinds == {int} and not self.wide else pl.Float64()
        if kinds == {bool}:
            return pl.Boolean()
        (one, _), (other, line) = list(self.first.items())[:2]
        faults.add(line, f"{name} is a {other.__name__}, before it was a {one.__name__}")
        return pl.String()


def _strict(path: str, option: str, folder: Path) -> Source:
    """A table that is checked row by row: its rows are kept in files, with the types that their columns have there."""
    faults = Faults(f"{option} {path}")
    known: dict[str, _Column] = {}
    pieces: list[Path] = []
    folder.mkdir(parents=True, exist_ok=True)
    rows = read_rows(path, faults)
    while part := list(islice(rows, ROWS)):
        lines = [line for line, _ in part]
        frame = {"line": pl.Series("line", lines, pl.Int64)}
        for name in dict.fromkeys(name for _, row in part for name in row if name):
            values = [cell(name, row.get(name), line, faults) for line, row in part]
            frame[name] = _series(name, values, lines, known.setdefault(name, _Column()))
        pieces.append(folder / f"{len(pieces):06d}.parquet")
        pl.DataFrame(frame).write_parquet(pieces[-1], compression="lz4", statistics=False)
    faults.check()
    types = {"line": pl.Int64(), **{name: column.type_of(name, faults) for name, column in known.items()}}
    faults.check()

    by = [name for name in JOIN_BY if name in types]

    def typed() -> Iterator[pl.DataFrame]:
        for piece in pieces:
            frame = pl.read_parquet(piece, glob=False)
            made = []
            for name, dtype in types.items():
                column = frame[name] if name in frame.columns else pl.Series(name, [None] * frame.height, dtype)
                texts = column.dtype == pl.String and dtype != pl.String
                made.append(as_type(column, dtype) if texts else column.cast(dtype))
            yield pl.DataFrame(made)

    return Source(
        path,
        option,
        list(types),
        lambda: (shaped(frame, path, option) for frame in typed()),
        lambda: (names_of(pl.read_parquet(piece, columns=by, glob=False), path, option) for piece in pieces),
    )


def _series(name: str, values: list[Any], lines: list[int], known: _Column) -> pl.Series:
    """Cells of a batch, with a type that holds them; `known` learns what kinds they are."""
    if name in CAPTION_NAMES:
        return pl.Series(name, values, pl.List(pl.String))
    if name in JOIN_BY:
        return pl.Series(name, [None if value is None else str(value) for value in values], pl.String)
    kinds = {type(value) for value in values if value is not None}
    new = kinds - set(known.first)
    for value, line in zip(values, lines, strict=True) if new else ():
        if value is not None and type(value) in new:
            known.first.setdefault(type(value), line)
    if kinds == {str}:
        texts = pl.Series(name, values, pl.String)
        types = narrower(texts)
        known.narrow = [one for one in (types if known.narrow is None else known.narrow) if one in types]
        return texts
    if kinds and kinds <= {int, float}:
        wide = any(isinstance(value, int) and abs(value) >= 2**63 for value in values)
        known.wide |= wide
        return pl.Series(name, values, pl.Int64 if kinds == {int} and not wide else pl.Float64, strict=False)
    if kinds in ({bool}, {list}):
        return pl.Series(name, values, pl.Boolean if kinds == {bool} else pl.List(pl.String))
    return pl.Series(name, [None] * len(values), pl.String)  # nothing, or a mixture, which is refused by its kinds
