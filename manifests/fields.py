"""Fields: shards beside a dataset's own, aligned with them by shard and key, which never rewrite them.

    DS/fields/NAME/000000.tar + .idx     one kind of member: KEY.mp4 (a rendition), KEY.json (annotations), KEY.npy …
    DS/fields/NAME/manifest.parquet      key, shard, where the member lies, and the field's own columns
    DS/fields/NAME/field.json            what made it, and the digest of the base's shard that each of its shards belongs to

A field may hold fewer keys than its base, and says so. Its columns stand in the dataset's manifest, too: those of annotations by
their own names, where a member lies and what it is of as NAME_mp4_offset, NAME_height and so on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from javisc.manifests import places
from javisc.manifests.environment import patiently
from javisc.manifests.errors import UserError
from javisc.manifests.io import HEADER, Dataset, read_header, scan_table
from javisc.manifests.kinds import PARTS, kind_of
from javisc.manifests.laying import Stretch
from javisc.manifests.members import MemberReader, check_key
from javisc.manifests.schema import DATASET_COLUMN, FIELD_LATENTS
from javisc.manifests.urls import filesystem, is_url, join

FOLDER = "fields"
FIELD_HEADER = "field.json"
#: A field's name is the beginning of column names and the name of a folder.
NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
#: What a field says of its member, beside its place: the clip has columns of these names, and so may another field.
OF_MEMBER = ("height", "width", *(column.name for column in FIELD_LATENTS if column.name not in ("height", "width")))


def check_name(name: str, option: str = "--as") -> str:
    """The name, if a field may have it. Raises UserError."""
    if not NAME.fullmatch(name):
        raise UserError(f"{option} {name!r}: a field's name is a-z, 0-9 and _, 64 of them at most, a letter first")
    return name


def field_root(root: str, name: str) -> str:
    """Where a dataset's field lies. Raises UserError for a name that is none."""
    return join(root, FOLDER, check_name(name, "field"))


def field_shard(root: str, name: str, shard: int) -> str:
    """The tar of a field's shard. Raises UserError, also if `root` is a URL on a host that the user did not name."""
    return join(field_root(places.check(root), name), f"{shard:06d}.tar")


@dataclass(frozen=True)
class Field:
    """A field of the dataset at `root`: its name and its field.json."""

    root: str
    name: str
    header: Mapping[str, Any]

    @property
    def path(self) -> str:
        """The field's folder."""
        return field_root(self.root, self.name)

    @property
    def member(self) -> str:
        """The extension of its members."""
        return str(self.header["member"])

    @property
    def order(self) -> int:
        """Fields are laid over the manifest in this order: what came later is on top."""
        return int(self.header["order"])

    @property
    def columns(self) -> list[str]:
        """Its own columns, as its table has them."""
        return [str(name) for name in self.header["columns"]]

    @property
    def parents(self) -> dict[int, str]:
        """Of each of its shards, the SHA-256 of the base's shard that it belongs to."""
        return {int(shard): str(digest) for shard, digest in self.header["parents"].items()}

    @property
    def missing(self) -> int:
        """Samples of the base that it has nothing of."""
        return int(self.header["of"]) - int(self.header["counts"]["samples"])

    def table(self) -> pl.LazyFrame:
        """Its rows: key, shard, place of the member, and its columns. Raises UserError."""
        return scan_table(join(self.path, "manifest.parquet"))

    def shard_path(self, shard: int) -> str:
        """The tar of one of its shards."""
        return join(self.path, f"{shard:06d}.tar")

    def read(self, key: str) -> bytes:
        """The member of a sample. Raises KeyError if the field has none of that key, UserError if it cannot be read."""
        rows = self.table().filter(pl.col("key") == check_key(key)).collect()
        if not rows.height:
            raise KeyError(key)
        with MemberReader() as reader:
            content = reader.read({**rows.row(0, named=True), DATASET_COLUMN: self.root}, self.member, field=self.name)
        assert content is not None
        return content

    def overlay(self, schema: Mapping[str, pl.DataType]) -> dict[str, str]:
        """Its table's columns that a manifest shows, by the name that they have there. schema: its table's."""
        shown = {name: name for name in self.columns}
        if self.member == "json":
            return shown
        shown = {name: f"{self.name}_{name}" for name in self.columns if name in OF_MEMBER} | {
            name: name for name in self.columns if name not in OF_MEMBER
        }
        places_of = (f"{self.member}_{part}" for part in PARTS)
        return {**{name: f"{self.name}_{name}" for name in places_of if name in schema}, **shown}


