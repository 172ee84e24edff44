"""Captions from the files beside inputs, read as the rows pass; those of an object store are kept by their tag."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from javisc.compiler.inputs.found import SIDECAR, SIDECAR_TAG
from javisc.compiler.inputs.sidecars import NoCaption, caption_in, read_sidecar
from javisc.compiler.inputs.table import KEPT, LEFT
from javisc.manifests.damage import POLARS_FAULTS, sized
from javisc.manifests.errors import UserError
from javisc.manifests.objects import contents
from javisc.manifests.partitions import Partitions, by
from javisc.manifests.rows import MAX_FIELD
from javisc.manifests.spool import spool
from javisc.manifests.urls import is_url

#: Rows that are held at a time.
_CHUNK = 50_000
#: Caption files whose bytes are held at a time.
_READ = 2000
#: Caption files that can only be read through fsspec are asked for so many at a time.
AT_ONCE = 16
#: Names that a line shows.
_SHOWN = 3
#: What was read of the caption files of an object store: texts, or why there is none. tag: of the object (its ETag).
CACHE = "captions.parquet"
CACHE_SCHEMA = pl.Schema({SIDECAR: pl.Binary(), "tag": pl.String(), "texts": pl.List(pl.String()), "why": pl.String()})
#: Inputs without words that have a caption file.
_ASKS = pl.col("text").is_null() & pl.col(SIDECAR).is_not_null()


@dataclass
class CaptionReport:
    """What matched and what did not, on either side. `unreadable`: caption files that hold no caption; `why`: some of them."""

    source: str
    joined_by: str = ""
    captioned: int = 0
    without: int = 0
    unused: int = 0
    unreadable: int = 0
    why: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        by = f" joined by {self.joined_by}" if self.joined_by else ""
        said = [f"captions from {self.source}{by}: {self.captioned} inputs have one, {self.without} have none"]
        if self.unused:
            said.append(f"{self.unused} captions belong to no input")
        if self.unreadable:
            more = ", …" if self.unreadable > len(self.why) else ""
            said.append(
                f"{self.unreadable} caption files hold no caption that can be read ({'; '.join(self.why)}{more})"
            )
        return said

    def refuse(self, path: str, reason: NoCaption) -> None:
        """Count a caption file that holds no caption."""
        self.unreadable += 1
        if len(self.why) < _SHOWN:
            shown = os.fsencode(os.path.basename(path)).decode("utf-8", "backslashreplace")  # noqa: PTH119
            self.why.append(f"{shown} {reason}")


def beside_them(inputs: pl.LazyFrame, scratch: Path, report: CaptionReport) -> pl.LazyFrame:
    """Read the file beside each input (SCAN_SCHEMA) that came without words, and give it these.

    Files of an object store that an earlier build read and whose tag is the same are not asked for again: what was read
    lies in scratch/KEPT, and is left in scratch/LEFT for the next build.
    """
    schema = inputs.collect_schema()
    counts = inputs.filter(_ASKS).select(pl.len(), pl.col(SIDECAR_TAG).is_not_null().any())
    some, tagged = counts.collect(engine="streaming").row(0)
    if not some:
        return inputs
    batches = inputs.collect_batches(chunk_size=_CHUNK, maintain_order=True)
    if not tagged:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            read = (_read_beside(batch, {}, pool, report)[0] for batch in batches)
            return spool(read, scratch / "captioned", schema)
    height = int(inputs.select(pl.len()).collect(engine="streaming").item())
    count = -(-height // _CHUNK)
    asked = Partitions(scratch / "uncaptioned", count, pl.Schema(schema))
    for batch in batches:
        asked.add(batch, pl.when(_ASKS).then(by(SIDECAR)).otherwise(by("path")))
    known = Partitions(scratch / "known", count, CACHE_SCHEMA)
    for batch in _kept(scratch / KEPT / CACHE).collect_batches(chunk_size=_CHUNK):
        known.add(batch, by(SIDECAR))
    told: list[Path] = []
    (pieces := scratch / "told").mkdir(parents=True, exist_ok=True)

    def captioned() -> Iterator[pl.DataFrame]:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for batch, before in zip(asked, known, strict=True):
                kept = {row[0]: row[1:] for row in before.iter_rows()}
                frame, cache = _read_beside(batch, kept, pool, report)
                told.append(pieces / f"{len(told):06d}.parquet")
                cache.write_parquet(told[-1])
                yield frame

    found = spool(captioned(), scratch / "captioned", schema)
    (left := scratch / LEFT).mkdir(parents=True, exist_ok=True)
    pl.scan_parquet(told, glob=False).sink_parquet(left / CACHE, compression="zstd")
    return found


def _kept(path: Path) -> pl.LazyFrame:
    """What an earlier build read; nothing where that is lost, damaged or of another form."""
    try:
        sized(str(path))
        table = pl.scan_parquet(path, glob=False)
        fits = table.collect_schema() == CACHE_SCHEMA
    except (OSError, UserError, *POLARS_FAULTS):
        return pl.LazyFrame(schema=CACHE_SCHEMA)
    return table if fits else pl.LazyFrame(schema=CACHE_SCHEMA)


def _read_beside(
    batch: pl.DataFrame,
    known: Mapping[bytes, tuple[str | None, list[str] | None, str | None]],
    pool: ThreadPoolExecutor,
    report: CaptionReport,
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The rows with the words beside them, and CACHE_SCHEMA of what has a tag. known: sidecar → tag, texts, why."""
    asks = batch.select(_ASKS).to_series()
    wanted: dict[bytes, str | None] = dict(batch.filter(asks).select(SIDECAR, SIDECAR_TAG).iter_rows())
    found: dict[bytes, list[str] | NoCaption] = {}
    for sidecar, tag in wanted.items():
        if tag is not None and (before := known.get(sidecar)) is not None and before[0] == tag:
            found[sidecar] = before[1] if before[1] is not None else NoCaption(before[2] or "")
    missing = [sidecar for sidecar in wanted if sidecar not in found]
    for start in range(0, len(missing), _READ):
        some = missing[start : start + _READ]
        names = [os.fsdecode(sidecar) for sidecar in some]
        held = contents(names, MAX_FIELD)
        run = pool.map if is_url(names[0]) else map
        found |= dict(zip(some, run(_read, names, map(held.get, names)), strict=True))
    cache = []
    for sidecar, tag in wanted.items():
        texts = found[sidecar]
        if isinstance(texts, NoCaption):
            report.refuse(os.fsdecode(sidecar), texts)
        if tag is not None:
            cache.append((sidecar, tag, *((None, str(texts)) if isinstance(texts, NoCaption) else (texts, None))))
    words = [None if isinstance(said := found.get(sidecar), NoCaption) else said for sidecar in batch[SIDECAR]]
    beside = pl.Series("beside", words, dtype=pl.List(pl.String))
    captioned = batch.with_columns(
        text=pl.when(asks).then(beside.list.first()).otherwise("text"),
        texts=pl.when(asks).then(beside).otherwise("texts"),
    )
    return captioned, pl.DataFrame(cache, schema=CACHE_SCHEMA, orient="row")


def _read(path: str, held: bytes | None) -> list[str] | NoCaption:
    try:
        return read_sidecar(path) if held is None else caption_in(path, held)
    except NoCaption as reason:
        return reason
