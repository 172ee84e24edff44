"""Opening datasets and writing tables: lazily, whole or not at all, the same bytes for the same rows.

Three things can be opened: a *dataset* (a folder with dataset.json, tables and shards), a *view* (a folder with
dataset.json and a manifest whose rows lie in the shards of other datasets) and a bare parquet table. Rows of a view name
the dataset that holds their shards in the column `dataset`: an absolute path, a URL, or a path relative to the view's
folder. Without that column, or where it is null, the shards lie beside the table itself. So whoever reads samples needs
`located()` and `shard_path()` and nothing else:

    for row in Dataset.open(path).located().collect().iter_rows(named=True):
        tar = shard_path(row["dataset"], row["shard"])
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from javisc.manifests import places
from javisc.manifests.damage import POLARS_FAULTS, sized, written
from javisc.manifests.environment import patiently
from javisc.manifests.errors import UserError
from javisc.manifests.files import published
from javisc.manifests.schema import (
    DATASET_COLUMN,
    FORMAT_VERSION,
    MANIFEST_SCHEMA,
    REJECTED_SCHEMA,
    SCORES_SCHEMA,
    SHARDS_SCHEMA,
)
from javisc.manifests.urls import filesystem, is_url, join, opened, plain

if TYPE_CHECKING:
    from javisc.manifests.fields import Field

HEADER = "dataset.json"
#: dataset.json holds settings, not rows: more than this is not one of ours.
MAX_HEADER_BYTES = 4 << 20
MAX_DATASETS = 10_000
#: Rows per parquet row group: a few tens of MB decoded, so that a streamed pass holds little.
ROW_GROUP = 100_000
#: Schemes polars reads by itself, in ranges; other fsspec URLs are read whole into memory.
POLARS_SCHEMES = ("s3", "s3a", "gs", "gcs", "az", "azure", "abfs", "abfss", "adl", "hf", "http", "https", "file")


def absolute(path: str) -> str:
    """The path without links to the working folder; a URL stays as it is."""
    return path.rstrip("/") if is_url(path) else os.path.abspath(path)  # noqa: PTH100 (keeps symlinks, unlike resolve)


def shard_path(root: str, shard: int) -> str:
    """The tar of a shard of the dataset at `root`. Raises UserError if that is a URL on a host that the user did not name."""
    return join(places.check(root), "shards", f"{shard:06d}.tar")


def index_path(root: str, shard: int) -> str:
    """The DALI index of a shard of the dataset at `root`. Raises UserError as `shard_path` does."""
    return join(places.check(root), "shards", f"{shard:06d}.idx")


def read_header(path: str) -> dict[str, Any]:
    """Read and check a dataset.json.

    Raises UserError if it is absent, longer than MAX_HEADER_BYTES, not a JSON object, or of a newer format.
    """
    try:
        with opened(path) as stream:
            raw = stream.read(MAX_HEADER_BYTES + 1)
    except FileNotFoundError:
        if _begun(root := path.removesuffix(HEADER)):
            raise UserError(
                f"{path} is not there: a build was begun there and not finished; `javisc status {root}` says what is missing"
            ) from None
        raise UserError(
            f"{path} is not there: a dataset is a folder with {HEADER}; give the folder that `javisc build --out` wrote"
        ) from None
    except NotADirectoryError:
        raise UserError(
            f"{path.removesuffix(HEADER).rstrip('/')} is a file: give the folder of a dataset, which has {HEADER}"
        ) from None
    except (
        OSError,
        ValueError,
        ImportError,
    ) as error:  # fsspec: ValueError for an unknown scheme, ImportError for a missing driver
        raise UserError(f"{path} cannot be read: {error}") from error
    if len(raw) > MAX_HEADER_BYTES:
        raise UserError(f"{path} has more than {MAX_HEADER_BYTES} bytes: it is not a javisc dataset's header")
    try:
        header = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({error}): build the dataset again") from error
    if not isinstance(header, dict):
        raise UserError(f"{path} holds a {type(header).__name__}, a dataset's header is a JSON object")
    version = header.get("format_version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise UserError(f"{path}: format_version is {version!r}, a whole number from 1 to {FORMAT_VERSION} is expected")
    if version > FORMAT_VERSION:
        raise UserError(
            f"{path}: format_version is {version}, this javisc reads up to {FORMAT_VERSION}: install a newer javisc"
        )
    roots = header.get("datasets", [])
    if not isinstance(roots, list) or len(roots) > MAX_DATASETS or not all(isinstance(root, str) for root in roots):
        raise UserError(f"{path}: `datasets` must be a list of at most {MAX_DATASETS} paths")
    return header


def _begun(root: str) -> bool:
    """True if there is a build's plan in a folder or at a URL."""
    try:
        opened(join(root, ".build", "settings.json")).close()
    except (OSError, ValueError, ImportError):
        return False
    return True


