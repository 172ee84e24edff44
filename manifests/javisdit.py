"""JavisDiT's tables: manifests written as its train_audio.csv, train_prior.csv and train_jav.csv, and read back as
inputs of a build.

Columns, order and values follow JavisDiT v0.1's documented tables: twelve columns, then `audio_text` in the audio table
and `unpaired_audio_path` in the prior one. The audio table has no pictures: its video columns hold the dummy that its
loader expects.
"""

from __future__ import annotations

import hashlib
import io
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import soundfile

from javisc.manifests.absent import WORDS
from javisc.manifests.errors import UserError
from javisc.manifests.files import published
from javisc.manifests.io import absolute, complete, write_table
from javisc.manifests.members import MemberReader, check_key
from javisc.manifests.merge import repeats
from javisc.manifests.outputs import check_file, check_table
from javisc.manifests.rows import Faults, cells, read_rows
from javisc.manifests.schema import DATASET_COLUMN, JAVISDIT, MANIFEST_SCHEMA
from javisc.manifests.spool import in_slices, spool

COMMON = tuple(column.name for column in JAVISDIT[:12])
#: kind → its columns, in order
COLUMNS = {"audio": (*COMMON, "audio_text"), "prior": (*COMMON, "unpaired_audio_path"), "jav": COMMON}
PLACEHOLDER = "placeholder.mp4"
#: Versions of JavisDiT, and the frames a second that their trainers read.
VERSIONS = {"v0.1": 24, "v1.0": 16}
#: What `datautil --dummy-video` fills in.
DUMMY = {
    "path": PLACEHOLDER,
    "id": "placeholder",
    "height": 720,
    "width": 1280,
    "aspect_ratio": 720 / 1280,
    "fps": 24,
    "resolution": 720 * 1280,
    "text": "placeholder",
}
BATCH = 50_000


@dataclass(frozen=True)
class Exported:
    rows: int
    without_caption: int
    without_media: int  #: rows without sound, or without picture where the kind needs one
    without_unpaired: int
    files: int  #: media files in place, written now or before
    windows: int = 0  #: rows whose clip is a part of the file that they name


def windows(rows: pl.LazyFrame) -> int:
    """How many rows are of a part of their source."""
    part = pl.col("clip_start").is_not_null() | pl.col("clip_end").is_not_null()
    return int(rows.select(part.sum()).collect(engine="streaming").item())


def _wanted(frame: pl.LazyFrame, kind: str) -> tuple[pl.LazyFrame, pl.Expr, pl.Expr]:
    """The completed rows, whether a row has the media the kind needs, and its caption."""
    rows = complete(frame, MANIFEST_SCHEMA)
    sound = pl.col("audio_path").is_not_null() & (pl.col("channels").fill_null(1) > 0)
    if kind == "audio":
        text = pl.when(pl.col("text") != DUMMY["text"]).then(pl.col("text"))
        return rows, sound, pl.coalesce("audio_text", text)
    return (
        rows,
        sound & pl.col("path").is_not_null() & (pl.col("num_frames") > 0) & (pl.col("path") != PLACEHOLDER),
        pl.col("text"),
    )


def _check_rate(rows: pl.LazyFrame, kind: str, version: str) -> None:
    """Raise UserError if clips have another rate than the trainer of this version reads."""
    wanted = VERSIONS[version]
    odd = rows.filter(pl.col("fps").round() != wanted).head(1).select("key", "fps").collect() if kind == "jav" else None
    if version != "v0.1" and odd is not None and odd.height:
        raise UserError(
            f"--javisdit {version}: its trainer reads {wanted} frames a second, {odd['key'][0]} has {odd['fps'][0]:g}: build "
            "with --recipe jav16, or export for v0.1"
        )


def table(rows: pl.LazyFrame, kind: str, version: str = "v0.1") -> pl.LazyFrame:
    """The columns of JavisDiT's table of this kind, in its order and types: whole numbers are written as such, its readers
    need them."""
    columns = {name: pl.col(name) for name in COLUMNS[kind]}
    if kind == "audio":
        columns |= {name: pl.lit(value) for name, value in DUMMY.items()}
        columns["num_frames"] = pl.coalesce(pl.col("num_frames"), (pl.col("duration") * 24).floor())
        columns["audio_text"] = _wanted(rows, kind)[2]
    columns["fps"] = columns["fps"].round()
    for name in ("num_frames", "height", "width", "fps", "resolution", "audio_fps"):
        columns[name] = columns[name].cast(pl.Int64)
    if version != "v0.1":
        speech = pl.col("speech").cast(pl.Float64).fill_null(-1) if "speech" in rows.collect_schema() else pl.lit(-1)
        order = list(columns)
        order.insert(order.index("text"), "speech")
        columns["speech"] = speech
        columns = {name: columns[name] for name in order}
    return rows.select(value.alias(name) for name, value in columns.items())


