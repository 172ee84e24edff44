"""Compile every kernel and configuration ahead of time, without a GPU, and tell what each uses: registers, spills, shared memory.

Run as `python -P -m javisc.kernels.aot`. Needs Triton outside its interpreter. Each op's `kernels/<op>/aot.py` has
`cases()`, which yields `Case`s: one per kernel × configuration table entry × dtype that matters.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

#: Shared memory one block may use, bytes (CUDA programming guide, compute capabilities 8.0 and 9.0).
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024}


@dataclass(frozen=True)
class Case:
    """One compilation.

    kernel: "module:function". types: run-time argument → Triton type ("*bf16", "i32", "fp32"). constants: constexpr
    arguments. divisible: integer arguments known to be multiples of 16 (pointers always are). excuse: why a spill of at most
    `spill_limit` bytes per thread is accepted; without one any spill fails.
    """

    op: str
    kernel: str
    label: str
    arch: int
    types: Mapping[str, str]
    constants: Mapping[str, Any]
    warps: int
    stages: int
    divisible: Sequence[str] = ()
    excuse: str = ""
    spill_limit: int = 0

    @property
    def name(self) -> str:
        return f"{self.op}/{self.kernel.rpartition(':')[2]}/{self.label}/sm_{self.arch}"


@dataclass(frozen=True)
class Resources:
    """What a compiled case uses per thread (registers, spill bytes) and per block (shared bytes). error: why it has none."""

    name: str
    op: str
    kernel: str
    label: str
    arch: int
    warps: int
    stages: int
    registers: int = 0
    spill: int = 0
    shared: int = 0
    excuse: str = ""
    problem: str = field(default="")


def ops_with_kernels() -> list[str]:
    """The folders below kernels/ that have ahead-of-time cases, sorted."""
    return sorted(path.parent.name for path in Path(__file__).parent.glob("*/aot.py"))


def cases(ops: Iterable[str] = ()) -> list[Case]:
    """Every case of the named ops (default: all); names are unique. Imports no Triton."""
    found: list[Case] = []
    for op in ops or ops_with_kernels():
        found += importlib.import_module(f"javisc.kernels.{op}.aot").cases()
    names = [case.name for case in found]
    assert len(set(names)) == len(names), f"two cases have one name: {sorted(n for n in names if names.count(n) > 1)}"
    return found


def _usage(cubin: bytes) -> tuple[int, int]:
    """(registers, stack and local bytes) per thread, as the cuobjdump inside Triton's wheel tells them."""
    import triton  # type: ignore[import-untyped]

    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([tool, "-res-usage", file.name], check=True, capture_output=True, text=True).stdout
    rows = re.findall(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", text)
    assert rows, text
    return max(int(r) for r, _, _ in rows), max(int(s) + int(l) for _, s, l in rows)


def compile_case(case: Case) -> Resources:
    """Compile one case for its architecture and read its resources; a compiler's error becomes `problem`."""
    import triton  # type: ignore[import-untyped]
    from triton.backends.compiler import GPUTarget  # type: ignore[import-untyped]
    from triton.compiler import ASTSource  # type: ignore[import-untyped]

    module, _, attribute = case.kernel.partition(":")
    function = getattr(importlib.import_module(module), attribute)
    facts = (case.name, case.op, attribute, case.label, case.arch, case.warps, case.stages)
    missing = set(function.arg_names) - set(case.types) - set(case.constants)
    unknown = (set(case.types) | set(case.constants)) - set(function.arg_names)
    if missing or unknown:
        return Resources(*facts, problem=f"arguments: missing {sorted(missing)}, unknown {sorted(unknown)}")
    signature = {name: case.types.get(name, "constexpr") for name in function.arg_names}
    aligned = [i for i, n in enumerate(function.arg_names) if signature[n].startswith("*") or n in case.divisible]
    source = ASTSource(
        fn=function,
        signature=signature,
        constexprs=dict(case.constants),
        attrs={(i,): [["tt.divisibility", 16]] for i in aligned},
    )
    options = {"num_warps": case.warps, "num_stages": case.stages}
    try:
        compiled = triton.compile(source, target=GPUTarget("cuda", case.arch, 32), options=options)
    except Exception as error:  # noqa: BLE001  whatever the compiler raises is this case's result, and fails the test
        return Resources(*facts, problem=" ".join(f"{type(error).__name__}: {error}".split())[:400])
    registers, spill = _usage(compiled.asm["cubin"])
    shared = int(compiled.metadata.shared)
    problem = ""
    if spill > case.spill_limit:
        problem = f"spills {spill} bytes per thread, allowed {case.spill_limit}"
    elif shared > SHARED_LIMIT[case.arch]:
        problem = f"needs {shared} bytes of shared memory, sm_{case.arch} has {SHARED_LIMIT[case.arch]}"
    return Resources(*facts, registers, spill, shared, case.excuse if spill else "", problem)


def compile_all(selected: Sequence[Case], processes: int = 2) -> list[Resources]:
    """Compile the cases in that many processes; results in the cases' order. Triton's own cache (TRITON_CACHE_DIR) is used."""
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        return list(pool.map(compile_case, selected))


def table(rows: Sequence[Resources]) -> str:
    """The rows as Markdown, one section per op."""
    import triton  # type: ignore[import-untyped]

    out = [
        "# Kernels compiled ahead of time",
        "",
        f"Every kernel × configuration, compiled by Triton {triton.__version__} for sm_80 and sm_90 without a GPU, by",
        "`python -P -m javisc.kernels.aot --write FILE`. Registers and spilled bytes are per thread, shared memory per block",
        "(limits: 255 registers; 163 KB on sm_80, 227 KB on sm_90). A spill fails the tests unless its row says why.",
    ]
    for op in dict.fromkeys(row.op for row in rows):
        out += [
            "",
            f"## {op}",
            "",
            "| kernel | configuration | arch | warps | stages | registers | spill B | shared KB | note |",
        ]
        out += ["|---|---|---|---|---|---|---|---|---|"]
        for r in (row for row in rows if row.op == op):
            cells = (
                r.kernel,
                r.label,
                f"sm_{r.arch}",
                r.warps,
                r.stages,
                r.registers,
                r.spill,
                f"{r.shared / 1024:.1f}",
            )
            out.append("| " + " | ".join(map(str, cells)) + f" | {r.problem or r.excuse} |")
    return "\n".join(out) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile, print the table (or JSON), and return 1 if any case has a problem."""
    parser = argparse.ArgumentParser(prog="python -P -m javisc.kernels.aot", description=__doc__)
    parser.add_argument("--op", action="append", default=[], help="only this op (repeatable)")
    parser.add_argument("--match", default="", help="only cases whose name holds this text")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="print JSON instead of Markdown")
    parser.add_argument(
        "--write", type=Path, metavar="FILE", help="write the table to FILE (benchmarks/results/aot.md)"
    )
    options = parser.parse_args(arguments)
    if os.environ.get("TRITON_INTERPRET"):
        print(
            "javisc.kernels.aot: TRITON_INTERPRET is set; unset it, the interpreter compiles nothing", file=sys.stderr
        )
        return 2
    rows = compile_all([c for c in cases(options.op) if options.match in c.name], options.processes)
    if options.write:
        options.write.parent.mkdir(parents=True, exist_ok=True)
        options.write.write_text(table(rows))
    else:
        print(json.dumps([asdict(row) for row in rows], indent=1) if options.json else table(rows))
    for row in rows:
        if row.problem:
            print(f"{row.name}: {row.problem}", file=sys.stderr)
    return int(any(row.problem for row in rows))


if __name__ == "__main__":
    sys.exit(main())
