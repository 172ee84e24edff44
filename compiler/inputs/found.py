"""What a scan finds: rows with the caption file beside them, and what it met besides."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from javisc.compiler.inputs.table import INPUT_SCHEMA, shown, undecodable

#: Columns of the scan beside INPUT_SCHEMA: the caption file that lies beside the input, as the system writes its name, and for an
#: object what tells whether it changed.
SIDECAR, SIDECAR_TAG = "sidecar", "sidecar_tag"
SCAN_SCHEMA = pl.Schema({**INPUT_SCHEMA, SIDECAR: pl.Binary(), SIDECAR_TAG: pl.String()})
#: Suffixes that are counted apart, and that are named.
MAX_KINDS, KINDS_SAID = 1000, 12
OTHER = "other"

Row = dict[str, Any]


def suffix_of(name: str) -> str:
    """The extension of a name, in lower case, with its dot."""
    return os.path.splitext(name)[1].lower()  # noqa: PTH122


def named(path: str, relpath: str) -> Row:
    """A row of what has that path."""
    relpath = shown(relpath)
    name = relpath.rsplit("/", 1)[-1]
    stem, dot, _ = name.rpartition(".")
    return {
        "path": shown(path),
        "raw_path": undecodable(path),
        "relpath": relpath,
        "id": stem if dot and stem else name,
    }


def refused(path: str, relpath: str, reason: str, message: str) -> Row:
    """A row of what cannot be an input."""
    return {**named(path, relpath), "refused": reason, "refused_message": message}


@dataclass
class ScanReport:
    """What the scan met besides inputs; said after it. used: files that are read otherwise, such as a table of captions."""

    used: frozenset[str] = frozenset()
    files: int = 0
    others: Counter[str] = field(default_factory=Counter)
    loops: int = 0
    twice: int = 0
    versions: int = 0
    stray_sidecars: int = 0
    refused: Counter[str] = field(default_factory=Counter)

    def lines(self) -> list[str]:
        said = [f"found {self.files} files"]
        if self.others:
            said.append(f"{self.others.total()} files of other kinds were passed over: {self._kinds()}")
        if self.versions:
            said.append(f"{self.versions} older versions and delete markers of an inventory were left out")
        if self.loops:
            said.append(f"{self.loops} links that lead back into their own folder were not followed")
        if self.twice:
            said.append(f"{self.twice} inputs were named more than once and count once")
        return said

    def pass_over(self, path: str) -> None:
        """Count a file of a kind that is not scanned."""
        if path in self.used:
            return
        suffix = suffix_of(path)
        if (
            not suffix.isprintable()
            or len(suffix) > 12
            or (suffix not in self.others and len(self.others) >= MAX_KINDS)
        ):
            suffix = OTHER
        self.others[suffix or "without a suffix"] += 1

    def _kinds(self) -> str:
        """The kinds that were passed over with their counts, the most frequent first."""
        order = sorted(self.others.items(), key=lambda item: (item[0] == OTHER, -item[1], item[0]))
        named = ", ".join(f"{kind} {count}" for kind, count in order[:KINDS_SAID])
        rest = sum(count for _, count in order[KINDS_SAID:])
        return named + (f", {rest} of {len(order) - KINDS_SAID} more kinds" if rest else "")