def export_csv(
    frame: pl.LazyFrame,
    out: str,
    kind: str,
    *,
    media: str | None = None,
    audio_format: str = "flac",
    allow_no_caption: bool = False,
    version: str = "v0.1",
) -> Exported:
    """Write located rows (`Dataset.located`) as JavisDiT's CSV; with `media`, extract their files there and let the paths
    name them.

    version: of JavisDiT, see VERSIONS; v1.0 wants 16 frames a second and has `speech`: the column of that name, -1 without.

    Without `media`, path and audio_path name the raw source files. Rows without the media the kind needs, and (unless
    `allow_no_caption`) without a caption are left out and counted: its loader fails on both. Media lie in
    MEDIA/ROOT/SHARD/KEY.{mp4,flac|wav}, where ROOT is a digest of the dataset's root; files that are there already with
    the same content stay untouched. Raises UserError if something cannot be read or written.
    """
    check_file(out, "--csv", lambda first: first.startswith(",".join(COMMON[:4]).encode()))
    rows, usable, caption = _wanted(frame, kind)
    if media is not None:
        usable = (
            usable & pl.col("flac_size").is_not_null() & (pl.lit(kind == "audio") | pl.col("mp4_size").is_not_null())
        )
    _check_rate(rows.filter(usable), kind, version)
    usable, captioned = usable.fill_null(False), caption.is_not_null()
    kept = rows.filter(usable, pl.lit(allow_no_caption) | captioned)
    counts = rows.select(
        (usable & (captioned | allow_no_caption)).sum().alias("rows"),
        (usable & ~captioned).sum().alias("without_caption"),
        (~usable).sum().alias("without_media"),
        (usable & (captioned | allow_no_caption) & pl.col("unpaired_audio_path").is_null())
        .sum()
        .alias("without_unpaired"),
    )
    counted = counts.collect(engine="streaming").row(0, named=True)
    files = 0
    try:
        with published(Path(out)) as temporary:
            if media is None:
                table(kept, kind, version).sink_csv(temporary, engine="streaming", maintain_order=True)
            else:
                wanted = usable & (captioned | allow_no_caption)
                files = _with_media(rows, wanted, temporary, kind, Path(media).absolute(), audio_format, version)
    except OSError as error:
        raise UserError(f"{error.filename or out} cannot be written: {error.strerror or error}") from error
    return Exported(
        counted["rows"],
        counted["without_caption"],
        counted["without_media"],
        counted["without_unpaired"],
        files,
        0 if media is not None else windows(kept),
    )


def _with_media(
    rows: pl.LazyFrame, wanted: pl.Expr, csv: Path, kind: str, media: Path, audio_format: str, version: str
) -> int:
    files = 0
    with csv.open("wb") as stream:
        first = True
        for located, placed in extracted(rows, wanted, kind, media, audio_format):
            files += placed
            table(located.lazy(), kind, version).collect().write_csv(stream, include_header=first)
            first = False
        if first:
            table(rows.filter(wanted), kind, version).collect(engine="streaming").write_csv(stream)
    return files


def extracted(
    rows: pl.LazyFrame, wanted: pl.Expr, kind: str, media: Path | None, audio_format: str
) -> Iterator[tuple[pl.DataFrame, int]]:
    """The `wanted` rows of a scanned table in batches, and how many files were extracted.

    path and audio_path name these in `media`; None leaves them as they are.
    """
    with MemberReader() as reader:
        for batch in _batches(rows, wanted):
            files = 0
            if media is None:
                yield batch, files
                continue
            paths: list[str] = []
            audio_paths: list[str | None] = []
            for row in batch.iter_rows(named=True):
                root = hashlib.blake2b(absolute(row[DATASET_COLUMN]).encode(), digest_size=6).hexdigest()
                stem = media / root / f"{row['shard']:06d}" / check_key(row["key"])
                paths.append(f"{stem}.mp4")
                sound, picture = reader.read(row, "flac"), reader.read(row, "mp4") if kind != "audio" else None
                audio_paths.append(None if sound is None else f"{stem}.{audio_format}")
                if sound is not None:
                    _place(Path(f"{stem}.{audio_format}"), _wav(sound) if audio_format == "wav" else sound)
                if picture is not None:
                    _place(Path(paths[-1]), picture)
                files += (sound is not None) + (picture is not None)
            located = batch.with_columns(
                pl.Series("path", paths, pl.String), pl.Series("audio_path", audio_paths, pl.String)
            )
            yield located, files


def _batches(rows: pl.LazyFrame, wanted: pl.Expr) -> Iterator[pl.DataFrame]:
    """The wanted rows, slice by slice of the table: `collect_batches` reads one long file whole, ahead of who takes them."""
    for some in in_slices(rows, BATCH):
        if (batch := some.filter(wanted)).height:
            yield batch


def _place(path: Path, content: bytes) -> None:
    if path.is_file() and path.stat().st_size == len(content) and path.read_bytes() == content:
        return
    with published(path) as temporary:
        temporary.write_bytes(content)


