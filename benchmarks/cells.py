"""Cells of a benchmark: a JSON line each, on disk as soon as it is measured, read again by whoever goes on. Standard
library alone."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Record = dict[str, Any]


class Log:
    """Cells by their names. `on` names what they hold for (device, versions, source, sizes: see `kernel_stages.identity`): cells
    of another one stay in the file and are not taken for measured.

    tell: called with a cell's name when its measurement begins, and with "" when it has ended. broken: asked after a failure
    whether this process can measure on; if not it ends with `BROKEN`.
    """

    BROKEN = 75

    def __init__(
        self,
        path: Path,
        on: str,
        tell: Callable[[str], None] = lambda name: None,
        broken: Callable[[], bool] = lambda: False,
    ) -> None:
        self.path, self.on, self.tell, self.broken = path, on, tell, broken
        self.cells: dict[str, Record] = {}
        for line in path.read_bytes().splitlines() if path.exists() else ():
            try:
                cell = json.loads(line)
            except ValueError:
                continue  # the end cut it short
            if isinstance(cell, dict) and cell.get("on") == on and isinstance(cell.get("cell"), str):
                self.cells[cell["cell"]] = cell

    def __contains__(self, name: str) -> bool:
        return name in self.cells and not self.cells[name].get("again")

    def measure(self, name: str, run: Callable[[], Record]) -> Record:
        """The cell's record, measured now unless it was; what `run` raises is the reason why it is not measured."""
        if name not in self:
            self.tell(name)
            started = time.monotonic()
            try:
                record = run()
            except Exception as error:  # noqa: BLE001  whatever a backend raises is this cell's result
                record = {"not measured": " ".join(f"{type(error).__name__}: {error}".split())[:300]}
            self.write({"cell": name, **record, "seconds": round(time.monotonic() - started, 3)})
            self.tell("")
            if "not measured" in record and self.broken():
                raise SystemExit(self.BROKEN)
        return self.cells[name]

    def write(self, cell: Record) -> None:
        """Append a cell, on a line of its own whatever an end left there, and wait until the disk has it."""
        cell = {"cell": cell["cell"], "on": self.on} | _plain(cell)
        self.cells[cell["cell"]] = cell
        line = json.dumps(cell, allow_nan=False).encode() + b"\n"
        with self.path.open("ab+") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                line = line if file.read(1) == b"\n" else b"\n" + line
            file.write(line)
            file.flush()
            os.fsync(file.fileno())


def _plain(value: Any) -> Any:
    """The value with what JSON has no number for as words: "inf", "nan"."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
