"""The cells of `kernels.py` as Markdown: verdicts, times beside peers with shares of the floor, what to change, what was left
out. Standard library alone."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

from cells import Record

Cells = Mapping[str, Record]
#: Stages whose cells are times of calls, each "STAGE/CALL/BY".
TIMED = (
    "attention",
    "norms",
    "prior_attention",
    "bidirectional_attention",
    "temporal_attention",
    "selector_attention",
    "block",
)
#: A backend is the faster one by this share of the time at least.
CLEARLY = 0.03


def report(cells: Cells, left_out: Mapping[str, str]) -> str:
    """left_out: stage → why it was not done."""
    device = cells.get("ceilings/device", {})
    out = ["# Kernels beside their peers, and javisc on this machine", ""]
    out += [
        ", ".join(f"{k} {v}" if k != "device" else str(v) for k, v in _facts(device).items()) or "Device unknown.",
        "",
    ]
    copy, product = (cells.get(f"ceilings/{n}", {}).get(u) for n, u in (("copy", "TB/s"), ("product", "TFLOP/s")))
    if copy and product:
        out += [f"Ceilings measured in this run: copy {copy:.3g} TB/s, product {product:.3g} TFLOP/s.", ""]
    out += [*_gate(cells), "", *_times(cells, copy, product), *_auto(cells), *_whole(cells), *_winners(cells)]
    if left_out:
        out += ["## Left out", "", *(f"- {stage}: {why}" for stage, why in left_out.items()), ""]
    return "\n".join(out)


def _facts(device: Record) -> Record:
    return {
        k: v for k, v in device.items() if k not in ("cell", "on", "seconds", "tiny", "interpreted") and v is not None
    }


def _gate(cells: Cells) -> Iterator[str]:
    gates = [c for n, c in cells.items() if n.startswith("gate/")]
    failed = [c for c in gates if not c.get("passed")]
    yield f"Gate: {len(gates) - len(failed)} of {len(gates)} calls pass."
    for c in failed:
        bits = "" if c.get("bits", True) else ", other bits the second time"
        yield f"- **{c['cell']}**: {c.get('not measured') or json.dumps(c.get('errors'))}{bits}"
    compiled = cells.get("compile/variants", {})
    for problem in compiled.get("failed", []):
        yield f"- does not compile: {problem}"


def _times(cells: Cells, copy: float | None, product: float | None) -> Iterator[str]:
    columns = ("call", "by", "forward ms", "backward ms", "both ms (p20–p80)", "of the floor")
    yield f"| {' | '.join(columns)} | kernels: registers, spill B, blocks a multiprocessor |"
    yield "|---|---|---:|---:|---:|---:|---|"
    for name, c in cells.items():
        stage, _, rest = name.partition("/")
        if stage not in TIMED:
            continue
        call, _, by = rest.rpartition("/")
        if "not measured" in c:
            yield f"| {call} | {by} | | | not measured: {_cell(c['not measured'][:90])} | | |"
            continue
        floor = ""
        if "bytes" in c and copy and product:
            least = sum(max(b / copy, f / product) for b, f in zip(c["bytes"], c["flops"])) / 1e9
            floor = f"{least / c['both'][0]:.0%}"
        f, b = (f"{c[p][0]:.3f}" if p in c else "" for p in ("forward", "backward"))
        kernels = "; ".join(
            f"{k['kernel']} {k['registers']}, {k['spill B']}, {k['blocks']}" for k in c.get("kernels", ())
        )
        if "host share" in c:
            kernels = f"the host launches for {c['host share']:.0%} of the time"
        low, high = c["both"][1:]
        yield f"| {call} | {by} | {f} | {b} | {c['both'][0]:.3f} ({low:.3f}–{high:.3f}) | {floor} | {kernels} |"
    yield ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def moves(cells: Cells) -> list[str]:
    """Calls for which `auto` takes the slower of ours and PyTorch's, by more than noise; what could not run decides nothing."""
    found = []
    for name, c in cells.items():
        stage, _, rest = name.partition("/")
        call, _, by = rest.rpartition("/")
        peer = cells.get(f"{stage}/{call}/torch", {})
        if stage not in TIMED or by != "javisc" or "auto" not in c or "both" not in c or "both" not in peer:
            continue
        times = {"triton": c["both"][0], "torch": peer["both"][0]}
        faster = min(times, key=times.__getitem__)
        if c["auto"] in times and times[faster] < (1 - CLEARLY) * times[c["auto"]]:
            told = ", ".join(f"{backend} {ms:.3f} ms" for backend, ms in times.items())
            found.append(f"{call}: `auto` takes {c['auto']}; {told}: take {faster}")
    return found


def _auto(cells: Cells) -> Iterator[str]:
    if cells.get("ceilings/device", {}).get("tiny", True) or not any("auto" in c for c in cells.values()):
        return  # the interpreter's times move nothing
    yield "## What `auto` should take"
    yield ""
    found = moves(cells)
    yield from (f"- {line}" for line in found)
    if not found:
        yield f"`auto` takes the faster backend for every call measured, or one within {CLEARLY:.0%} of it."
    yield ""


def _whole(cells: Cells) -> Iterator[str]:
    rows = {
        n: c
        for n, c in cells.items()
        if n.partition("/")[0] in ("dataset", "load", "step", "encode", "score", "program")
    }
    if not rows:
        return
    yield "## javisc on this machine"
    yield ""
    for name, c in rows.items():
        if "not measured" in c:
            yield f"- {name}: not measured: {c['not measured']}"
        elif "printed" in c:
            yield f"- {name}: {c['took']:.1f} s"
            yield from ("", "```", *c["printed"].splitlines(), "```", "")
        else:
            kept = {k: v for k, v in c.items() if k not in ("cell", "on", "checksums")}
            yield f"- {name}: " + ", ".join(
                f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in kept.items()
            )
    yield ""


def _winners(cells: Cells) -> Iterator[str]:
    tables = {n: c for n, c in cells.items() if n.startswith("winners/")}
    if not tables:
        return
    yield "## The sweep's winners: tables of configurations, for the gate to judge"
    yield ""
    for name, c in tables.items():
        _, folder, _ = name.split("/")
        yield from (f"`kernels/{folder}/configs.py`:", "", "```python", c["python"], "```", "")