def _wav(flac: bytes) -> bytes:
    samples, rate = soundfile.read(io.BytesIO(flac), dtype="int16")
    out = io.BytesIO()
    soundfile.write(out, samples, rate, format="WAV", subtype="PCM_16")
    return out.getvalue()


def import_csv(paths: Sequence[str], out: str, *, root: str | None = None) -> int:
    """Turn JavisDiT's CSVs (or parquet tables) into a list that `javisc build` takes as RAW: a parquet table with one row
    per source file.

    Columns: path, relpath, id, text, audio_text, and audio_path and unpaired_audio_path where a table has any: the sound of
    a row comes from its `audio_path`, where that is another file than its `path`. The file of a row with a dummy picture is
    its sound. Relative paths are relative to `root` (default: the working folder, as in its trainer). Two rows may have one
    `relpath`: the build tells them apart by their paths. Raises UserError if a table lacks `path`, names a file outside its
    root in `relpath`, or has the same picture with the same sound twice. Returns the number of rows.
    """
    if not paths:
        raise UserError("--csv: no table given")
    check_table(out, "--out", IMPORTED)
    with tempfile.TemporaryDirectory(prefix="javisc-import-") as folder:
        schema = pl.Schema(dict.fromkeys(IMPORTED, pl.String()))
        frame = spool((piece for path in paths for piece in _rows_of(path, schema)), Path(folder), schema)
        return _import_all(frame, out, root)


def _import_all(frame: pl.LazyFrame, out: str, root: str | None) -> int:
    base = str(Path(root or ".").absolute()).rstrip("/") + "/"

    def whole(name: str) -> pl.Expr:
        path = pl.col(name)
        return (
            pl.when(path.str.starts_with("/") | path.str.contains("://", literal=True))
            .then(path)
            .otherwise(pl.lit(base) + path)
            .alias(name)
        )

    dummy = (pl.col("path").is_null()) | (pl.col("path").str.split("/").list.last() == PLACEHOLDER)
    text = pl.when(pl.col("text") != DUMMY["text"]).then(pl.col("text"))
    frame = frame.with_columns(
        pl.when(dummy).then(pl.col("audio_path")).otherwise(pl.col("path")).alias("path"),
        pl.when(~dummy).then(pl.col("id")).alias("id"),  # a dummy picture's id names nothing
        dummy.alias("dummy"),
    )
    frame = frame.with_columns(
        whole("path"),
        whole("unpaired_audio_path"),
        pl.when(~pl.col("dummy") & (whole("audio_path") != whole("path")))
        .then(whole("audio_path"))
        .alias("audio_path"),
        pl.coalesce(text, pl.when("dummy").then("audio_text")).alias("text"),
        pl.coalesce("relpath", pl.col("path").str.split("/").list.last()).alias("relpath"),
    )
    parts = pl.col("relpath").str.split("/")
    bad = (
        frame.filter(pl.col("relpath").str.starts_with("/") | parts.list.contains("..") | pl.col("path").is_null())
        .head(1)
        .collect()
    )
    if bad.height:
        raise UserError(
            f"relpath {bad['relpath'][0]!r} (path {bad['path'][0]!r}) is not a path inside a folder: mend the table"
        )
    sources = frame.select("path", pl.col("audio_path").fill_null(""))
    for again in repeats(sources, ["path", "audio_path"]):
        if again.height:
            raise UserError(
                f"path {again['path'][0]} is there twice with the same sound: one of the rows would be lost"
            )
    optional = ("audio_path", "unpaired_audio_path")
    given = frame.select(pl.col(name).is_not_null().any() for name in optional).collect(engine="streaming").row(0)
    empty = [name for name, any_row in zip(optional, given, strict=True) if not any_row]
    write_table(frame.drop("dummy", *empty), out)
    return int(pl.scan_parquet(out, glob=False).select(pl.len()).collect().item())


IMPORTED = ("path", "relpath", "id", "text", "audio_text", "unpaired_audio_path", "audio_path")


def _rows_of(path: str, schema: pl.Schema) -> Iterator[pl.DataFrame]:
    """The rows of a table in batches. Raises UserError for what cannot be read, with the lines of bad rows."""
    faults = Faults(f"--csv {path}")
    batch: list[dict[str, str]] = []
    for line, row in read_rows(path, faults):
        if "path" not in row and "audio_path" not in row:
            raise UserError(f"--csv {path} has no column path or audio_path: its columns are {', '.join(row)}")
        found = cells(row, {name: name for name in IMPORTED}, line, faults)
        # pandas writes a missing path as nan, and no table of JavisDiT's names a file of that name.
        batch.append({name: value for name, value in found.items() if value not in WORDS})
        if len(batch) >= BATCH:
            yield pl.DataFrame(batch, schema=schema)
            batch = []
    faults.check()
    yield pl.DataFrame(batch, schema=schema)