def open_field(root: str, name: str) -> Field:
    """A dataset's field by name. Raises UserError if there is none or its header is damaged."""
    path = join(field_root(root, name), FIELD_HEADER)
    try:
        header = read_header(path)
    except UserError as error:
        if "is not there" not in str(error):
            raise
        there = ", ".join(names(root)) or "none"
        raise UserError(f"{root} has no field {name!r}; it has {there}") from None
    wanted = {"member": str, "order": int, "columns": dict, "parents": dict, "of": int, "counts": dict}
    for entry, kind in wanted.items():
        if not isinstance(header.get(entry), kind):
            raise UserError(
                f"{path}: `{entry}` is {header.get(entry)!r}: the header is damaged; remove the field's folder"
            )
    if kind_of(header["member"]) is None:
        raise UserError(f"{path}: member {header['member']!r} is of no kind that this javisc knows")
    if not isinstance(header["counts"].get("samples"), int):
        raise UserError(f"{path}: counts.samples is not a number: the header is damaged")
    return Field(root, name, header)


def names(root: str) -> list[str]:
    """The folders of a dataset's fields, by name; among them those that are begun and not finished."""
    folder = join(root, FOLDER)
    if not is_url(folder):
        path = Path(folder)
        return sorted(entry.name for entry in path.iterdir() if NAME.fullmatch(entry.name)) if path.is_dir() else []
    fs, inside = filesystem(folder)
    try:
        found = patiently(lambda: fs.ls(inside, detail=False), folder, remote=True)
    except FileNotFoundError:
        return []
    last = (str(path).rstrip("/").rsplit("/", 1)[-1] for path in found)
    return sorted({name for name in last if NAME.fullmatch(name)})


def begun(root: str) -> list[str]:
    """Fields that were begun and are not finished: they have no field.json."""
    return [name for name in names(root) if not _there(join(field_root(root, name), FIELD_HEADER))]


def fields_of(root: str) -> list[Field]:
    """The finished fields of a dataset, in the order in which they are laid over its manifest. Raises UserError."""
    found = [open_field(root, name) for name in names(root) if _there(join(field_root(root, name), FIELD_HEADER))]
    return sorted(found, key=lambda field: (field.order, field.name))


def _there(path: str) -> bool:
    if not is_url(path):
        return Path(path).is_file()
    fs, inside = filesystem(path)
    return bool(patiently(lambda: fs.exists(inside), path, remote=True))


def folded(header: Mapping[str, Any]) -> dict[str, list[str]]:
    """What fields a manifest shows by its dataset's header: their columns there, by the field's name."""
    told = header.get("fields")
    if not isinstance(told, dict):
        return {}
    return {
        str(name): [str(column) for column in columns] for name, columns in told.items() if isinstance(columns, list)
    }


def own_manifest(dataset: Dataset) -> pl.LazyFrame:
    """The manifest without what its fields lay over it: what KEY.json of the base says. Raises UserError."""
    return unfolded(dataset.manifest(), dataset.header, join(dataset.path, FOLDER, "own.parquet"))


def unfolded(
    manifest: pl.LazyFrame, header: Mapping[str, Any], own: str, stretch: Stretch | None = None
) -> pl.LazyFrame:
    """A manifest without its fields' columns, and with what stood under them. own: the table of that. Raises UserError.

    stretch: the rows of both tables that are wanted.
    """
    shown = {column for columns in folded(header).values() for column in columns}
    manifest = manifest if stretch is None else stretch.of(manifest)
    if not shown:
        return manifest
    order = manifest.collect_schema().names()
    kept = pl.LazyFrame(schema={"key": pl.String()})
    if own and _there(own):
        kept = scan_table(own) if stretch is None else stretch.of(scan_table(own))
    under = [name for name in kept.collect_schema().names() if name in shown]
    bare = manifest.drop([name for name in order if name in shown and name not in under])
    if not under:
        return bare
    joined = bare.join(
        kept.select("key", *under).with_columns(pl.lit(True).alias("__own")),
        on="key",
        how="left",
        suffix="__own",
        maintain_order="left",
    )
    # A row that came after the table was written has nothing laid over it yet.
    values = [
        pl.when(pl.col("__own").is_not_null()).then(pl.col(f"{name}__own")).otherwise(pl.col(name)).alias(name)
        for name in under
    ]
    return joined.with_columns(values).select(bare.collect_schema().names())


