"""What `javisc build` is given, as an input table: scan and captions in one place for all its subcommands."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import polars as pl

from javisc.compiler.inputs.captions import CaptionTable, attach
from javisc.compiler.inputs.found import SCAN_SCHEMA, ScanReport
from javisc.compiler.inputs.local import AUDIO_SUFFIXES, VIDEO_SUFFIXES, scan
from javisc.compiler.inputs.table import INPUT_SCHEMA, shown
from javisc.manifests.errors import UserError
from javisc.manifests.extras import need_driver
from javisc.manifests.spool import spool
from javisc.manifests.urls import is_url


def from_raw(
    raw: Sequence[str],
    *,
    out: str | None = None,
    captions: str | None = None,
    require_caption: bool = False,
    suffixes: frozenset[str] = VIDEO_SUFFIXES,
    say: Callable[[str], None] = lambda line: None,
) -> Callable[[Path], pl.LazyFrame]:
    """A function that scans `raw` and joins captions when `build` asks for its inputs. `say` hears what was found.

    raw, suffixes, out: see scan. captions: see attach. Raises UserError at once for what can be seen without a scan.
    """
    if not raw:
        raise UserError("RAW is missing: give at least one folder, list of paths or media file")
    for name in raw:
        if is_url(name):
            need_driver(name)
        elif not os.path.lexists(name):
            raise UserError(f"{shown(name)} is not there: give a folder, a list of paths or a media file")

    def inputs(folder: Path) -> pl.LazyFrame:
        given = None if captions is None else CaptionTable.read(captions, folder)  # its faults are told before the scan
        report = ScanReport(used=_named(captions))
        found = spool(scan(raw, suffixes, out=out, report=report, scratch=folder), folder / "scan", SCAN_SCHEMA)
        for line in report.lines():
            say(line)
        table, captioned = attach(found, captions, folder, require=require_caption, table=given)
        if captions is None:
            captioned.unused = report.stray_sidecars
        if captions is not None or captioned.captioned or captioned.unreadable:
            for line in captioned.lines():
                say(line)
        return _heard(table) if suffixes >= AUDIO_SUFFIXES else table

    return inputs


def _named(captions: str | None) -> frozenset[str]:
    """The paths or URLs that --captions may mean: FILE or KIND:FILE."""
    names = {captions, captions.partition(":")[2]} - {""} if captions else set()
    return frozenset(names | {os.path.abspath(name) for name in names if not is_url(name)})  # noqa: PTH100


def _heard(table: pl.LazyFrame) -> pl.LazyFrame:
    """A table for sounds alone: where a row names a file of its own for the sound, that is its source."""
    own = pl.col("audio_path").is_not_null()
    sound = {"path": "audio_path", "source_bytes": "audio_bytes", "mtime_ns": "audio_mtime_ns"}
    table = table.with_columns(
        *(pl.when(own).then(theirs).otherwise(name).alias(name) for name, theirs in sound.items()),
        raw_path=pl.when(~own).then("raw_path"),
    )
    return table.with_columns(pl.lit(None, INPUT_SCHEMA[name]).alias(name) for name in sound.values())
