"""A table of annotations: what its rows are joined by, and typed columns; read as strictly as a table of captions."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from javisc.compiler.inputs.joining import joinable
from javisc.compiler.inputs.lists import folder_of, resolved
from javisc.compiler.store.fields import OF
from javisc.manifests.absent import WORDS
from javisc.manifests.damage import POLARS_FAULTS, sized
from javisc.manifests.errors import UserError
from javisc.manifests.kinds import MEMBERS, PARTS
from javisc.manifests.rows import CAPTION_NAMES, Faults, captions_in, captions_of_row, plain, read_plain_csv, read_rows
from javisc.manifests.schema import JAVISDIT, MANIFEST_SCHEMA, SCORES_SCHEMA, SOURCE, WHERE
from javisc.manifests.urls import is_url

#: What a table may be joined by: the most exact first.
JOIN_BY = ("key", "path", "relpath", "id")
#: Columns that say what a sample is; no table changes them.
_FIXED = {column.name for column in (*JAVISDIT, *WHERE, *SOURCE)} - {"text", "audio_text", "unpaired_audio_path"}
_FIXED |= {f"{kind.extension}_{part}" for kind in MEMBERS for part in PARTS} | {"dataset", "of_sha256"}
#: Types of columns that a manifest has, which a table's column of that name must be able to hold.
KNOWN = {**MANIFEST_SCHEMA, **SCORES_SCHEMA}
_NUMERIC = (pl.Int8, pl.Int16, pl.Int32, pl.Int64, pl.UInt8, pl.UInt16, pl.UInt32, pl.Float32, pl.Float64, pl.Boolean)
_NAME = r"^[A-Za-z][A-Za-z0-9_]{0,63}$"


def read(path: str, option: str) -> pl.DataFrame:
    """The table's rows: the columns of JOIN_BY that it has, its own columns with their types, and `line`.

    Captions become `text` and `texts`. Parquet has types; elsewhere a column of texts is whole numbers,
    numbers or true and false where every cell is. Raises UserError for what cannot be used.
    """
    if path.lower().endswith(".parquet") and not is_url(path):
        frame = _parquet(path, option)
    else:
        plainly = read_plain_csv(path) if path.lower().endswith((".csv", ".tsv")) and not is_url(path) else None
        frame = _rows(path, option) if plainly is None else cleared(plainly)
    if not frame.height:
        raise UserError(f"{option} {path} has no rows: nothing can be joined")
    return shaped(frame, path, option)


def shaped(frame: pl.DataFrame, path: str, option: str) -> pl.DataFrame:
    """Rows of a table as `read` gives them; whatever is said of a row is said of it alone. Raises UserError."""
    frame = _captions(names_of(frame, path, option), f"{option} {path}")
    by = [name for name in JOIN_BY if name in frame.columns]
    columns = [name for name in frame.columns if name not in (*JOIN_BY, "line")]
    if not columns:
        raise UserError(
            f"{option} {path} has nothing but what it is joined by: give it a column, as text, label or score"
        )
    for name in columns:
        if name in _FIXED:
            raise UserError(
                f"{option} {path}: column {name} says what a sample is and is not annotated: rename or drop it"
            )
        if not pl.Series([name]).str.contains(_NAME).all():
            raise UserError(
                f"{option} {path}: column {name!r}: a name is letters, digits and _, a letter first: rename it"
            )
    return frame.select(*by, "line", *(_typed(frame, name, path, option) for name in columns))


def names_of(frame: pl.DataFrame, path: str, option: str) -> pl.DataFrame:
    """Rows with what names their samples in one form. Raises UserError if nothing does."""
    by = candidates(frame.columns, None, path, option)
    frame = frame.with_columns(pl.col(name).cast(pl.String) for name in by)
    if "path" not in by:
        return frame
    folder = folder_of(path)
    whole = lambda text: text if is_url(text := resolved(text, folder)) else os.path.normpath(text)  # noqa: E731
    plainly = pl.col("path").str.starts_with("/") & ~pl.col("path").str.contains(r"/\.{0,2}(/|$)")
    odd = pl.when(~plainly).then(pl.col("path")).map_elements(whole, return_dtype=pl.String)
    return frame.with_columns(path=pl.when(plainly).then(pl.col("path")).otherwise(odd))


def _parquet(path: str, option: str) -> pl.DataFrame:
    try:
        sized(path)
        frame = pl.read_parquet(path, glob=False)
    except FileNotFoundError:
        raise UserError(f"{option} {path} is not there") from None
    except (OSError, *POLARS_FAULTS) as error:
        raise UserError(f"{option} {path} cannot be read: {error}") from error
    return native(frame, path, option).with_row_index("line", 1)


def native(frame: pl.DataFrame, path: str, option: str) -> pl.DataFrame:
    """Rows of a parquet table with types that annotations have, each row by itself. Raises UserError."""
    for name, dtype in frame.schema.items():
        if dtype in (pl.Categorical, pl.Enum):
            frame = frame.with_columns(pl.col(name).cast(pl.String))
        elif isinstance(dtype, pl.Array | pl.List) and dtype.inner in (pl.String, pl.Categorical, pl.Enum):
            frame = frame.with_columns(pl.col(name).cast(pl.List(pl.String)))
        elif name in CAPTION_NAMES or dtype in (pl.String, *_NUMERIC, pl.Null):
            continue
        elif dtype == pl.UInt64 or isinstance(dtype, pl.Decimal):  # what JSON and filters know as numbers
            made, bad = held(frame[name], pl.Int64() if dtype == pl.UInt64 else pl.Float64())
            if bad.any():
                raise UserError(
                    f"{option} {path}: column {name} has {frame[name].filter(bad)[0]}: numbers end at 2**63"
                )
            frame = frame.with_columns(made)
        elif name not in JOIN_BY:
            raise UserError(
                f"{option} {path}: column {name} is {dtype}: text, numbers, true and false, and lists of text are allowed; "
                "leave it out"
            )
    words = [pl.when(pl.col(name).str.strip_chars().is_in([*WORDS, ""])).then(None).otherwise(pl.col(name)).alias(name)
             for name, dtype in frame.schema.items() if dtype == pl.String and name not in JOIN_BY]  # fmt: skip
    return frame.with_columns(words)


def cleared(frame: pl.DataFrame, narrow: bool = True) -> pl.DataFrame:
    """A table of texts as `_rows` would make it: cells without blanks around them, nulls where they say nothing."""
    made = []
    for name in frame.columns:
        if name in (*JOIN_BY, "line"):
            made.append(frame[name])
            continue
        text = frame[name].str.strip_chars()
        made.append(frame.select(pl.when(~text.is_in([*WORDS, ""])).then(text).alias(name)).to_series())
        if narrow and name not in CAPTION_NAMES and name not in KNOWN:
            made[-1] = _narrow(made[-1])
    return pl.DataFrame(made)


def _rows(path: str, option: str) -> pl.DataFrame:
    """A table of text, row by row, with the lines of what cannot be read."""
    faults = Faults(f"{option} {path}")
    lines: list[int] = []
    cells: dict[str, list[Any]] = {}
    for line, row in read_rows(path, faults):
        for name in row:
            if name and name not in cells:
                cells[name] = [None] * len(lines)
        lines.append(line)
        for name, values in cells.items():
            values.append(cell(name, row.get(name), line, faults))
    faults.check()
    made = {name: _series(name, values, lines, faults) for name, values in cells.items()}
    faults.check()
    return pl.DataFrame({"line": lines, **made})


def cell(name: str, value: Any, line: int, faults: Faults) -> Any:
    if name in CAPTION_NAMES:
        return captions_of_row({name: value}, line, faults)
    if isinstance(value, dict) or (isinstance(value, list) and not all(isinstance(item, str) for item in value)):
        faults.add(line, f"{name} is a {type(value).__name__}, one value is expected")
        return None
    if isinstance(value, float) and value != value:
        return None
    if not isinstance(value, str):
        return value
    if name in JOIN_BY:
        return plain(value)
    text = plain(value).strip()
    return None if text in WORDS or not text else text


def _series(name: str, values: list[Any], lines: list[int], faults: Faults) -> pl.Series:
    """The column with the narrowest type that holds every cell; a mixture in JSON is a fault."""
    if name in CAPTION_NAMES:
        return pl.Series(name, values, pl.List(pl.String))
    kinds = {type(value) for value in values if value is not None}
    if name in JOIN_BY or kinds <= {str} or not kinds:
        texts = pl.Series(name, [None if value is None else str(value) for value in values], pl.String)
        return texts if name in JOIN_BY or name in KNOWN else _narrow(texts)
    if kinds <= {int, float}:
        whole = kinds == {int} and all(value is None or abs(value) < 2**63 for value in values)
        return pl.Series(name, values, pl.Int64 if whole else pl.Float64, strict=False)
    if len(kinds) == 1:
        return pl.Series(name, values, pl.Boolean if kinds == {bool} else pl.List(pl.String))
    first = next(value for value in values if value is not None)
    at = next(row for row, value in enumerate(values) if value is not None and type(value) is not type(first))
    faults.add(lines[at], f"{name} is a {type(values[at]).__name__}, before it was a {type(first).__name__}")
    return pl.Series(name, [None] * len(values), pl.String)


def narrower(texts: pl.Series) -> list[pl.DataType]:
    """The types beside text that every cell of a column of texts has, the narrowest first."""
    given = texts.drop_nulls()
    found: list[pl.DataType] = []
    if given.str.contains(r"^[+-]?(0|[1-9]\d{0,17})$").all():
        found.append(pl.Int64())
    if given.str.contains(r"^[+-]?((0|[1-9]\d*)(\.\d*)?|\.\d+)([eE][+-]?\d+)?$").all():
        found.append(pl.Float64())
    if given.str.to_lowercase().is_in(["true", "false"]).all():
        found.append(pl.Boolean())
    return found


def as_type(texts: pl.Series, dtype: pl.DataType) -> pl.Series:
    """A column of texts as a type that each of them has."""
    return texts.str.to_lowercase() == "true" if dtype == pl.Boolean() else texts.cast(dtype)


def _narrow(texts: pl.Series) -> pl.Series:
    types = narrower(texts) if texts.count() else []
    return as_type(texts, types[0]) if types else texts


def _captions(frame: pl.DataFrame, table: str) -> pl.DataFrame:
    """One caption and several, under any of their names, as `texts`; the names go."""
    there = [name for name in CAPTION_NAMES if name in frame.columns]
    if not there:
        return frame
    lists = []
    for name in there:
        dtype = frame.schema[name]
        if dtype == pl.List(pl.String):
            lists.append(pl.col(name))
        elif dtype == pl.String:
            listed = frame[name].str.starts_with("[").any()
            lists.append(
                pl.col(name).map_elements(lambda cell: captions_in(cell), return_dtype=pl.List(pl.String)) if listed
                else pl.when(pl.col(name).is_not_null()).then(pl.concat_list(pl.col(name).str.strip_chars()))
            )  # fmt: skip
        elif dtype != pl.Null:
            raise UserError(f"{table}: column {name} is {dtype}: a caption is text, or a list of texts")
    if not lists:
        return frame.drop(there)
    if len(there) == 1 and frame.schema[there[0]] == pl.String and not frame[there[0]].str.starts_with("[").any():
        text = pl.col(there[0]).str.strip_chars()
        said = text.is_not_null() & ~text.is_in([*WORDS, ""])
        return frame.with_columns(pl.when(said).then(pl.concat_list(text)).alias("__texts")).drop(there).rename(
            {"__texts": "texts"}
        )  # fmt: skip
    both = pl.concat_list([one.fill_null([]) for one in lists]) if len(lists) > 1 else lists[0]
    texts = both.list.eval(pl.element().filter(~pl.element().str.strip_chars().is_in([*WORDS, ""]))).list.unique(
        maintain_order=True
    )
    return frame.with_columns(texts.alias("__texts")).drop(there).with_columns(
        pl.when(pl.col("__texts").list.len() > 0).then(pl.col("__texts")).alias("texts")
    ).drop("__texts")  # fmt: skip


def _typed(frame: pl.DataFrame, name: str, path: str, option: str) -> pl.Series:
    """A column as the manifest's type of that name; a word where a number belongs is a named fault."""
    column = frame[name]
    if column.dtype == pl.Null:
        column = column.cast(pl.String)
    dtype = KNOWN.get(name)
    if dtype is not None and column.dtype != dtype:
        made, bad = held(column, dtype)
        if bad.any():
            row = int(bad.arg_true()[0])
            raise UserError(
                f"{option} {path}: line {frame['line'][row]}: {name} {column[row]!r} is no {dtype}: mend the table"
            )
        column = made
    if column.dtype in (pl.Float32, pl.Float64):
        if (endless := column.is_infinite().fill_null(False)).any():
            row = int(endless.arg_true()[0])
            raise UserError(f"{option} {path}: line {frame['line'][row]}: {name} is not finite: mend the table")
        column = column.fill_nan(None)
    return column