def laid(
    manifest: pl.LazyFrame, fields: list[Field], stretch: Stretch | None = None
) -> tuple[pl.LazyFrame, dict[str, list[str]]]:
    """A manifest with the columns of its fields, later ones on top, and which columns each of them shows.

    stretch: the rows that `manifest` has, of a whole one. A field's nulls change nothing. Captions: `text` is the newest, `texts`
    has all, the newest first. Raises UserError for a field whose column has another type than the one that is there.
    """
    shown: dict[str, list[str]] = {}
    for field in fields:
        table = field.table() if stretch is None else field.table().filter(stretch.within)
        schema, have = table.collect_schema(), manifest.collect_schema()
        over = field.overlay(schema)
        shown[field.name] = list(over.values())
        for name, target in over.items():
            if target in have and have[target] != schema[name]:
                raise UserError(
                    f"field {field.name}: column {target} is {schema[name]}, the manifest's is {have[target]}: undo it with "
                    f"`javisc annotate DS --undo {field.name}`, and give the column another name or type"
                )
        new = table.select("key", *(pl.col(name).alias(f"__{target}") for name, target in over.items()))
        manifest = manifest.join(new, on="key", how="left", maintain_order="left").with_columns(
            _over(target, have) for target in over.values()
        )
        manifest = manifest.drop([f"__{target}" for target in over.values()])
    return manifest, shown


def _over(target: str, have: Mapping[str, pl.DataType]) -> pl.Expr:
    new = pl.col(f"__{target}")
    if target not in have:
        return new.alias(target)
    if target == "texts":
        both = pl.concat_list(new, pl.col("texts").fill_null([])).list.unique(maintain_order=True)
        return pl.when(new.is_not_null()).then(both).otherwise(pl.col("texts")).alias(target)
    return pl.coalesce(new, target).alias(target)


def header_of(root: str) -> dict[str, Any]:
    """A dataset's own header. Raises UserError."""
    return read_header(join(root, HEADER))


def canonical_many(frame: pl.DataFrame, columns: Sequence[str]) -> list[bytes]:
    """`canonical` of each row's `columns`, made by columns: many times faster.

    Columns of other types than texts, numbers, truths and lists of texts go through it, and what JSON cannot say.
    """
    pieces = []
    for name in sorted(columns):
        column = frame[name]
        if column.dtype.is_float() and column.is_finite().all():
            text = pl.concat_str(pl.lit(f"{json.dumps(name)}:"), pl.lit(_numbers(column)))
        elif column.dtype.is_integer() or column.dtype in (pl.String, pl.Boolean, pl.List(pl.String)):
            encoded = pl.struct(name).struct.json_encode()
            text = pl.when(pl.col(name).is_not_null()).then(encoded.str.strip_prefix("{").str.strip_suffix("}"))
        else:
            return [canonical(row) for row in frame.select(columns).iter_rows(named=True)]
        pieces.append(text)
    if not pieces:
        return [canonical({})] * frame.height
    body = pl.concat_str(pieces, separator=",", ignore_nulls=True)
    texts: list[bytes] = (
        frame.select(text=pl.concat_str(pl.lit("{"), body, pl.lit("}\n")).cast(pl.Binary)).to_series().to_list()
    )
    return texts


def _numbers(column: pl.Series) -> pl.Series:
    """Reals as JSON says them: the shortest digits that come to the same number. Python and polars write these alike, but for an
    exponent: what would have one is left to Python.
    """
    wide = column.cast(pl.Float64)
    size = wide.abs()
    digits = wide.cast(pl.String)
    rows = (~(size.is_between(1e-4, 1e16, closed="left") | (size == 0))).arg_true()
    return digits.scatter(rows, [repr(number) for number in wide.gather(rows).to_list()]) if len(rows) else digits


def canonical(row: Mapping[str, Any]) -> bytes:
    """KEY.json of an annotation: what its row says, sorted, without nulls, the same wherever it is written."""
    told = {name: value for name, value in row.items() if value is not None}
    text = json.dumps(told, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.encode() + b"\n"
