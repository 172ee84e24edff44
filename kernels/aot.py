"""Compile what really runs, without a GPU, and tell what it uses: registers, spills, shared memory, instructions.

`python -P -m javisc.kernels.aot` runs the ops at the models' shapes on tensors without memory, catches every launch and compiles
exactly these variants; what it wrote once are budgets (`--check`). `capturing` does so for any code: a whole training step on
fake tensors, say. Needs Triton outside its interpreter.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor

from javisc.kernels import dispatch

#: Compute capability → shared memory one block may use, bytes (CUDA programming guide).
SHARED_LIMIT = {n: 1024 * kb for n, kb in ((80, 163), (86, 99), (89, 99), (90, 227), (100, 227), (103, 227), (120, 99))}
#: Why a kernel may spill: (kernel, text in the variant's label, bytes per thread, reason). Any other spill fails.
EXCUSES = [
    ("", "fp32", 2000, "float32 is for checks: `auto` leaves its products to torch"),
    ("attention_bwd", "D=128", 800, "no model here has heads of 128, and smaller tiles spill too"),
    ("attention_fwd", "BM=64 BN=64 BOUNDED=False SPLIT=False NORM=True", 16, "four registers, for a third block"),
    ("attention_bwd", "KEYS=True SPLIT=False NORM=True", 8, "two registers, of a norm's backward"),
    ("bidirectional", "D=72", 264, "seven products and two accumulators of 128 × 80 leave no registers for addresses"),
]


@dataclass(frozen=True)
class Variant:
    """One compilation, as a launch asks for it. kernel: "module:function"; constants and divisible (by 16): by argument path."""

    kernel: str
    arch: int
    signature: tuple[tuple[str, Any], ...]
    constants: tuple[tuple[tuple[int, ...], Any], ...]
    divisible: tuple[tuple[int, ...], ...]
    options: tuple[tuple[str, Any], ...]

    @property
    def name(self) -> str:
        return self.kernel.rpartition(":")[2]

    @property
    def function(self) -> Any:
        """The kernel."""
        return getattr(importlib.import_module(self.kernel.partition(":")[0]), self.name)

    @property
    def label(self) -> str:
        """The constants, and of the types whether it computes in 16 bits or in float32."""
        names = [name for name, _ in self.signature]
        said = [f"{names[path[0]]}={value}" for path, value in self.constants if len(path) == 1 and value is not None]
        types = {kind for _, kind in self.signature if isinstance(kind, str) and kind.startswith("*")}
        return " ".join(["bf16" if types & {"*bf16", "*fp16"} else "fp32", *said])


@dataclass(frozen=True)
class Resources:
    """What a compiled variant uses. Per thread: registers, spill (bytes). Per block: shared (bytes). blocks: how many of them a
    multiprocessor holds at once, see `resident`. instructions: of the machine code, `loop` those of its longest innermost loop,
    `kinds` how many of some. problem: why it fails, "" if it does not. key: what it was compiled from, see `key`."""

    kernel: str
    label: str
    arch: int
    warps: int
    stages: int
    registers: int = 0
    spill: int = 0
    shared: int = 0
    blocks: int = 0
    instructions: int = 0
    loop: int = 0
    kinds: dict[str, int] = field(default_factory=dict)
    excuse: str = ""
    problem: str = ""
    key: str = ""


class _Pointer:
    """Stands for a tensor in a launch that is only compiled: its type, and how its address is aligned."""

    def __init__(self, tensor: Tensor) -> None:
        self.dtype = tensor.dtype
        self.address = int(tensor.storage_offset()) * tensor.element_size()

    def data_ptr(self) -> int:
        return self.address

    def ptr_range(self) -> int:
        return 0


@contextmanager
def capturing(arch: int) -> Iterator[Counter[Variant]]:
    """Run no kernel inside the block: count what would be launched on a device of that architecture (80, 90, …).

    The ops take Triton on tensors without memory (meta or fake ones), as if they were on such a device.
    """
    from triton.backends.compiler import GPUTarget  # type: ignore[import-untyped]
    from triton.compiler import make_backend  # type: ignore[import-untyped]
    from triton.runtime.jit import JITFunction, create_function_from_signature  # type: ignore[import-untyped]

    backend = make_backend(GPUTarget("cuda", arch, 32))
    found: Counter[Variant] = Counter()
    binders: dict[Any, Callable[..., Any]] = {}

    def run(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        if self not in binders:
            binders[self] = create_function_from_signature(self.signature, self.params, backend)
        given = [_Pointer(a) if isinstance(a, Tensor) else a for a in args]
        bound, specialised, rest = binders[self](
            *given, **{k: _Pointer(v) if isinstance(v, Tensor) else v for k, v in options.items()}
        )
        _, signature, constants, attributes = self._pack_args(backend, options, bound, specialised, rest)
        found[
            Variant(
                f"{self.fn.__module__}:{self.fn.__name__}",
                arch,
                tuple(signature.items()),
                tuple(constants.items()),
                tuple(attributes),
                tuple(sorted(rest.items())),
            )
        ] += 1

    before, launcher = dispatch.pretended, JITFunction.run
    dispatch.pretended, JITFunction.run = (arch // 10, arch % 10), run
    try:
        yield found
    finally:
        dispatch.pretended, JITFunction.run = before, launcher


def _machine_code(cubin: bytes) -> tuple[int, int, list[str]]:
    """(registers, stack and local bytes) per thread and the instructions, as the tools inside Triton's wheel tell them."""
    import triton  # type: ignore[import-untyped]

    tools = Path(triton.__file__).parent / "backends/nvidia/bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage, code = (
            subprocess.run(
                [tools / command[0], *command[1:], file.name], check=True, capture_output=True, text=True
            ).stdout
            for command in (("cuobjdump", "-res-usage"), ("nvdisasm", "-c"))
        )
    rows = re.findall(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage)
    assert rows, usage
    lines = re.findall(r"^(\.L_x_\d+):|/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\d+ )?([A-Z][A-Z0-9_.]*)(.*)", code, re.MULTILINE)
    listing = [label + ":" if label else f"{name} {rest}" for label, name, rest in lines]
    return max(int(r) for r, _, _ in rows), max(int(s) + int(l) for _, s, l in rows), listing