def held(column: pl.Series, dtype: pl.DataType) -> tuple[pl.Series, pl.Series]:
    """A column as another type, and where that does not hold its value: 0.5 is no whole number. Decimals may be rounded.

    NaN is null: pandas has no other word for an absent number.
    """
    cells = column.fill_nan(None) if column.dtype.is_float() else column
    made = cells.cast(dtype, strict=False)
    bad = made.is_null() & cells.is_not_null()
    if cells.dtype.is_numeric() and (cells.dtype.is_integer() or not dtype.is_float()):
        bad |= (made.cast(cells.dtype, strict=False) != cells).fill_null(False)
    return made, bad


def joined(
    table: pl.DataFrame, manifest: pl.LazyFrame, by: str | None, path: str, option: str
) -> tuple[pl.DataFrame, str, int]:
    """(rows that the table names, as key, shard, OF and the table's columns; what they were joined by; rows unused).

    by: None takes what matches most. Several captions of a sample become its `texts`; several values of another column
    are refused.
    Raises UserError where the table matches nothing, names several samples by one name, or contradicts itself.
    """
    names = candidates(table.columns, by, path, option)
    best, count = names[0], -1
    for name in names if len(names) > 1 else ():
        given = table.lazy().select(joinable(name).alias("on"))
        semi = manifest.select(joinable(name).alias("on")).join(given, on="on", how="semi")
        if (matches := semi.select(pl.len()).collect(engine="streaming").item()) > count:
            best, count = name, matches
    rows = named(table, best)
    columns = [name for name in rows.columns if name not in ("on", "line")]
    if rows["on"].n_unique() < rows.height:
        rows = gathered(rows, best, path, option)
    keyed = manifest.select("key", "shard", pl.col("source_sha256").alias(OF), joinable(best).alias("on"))
    # Samples pass by; the table is what is held of the two.
    made = keyed.join(rows.lazy().drop("line"), on="on", how="inner", maintain_order="left").collect(engine="streaming")
    if not made.height:
        raise nothing(table.drop_nulls(best)[best].head(1).to_list(), table.height, manifest, best, path, option)
    used = made.height if best == "key" else made["on"].n_unique()
    if best in ("id", "relpath") and used < made.height:
        name = made.filter(pl.col("on").is_duplicated())["on"][0]
        raise several(name, best, made.filter(pl.col("on") == name)["key"].head(2).to_list(), manifest, path, option)
    return told(made, columns), best, rows.height - used


