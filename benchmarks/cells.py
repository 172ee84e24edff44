"""Cells of a kernel benchmark: written one by one as they are measured, and told as Markdown."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Record = dict[str, Any]


class Log:
    """Cells by their names, a JSON line each, written as they are measured; those that stand there already are not run again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.cells: dict[str, Record] = {}
        text = path.read_text() if path.exists() else ""
        if text and not text.endswith("\n"):
            path.write_text(text + "\n")  # the end cut a line short
        for line in text.splitlines():
            try:
                cell = json.loads(line)
            except ValueError:
                continue
            self.cells[cell["cell"]] = cell

    def measure(self, name: str, run: Callable[[], Record]) -> Record:
        """The cell's record, measured now unless it was; what `run` raises is the reason why it is not measured."""
        if name not in self.cells:
            started = time.monotonic()
            try:
                record = run()
            except Exception as error:  # noqa: BLE001  whatever a backend raises is this cell's result
                record = {"not measured": " ".join(f"{type(error).__name__}: {error}".split())[:300]}
            self.write({"cell": name, **record, "seconds": round(time.monotonic() - started, 3)})
        return self.cells[name]

    def write(self, cell: Record) -> None:
        self.cells[cell["cell"]] = cell
        with self.path.open("a") as file:
            file.write(json.dumps(cell) + "\n")


def report(log: Log) -> str:
    """The cells as Markdown: verdicts of the gate, times with shares of the floor, and the sweep's winners as Python."""
    cells = log.cells
    copy, product = (cells.get(f"ceilings/{n}", {}).get(u) for n, u in (("copy", "TB/s"), ("product", "TFLOP/s")))
    out = [
        "# Kernels beside their peers",
        "",
        f"{cells.get('ceilings/device', {}).get('device', 'device unknown')}.",
        "",
    ]
    if copy and product:
        out += [f"Ceilings measured in this run: copy {copy:.2f} TB/s, product {product:.0f} TFLOP/s.", ""]
    gates = [c for n, c in cells.items() if n.startswith("gate/")]
    failed = [c for c in gates if not c.get("passed")]
    out += [f"Gate: {len(gates) - len(failed)} of {len(gates)} calls pass.", ""]
    out += [f"- **{c['cell']}**: {c.get('not measured') or c.get('errors')}" for c in failed]
    out += [
        "",
        "| call | by | forward ms | backward ms | both ms (p20–p80) | of the floor |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for name, c in cells.items():
        stage, _, rest = name.partition("/")
        if stage in ("ceilings", "gate", "sweep", "stage"):
            continue
        call, _, by = rest.rpartition("/")
        if "not measured" in c:
            out.append(f"| {call} | {by} | | | not measured: {c['not measured'][:90]} | |")
            continue
        floor = ""
        if "bytes" in c and copy and product:
            least = max(sum(c["bytes"]) / copy, sum(c["flops"]) / product) / 1e9
            floor = f"{least / c['both'][0]:.0%}"
        f, b = (f"{c[p][0]:.3f}" if p in c else "" for p in ("forward", "backward"))
        out.append(
            f"| {call} | {by} | {f} | {b} | {c['both'][0]:.3f} ({c['both'][1]:.3f}–{c['both'][2]:.3f}) | {floor} |"
        )
    kernels = {tuple(k.values()): k for c in cells.values() for k in c.get("kernels", ())}
    if kernels:
        out += [
            "",
            "| kernel | registers | spilled | shared | programs a multiprocessor |",
            "|---|---:|---:|---:|---:|",
        ]
        out += ["| " + " | ".join(map(str, k)) + " |" for k in sorted(kernels)]
    best: dict[tuple[str, str], tuple[float, list[int]]] = {}
    for name, c in cells.items():
        if name.startswith("sweep/") and "phase" in c:
            _, call, kind, _ = name.split("/")
            found = (statistics.median(c["phase"]), c["config"])
            best[call, kind] = min(best.get((call, kind), found), found)
    if best:
        out += ["", "The sweep's winners:", "", "```python"]
        out += [
            f'("{kind}", 96, 90): Config({", ".join(map(str, config))}),  # {call}: {ms:.3f} ms'
            for (call, kind), (ms, config) in best.items()
        ]
        out += ["```"]
    stopped = [c for n, c in cells.items() if n.startswith("stage/") and c.get("ended") != "done"]
    out += ["", *(f"- {c['cell']}: {c['ended']}" for c in stopped)]
    return "\n".join(out) + "\n"