#: Instructions that a report counts: products, exponentials, barriers, local memory (spills).
KINDS = ("HGMMA", "HMMA", "UTCHMMA", "MUFU", "BAR", "LDL", "STL")


def _longest_loop(listing: Sequence[str]) -> int:
    """Instructions of the longest loop that has no other inside: from a label to the branch back to it."""
    at: dict[str, int] = {}
    spans: list[tuple[int, int]] = []
    for number, line in enumerate(listing):
        if line.endswith(":"):
            at[line[:-1]] = number
        elif line.startswith("BRA") and (target := re.search(r"\.L_x_\d+", line)) and target[0] in at:
            spans.append((at[target[0]], number))
    inner = [s for s in spans if not any(o != s and s[0] <= o[0] and o[1] <= s[1] for o in spans)]
    return max((sum(not line.endswith(":") for line in listing[a : b + 1]) for a, b in inner if b - a > 1), default=0)


def resident(arch: int, warps: int, registers: int, shared: int) -> int:
    """Blocks that a multiprocessor holds at once: by its 64 K registers (a quarter for every fourth warp, in steps of 256),
    shared memory (1 KB of it kept for each block) and 64 warps (CUDA programming guide)."""
    warps_held = 4 * (16384 // (256 * -(-registers // 8)))
    by_shared = (SHARED_LIMIT[arch] + 1024) // (shared + 1024)
    return min(min(warps_held, 64) // warps, by_shared, 32)


def compile_variant(variant: Variant, inspect: bool = True) -> Resources:
    """Compile one variant into Triton's cache and (inspect) read its resources; a compiler's error becomes `problem`."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    options = dict(variant.options)
    facts = (variant.name, variant.label, variant.arch, options.get("num_warps", 4), options.get("num_stages", 3))
    source = ASTSource(
        fn=variant.function,
        signature=dict(variant.signature),
        constexprs=dict(variant.constants),
        attrs={path: [["tt.divisibility", 16]] for path in variant.divisible},
    )
    try:
        compiled = triton.compile(source, target=GPUTarget("cuda", variant.arch, 32), options=options)
    except Exception as error:  # noqa: BLE001  whatever the compiler raises is this variant's result, and fails the test
        return Resources(*facts, problem=" ".join(f"{type(error).__name__}: {error}".split())[:400])
    if not inspect:
        return Resources(*facts, shared=int(compiled.metadata.shared))
    registers, spill, listing = _machine_code(compiled.asm["cubin"])
    shared = int(compiled.metadata.shared)
    code = [line.split()[0] for line in listing if not line.endswith(":")]
    kinds = {kind: count for kind in KINDS if (count := sum(name.startswith(kind) for name in code))}
    excused = (e for e in EXCUSES if variant.name.startswith(e[0]) and e[1] in variant.label)
    *_, allowed, excuse = next(excused, ("", "", 0, ""))
    problem = ""
    if spill > allowed:
        problem = f"spills {spill} bytes per thread, allowed {allowed}"
    elif shared > SHARED_LIMIT[variant.arch]:
        problem = f"needs {shared} bytes of shared memory, sm_{variant.arch} has {SHARED_LIMIT[variant.arch]}"
    blocks, excuse = resident(variant.arch, facts[3], registers, shared), excuse if spill else ""
    return Resources(
        *facts, registers, spill, shared, blocks, len(code), _longest_loop(listing), kinds, excuse, problem
    )


def key(variant: Variant) -> str:
    """Twelve hex digits of all that a variant's machine code depends on: Triton's version, what the launch asks for, and the
    source of the kernel and of whatever it calls, wherever in its file that stands."""
    import triton
    from triton.runtime.jit import JITFunction

    function = variant.function
    for name in [name for name in sys.modules if name.startswith("javisc.kernels")]:
        for value in vars(sys.modules[name]).values():
            if isinstance(value, JITFunction) and value.starting_line_number:
                value.starting_line_number, value.hash = 0, None
    return hashlib.sha256(f"{triton.__version__} {function.cache_key} {variant!r}".encode()).hexdigest()[:12]


def compile_all(variants: Sequence[Variant], processes: int = 2, inspect: bool = True) -> list[Resources]:
    """Compile the variants in that many processes; results in their order. Triton's own cache (TRITON_CACHE_DIR) is used."""
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        return list(pool.map(partial(compile_variant, inspect=inspect), variants))


def variants(arch: int, match: str = "") -> list[Variant]:
    """What the models' calls launch on an architecture, each variant once, of calls whose name holds `match`."""
    from javisc.kernels.calls import calls

    found: Counter[Variant] = Counter()
    for call in calls():
        if match in call.name:
            with capturing(arch) as seen:
                call.run(torch.device("meta"))
            found.update(seen)
    return list(found)


def write(rows: Sequence[Resources], stream: TextIO) -> None:
    """A table of what was compiled, as CSV."""
    made = csv.DictWriter(stream, [column.name for column in fields(Resources)], lineterminator="\n")
    made.writeheader()
    made.writerows({**vars(row), "kinds": json.dumps(row.kinds)} for row in rows)


def read(file: Path) -> list[Resources]:
    """The rows of a file that `write` made; none of one that is not there or has other columns."""
    types = {column.name: {"int": int, "str": str}.get(str(column.type), json.loads) for column in fields(Resources)}
    found = csv.DictReader(file.read_text(encoding="utf-8").splitlines() if file.exists() else [])
    rows = list(found) if found.fieldnames == list(types) else []
    return [Resources(**{name: types[name](text) for name, text in row.items()}) for row in rows]


def beyond(row: Resources, budgets: Sequence[Resources]) -> str:
    """In which a compiled variant passes its budget, "" if in nothing: that is the loosest row of the same kernel, label and
    architecture. A tenth more registers, instructions or barriers is let pass; fewer resident blocks, more spilled bytes or
    more shared memory is not."""
    same = [b for b in budgets if (b.kernel, b.label, b.arch) == (row.kernel, row.label, row.arch)]
    if row.problem or not same:
        return row.problem or "is not in the table"
    said = []
    slack = {"registers": 1.1, "spill": 1.0, "shared": 1.0, "instructions": 1.1, "loop": 1.1, "barriers": 1.1}
    for name, factor in slack.items():
        found, *known = (r.kinds.get("BAR", 0) if name == "barriers" else getattr(r, name) for r in (row, *same))
        if found > max(known) * factor:
            said.append(f"{name} {found}, at most {max(known) * factor:.0f}")
    if row.blocks < (least := min(b.blocks for b in same)):
        said.append(f"blocks of a multiprocessor {row.blocks}, at least {least}")
    return "; ".join(said)


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile, print the table, and return 1 if any variant has a problem."""
    parser = argparse.ArgumentParser(prog="python -P -m javisc.kernels.aot", description=__doc__)
    parser.add_argument("--match", default="", help="only calls whose name holds this text")
    architectures = "80, 90 or 100 (repeatable; default: all three)"
    parser.add_argument("--arch", type=int, action="append", default=[], help=architectures)
    parser.add_argument("--processes", type=int, default=2)
    written = "write the table to FILE; rows of the same source are kept, not compiled"
    parser.add_argument("--write", type=Path, metavar="FILE", help=written)
    checked = "compile all; fail what needs more than FILE says"
    parser.add_argument("--check", type=Path, metavar="FILE", help=checked)
    options = parser.parse_args(arguments)
    if os.environ.get("TRITON_INTERPRET"):
        parser.error("TRITON_INTERPRET is set; unset it, the interpreter compiles nothing")
    wanted = {key(v): v for arch in options.arch or (80, 90, 100) for v in variants(arch, options.match)}
    known = {row.key: row for row in (read(options.write) if options.write else []) if not row.problem}
    new = [digest for digest in wanted if digest not in known]
    compiled = compile_all([wanted[digest] for digest in new], options.processes)
    known |= {digest: replace(row, key=digest) for digest, row in zip(new, compiled, strict=True)}
    rows = sorted((known[digest] for digest in wanted), key=lambda r: (r.kernel, r.arch, r.label))
    if options.write:
        options.write.parent.mkdir(parents=True, exist_ok=True)
        with options.write.open("w", encoding="utf-8") as stream:
            write(rows, stream)
        print(f"{options.write}: {len(new)} variants compiled, {len(rows) - len(new)} kept", file=sys.stderr)
    elif not options.check:
        write(rows, sys.stdout)
    budgets = read(options.check) if options.check else []
    judged = [(row, beyond(row, budgets) if options.check else row.problem) for row in rows]
    for row, said in judged:
        if said:
            print(f"{row.kernel} {row.label} sm_{row.arch}: {said}", file=sys.stderr)
    return int(any(said for _, said in judged))


if __name__ == "__main__":
    raise SystemExit(main())