def candidates(columns: Sequence[str], by: str | None, path: str, option: str) -> list[str]:
    """What a table of these columns may be joined by. Raises UserError."""
    if by and by not in columns:
        raise UserError(
            f"--by {by}: {option} {path} has no such column; it has {', '.join(set(JOIN_BY) & set(columns))}"
        )
    names = [by] if by else [name for name in JOIN_BY if name in columns]
    if not names:
        raise UserError(
            f"{option} {path} has no column to join by: it needs one of {', '.join(JOIN_BY)}, and has "
            f"{', '.join(repr(name) for name in columns[:8] if name != 'line')}"
        )
    return names


def named(table: pl.DataFrame, by: str) -> pl.DataFrame:
    """The rows that name a sample, by the column `on`; the table's own columns and `line`."""
    columns = [name for name in table.columns if name not in (*JOIN_BY, "line")]
    return table.select(joinable(by).alias("on"), *columns, "line").drop_nulls("on")


def told(made: pl.DataFrame, columns: Sequence[str]) -> pl.DataFrame:
    """The samples of which something is said, in the order of shard and key."""
    kept = made.filter(~pl.all_horizontal(pl.col(columns).is_null())).select("key", "shard", OF, *columns)
    before = kept.select("key", "shard").shift(1)
    ordered = (kept["shard"] > before["shard"]) | ((kept["shard"] == before["shard"]) & (kept["key"] > before["key"]))
    return kept if ordered.slice(1).all() else kept.sort("shard", "key")