def scan_table(path: str, schema: Mapping[str, pl.DataType] | None = None) -> pl.LazyFrame:
    """Scan a parquet table lazily. Columns that `schema` knows must have its types; others pass through.

    Raises UserError if the table is absent, unreadable, or a known column has another type.
    """
    source: Any = path
    if is_url(path) and path.split("://", 1)[0] not in POLARS_SCHEMES:
        try:
            with opened(path) as stream:
                source = stream.read()
        except (OSError, ValueError, ImportError) as error:
            raise UserError(f"{path} cannot be read: {error}") from error
    try:
        if source is not path or not is_url(path):  # what polars fetches for itself is left to it
            sized(path, None if source is path else source)
        frame = pl.scan_parquet(source, glob=False)
        found = frame.collect_schema()
    except FileNotFoundError:
        raise UserError(f"{path} is not there") from None
    except (OSError, *POLARS_FAULTS) as error:
        raise UserError(f"{path} cannot be read as parquet: {error}") from error
    for name, dtype in (schema or {}).items():
        if name in found and found[name] != dtype and found[name] != pl.Null:
            raise UserError(f"{path}: column {name} is {found[name]}, {dtype} is expected: it is no manifest of javisc")
    return frame


def complete(frame: pl.LazyFrame, schema: Mapping[str, pl.DataType]) -> pl.LazyFrame:
    """`frame` with every column of `schema`, missing ones as nulls, known columns first and in the schema's order."""
    found = frame.collect_schema()
    known = [
        pl.col(name).cast(dtype) if name in found else pl.lit(None, dtype).alias(name) for name, dtype in schema.items()
    ]
    return frame.select(*known, *(name for name in found if name not in schema))


@dataclass(frozen=True)
class Dataset:
    """A dataset, a view or a bare table: where it lies and what its header says. Tables are scanned when asked for."""

    path: str  #: the folder, or the parquet file
    header: Mapping[str, Any]  #: dataset.json; empty for a bare table

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Dataset:
        """Open a folder (or URL) with dataset.json, or a .parquet table. Raises UserError if it is neither."""
        text = os.fspath(path)
        places.name(text)
        if text.endswith(".parquet"):
            if not is_url(text) and not Path(text).is_file():
                raise UserError(f"{text} is not there: give a dataset's folder or a .parquet table")
            return cls(text, {})
        text = text.rstrip("/") or "/"
        if not is_url(text) and not Path(text).is_dir():
            raise UserError(f"{text} is not a folder: give a dataset's folder or a .parquet table")
        return cls(text, read_header(join(text, HEADER)))

    @property
    def bare(self) -> bool:
        """True for a parquet table without a folder of its own."""
        return not self.header

    @property
    def folder(self) -> str:
        """What roots in the column `dataset` are relative to, and where shards lie when there is no such column."""
        return absolute(self.path).rpartition("/")[0] or "/" if self.bare else absolute(self.path)

    @property
    def table(self) -> str:
        """The manifest's path."""
        return self.path if self.bare else join(self.path, "manifest.parquet")

    def manifest(self) -> pl.LazyFrame:
        """The manifest as it is written: known columns have the schema's types, unknown ones pass."""
        return scan_table(self.table, MANIFEST_SCHEMA | SCORES_SCHEMA | {DATASET_COLUMN: pl.String()})

    def located(self) -> pl.LazyFrame:
        """The manifest with every column of the schema, and the root of each row's shards in the column `dataset`.

        A dataset's own manifest cannot send its reader elsewhere: only views and bare tables name other roots.
        """
        frame = complete(self.manifest(), MANIFEST_SCHEMA)
        here = pl.lit(self.folder, pl.String)
        if DATASET_COLUMN not in frame.collect_schema() or not (self.bare or "datasets" in self.header):
            return frame.with_columns(here.alias(DATASET_COLUMN))
        root = pl.col(DATASET_COLUMN)
        whole = root.str.starts_with("/") | root.str.contains("://", literal=True)
        beside = pl.lit(self.folder.rstrip("/") + "/") + root
        return frame.with_columns(
            pl.when(root.is_null()).then(here).when(whole).then(root).otherwise(beside).alias(DATASET_COLUMN)
        )

    def read(self, key: str) -> dict[str, bytes]:
        """The members of a sample, by extension. Raises KeyError if there is none of that key, UserError if it cannot be read."""
        from javisc.manifests.kinds import held
        from javisc.manifests.members import MemberReader

        rows = self.located().filter(pl.col("key") == key).collect(engine="streaming")
        if not rows.height:
            raise KeyError(key)
        row = rows.row(0, named=True)
        with MemberReader() as reader:
            return {end: content for end in held(row) if (content := reader.read(row, end)) is not None}

    def fields(self) -> list[Field]:
        """The dataset's fields, later ones last; none of a bare table or a view. Raises UserError where one is damaged."""
        from javisc.manifests.fields import fields_of

        return [] if self.bare or "datasets" in self.header else fields_of(absolute(self.path))

    def field(self, name: str) -> Field:
        """A field of the dataset. Raises UserError if there is none of that name."""
        from javisc.manifests.fields import open_field

        if self.bare or "datasets" in self.header:
            raise UserError(f"{self.path} is a view or a table: fields belong to datasets, open the one it was made of")
        return open_field(absolute(self.path), name)

    def rejected(self) -> pl.LazyFrame:
        """The refused inputs; no rows for a bare table or a view."""
        return self._side("rejected.parquet", REJECTED_SCHEMA)

    def shards(self) -> pl.LazyFrame:
        """The shards; no rows for a bare table or a view."""
        return self._side("shards.parquet", SHARDS_SCHEMA)

    def _side(self, name: str, schema: pl.Schema) -> pl.LazyFrame:
        if self.bare or "datasets" in self.header:
            return pl.LazyFrame(schema=schema)
        return scan_table(join(self.path, name), schema)