def nothing(example: Sequence[str], height: int, manifest: pl.LazyFrame, by: str, path: str, option: str) -> UserError:
    """What to say of a table that names no sample. example: its first name, if it has one."""
    sample = manifest.select(by).head(1).collect()[by].to_list()
    return UserError(
        f"{option} {path}: none of its {height} rows belongs to a sample: by {by} it names {example[0][:200]!r}, "
        f"a sample is {str(sample[0])[:200]!r}; mend the column, or give another of {', '.join(JOIN_BY)}"
        if example and sample
        else f"{option} {path}: its column {by} is empty: nothing can be joined"
    )


def several(name: str, by: str, keys: Sequence[str], manifest: pl.LazyFrame, path: str, option: str) -> UserError:
    """What to say of a name that several samples have."""
    shown = " and ".join(manifest.filter(pl.col("key").is_in(list(keys))).select("path").collect()["path"])
    return UserError(
        f"{option} {path}: the {by} {name!r} stands for several samples ({shown}): give the column key, which tells "
        "them apart"
    )


def gathered(rows: pl.DataFrame, by: str, path: str, option: str) -> pl.DataFrame:
    """One row for each name: captions are gathered in the table's order, other columns must agree. rows: of `named`."""
    columns = [name for name in rows.columns if name not in ("on", "line")]
    plain_columns = [name for name in columns if name != "texts"]
    twice = rows.filter(pl.col("on").is_duplicated())
    for name in plain_columns:
        torn = twice.group_by("on", maintain_order=True).agg(
            pl.col(name).drop_nulls().unique(maintain_order=True), pl.col("line")
        )
        torn = torn.filter(pl.col(name).list.len() > 1)
        if torn.height:
            first, second = torn[name][0].to_list()[:2]
            raise UserError(
                f"{option} {path}: {by} {torn['on'][0]!r} has two values of {name}, {first!r} and {second!r} (lines "
                f"{', '.join(map(str, torn['line'][0].to_list()[:4]))}): leave one"
            )
    texts = [pl.col("texts").explode().drop_nulls().unique(maintain_order=True)] if "texts" in columns else []
    made = rows.group_by("on", maintain_order=True).agg(
        *texts, *(pl.col(name).drop_nulls().first() for name in plain_columns), pl.col("line").first()
    )
    said = pl.when(pl.col("texts").list.len() > 0).then(pl.col("texts")).alias("texts")
    return made.with_columns(said) if texts else made


def name_of(path: str) -> str:
    """The name of the field that a table becomes, by the table's own."""
    stem = "".join(letter if letter.isascii() and letter.isalnum() else "_" for letter in Path(path).stem.lower())[:64]
    return stem if stem[:1].isalpha() else f"t_{stem}"[:64]