def write_table(frame: pl.LazyFrame | pl.DataFrame, path: str | os.PathLike[str]) -> None:
    """Write a parquet table in one streamed pass, in the frame's order: published whole, or absent.

    The bytes depend on the rows and the polars version alone: row groups have a fixed number of rows.
    Raises UserError if it cannot be written.
    """
    options: dict[str, Any] = {
        "compression": "zstd",
        "row_group_size": ROW_GROUP,
        "maintain_order": True,
        "engine": "streaming",
    }
    target = plain(os.fspath(path))
    try:
        if is_url(target):
            with tempfile.TemporaryDirectory(prefix="javisc-table-") as folder:
                local = Path(folder, "table.parquet")
                with written(local):
                    frame.lazy().sink_parquet(local, **options)
                _upload(local, target)
            return
        with published(Path(target)) as temporary, written(temporary):
            frame.lazy().sink_parquet(temporary, **options)
    except OSError as error:
        raise UserError(f"{target} cannot be written: {error}") from error


def _upload(local: Path, target: str) -> None:
    """Put a file at a URL; an object store shows it when it is complete. Raises UserError, OSError."""
    try:
        fs, inside = filesystem(target)
    except (ValueError, ImportError) as error:
        raise UserError(f"{target} cannot be written: {error}") from error
    patiently(lambda: fs.put_file(str(local), inside), target, remote=True)


def write_header(path: str | os.PathLike[str], header: Mapping[str, Any]) -> None:
    """Write a dataset.json: sorted keys, indented, published whole. Raises UserError if it cannot be written."""
    text = json.dumps({"format_version": FORMAT_VERSION, **header}, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    target = plain(os.fspath(path))
    try:
        if is_url(target):
            fs, inside = filesystem(target)
            patiently(lambda: fs.pipe_file(inside, text.encode()), target, remote=True)
            return
        with published(Path(target)) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{target} cannot be written: {error}") from error


def write_view(frame: pl.LazyFrame, out: str, *, made_by: Mapping[str, Any], relative: bool = False) -> int:
    """Write located rows (`Dataset.located`) as a view: one table if `out` ends in .parquet, else a folder with a header.

    `relative` stores the roots of local datasets relative to the view's folder: a view and its datasets can then move
    together. `made_by` goes into the header: the command and its settings. Returns the number of rows.
    Raises UserError if it cannot be written.
    """
    out = plain(out)
    single = out.endswith(".parquet")
    folder = absolute(out).rpartition("/")[0] if single else absolute(out)
    if relative and not is_url(folder):
        roots = frame.select(pl.col(DATASET_COLUMN).unique()).collect(engine="streaming").to_series().to_list()
        short = {root: root if is_url(root) else os.path.relpath(root, folder) for root in roots}
        frame = frame.with_columns(pl.col(DATASET_COLUMN).replace(short))
    table = out if single else join(out, "manifest.parquet")
    if not single and not is_url(
        out
    ):  # a header stands for a whole view: it goes first when a view is replaced, and comes last
        with suppress(FileNotFoundError):
            Path(out, HEADER).unlink()
    write_table(frame, table)
    written = scan_table(table)
    rows = int(written.select(pl.len()).collect().item())
    if not single:
        roots = written.select(pl.col(DATASET_COLUMN).unique().sort()).collect(engine="streaming").to_series().to_list()
        write_header(
            join(out, HEADER),
            {"kind": "view", "datasets": roots, "counts": {"samples": rows}, "made_by": dict(made_by)},
        )
    return rows


def scan_many(paths: Iterable[str | os.PathLike[str]]) -> tuple[list[Dataset], pl.LazyFrame]:
    """Open several datasets and chain their located rows, in the order given; columns are the union of theirs.

    Raises UserError if none is given, one cannot be opened, or a column has different types.
    """
    datasets = [Dataset.open(path) for path in paths]
    if not datasets:
        raise UserError("no dataset given: name at least one folder or .parquet table")
    frames = [dataset.located() for dataset in datasets]
    _check_types([dataset.path for dataset in datasets], [frame.collect_schema() for frame in frames])
    return datasets, frames[0] if len(frames) == 1 else pl.concat(frames, how="diagonal")


def _check_types(paths: Sequence[str], schemas: Sequence[pl.Schema]) -> None:
    first: dict[str, tuple[str, pl.DataType]] = {}
    for path, schema in zip(paths, schemas, strict=True):
        for name, dtype in schema.items():
            seen = first.setdefault(name, (path, dtype))
            if seen[1] != dtype:
                raise UserError(f"column {name} is {seen[1]} in {seen[0]} and {dtype} in {path}: give it one type")
