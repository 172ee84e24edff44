"""Time every kernel beside its peers, at the shapes the models run, and settle the goals.

    python -P benchmarks/kernels.py --out benchmarks/results/kernels.md            (or: javisc bench kernels)

On a CUDA device: correctness against the definition first (a wrong kernel is not timed), then median and 20th/80th percentile
of forward, backward and both, in bfloat16, beside the definition, torch.compile of it and every fused attention installed;
bandwidth and arithmetic as shares of a copy and a matrix product measured in the same run. Exit code 1 if a goal is missed.
Without one: least bytes and FLOPs of every case, resources of the compiled kernels, and CPU times of the torch forms.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
from kernel_cases import Case, Goal, cases

TOLERANCE = 2e-2  # bfloat16 against the definition in float32, largest error over largest value
H200 = {
    "TB/s": 4.3,
    "TFLOP/s": 790.0,
}  # copy and bfloat16 product measured on an H200 elsewhere; used only without a device
PHASES = ("forward", "backward", "forward+backward")


def as_tuple(out: Any) -> tuple[Tensor, ...]:
    return out if isinstance(out, tuple) else (out,)


def leaves(inputs: dict[str, Any]) -> list[Tensor]:
    return [x for x in inputs.values() if isinstance(x, Tensor) and x.requires_grad]


def worst_error(case: Case, device: str) -> float:
    """The largest relative error over outputs and gradients, at tiny sizes."""
    inputs = case.inputs(device, torch.bfloat16, **case.tiny)
    wide = {
        k: x.detach().float().requires_grad_(x.requires_grad) if isinstance(x, Tensor) and x.is_floating_point() else x
        for k, x in inputs.items()
    }
    results = []
    for function, given in ((case.ours, inputs), (case.definition, wide)):
        outputs = as_tuple(function(**given))
        grads = torch.autograd.grad(
            outputs, leaves(given), [torch.ones_like(o) for o in outputs], materialize_grads=True
        )
        results.append([x.detach().float() for x in (*outputs, *grads)])
    return max(
        float((a - b).abs().max() / b.abs().max().clamp_min(1e-3)) for a, b in zip(*results, strict=True) if b.numel()
    )


def timings(function: Callable[..., Any], inputs: dict[str, Any]) -> dict[str, tuple[float, float, float]]:
    """Phase → (median, 20th, 80th percentile) in ms; the cache is flushed between repetitions."""
    from triton.testing import do_bench

    wanted = leaves(inputs)
    outputs = as_tuple(function(**inputs))
    ones = [torch.ones_like(o) for o in outputs]

    def both() -> None:
        torch.autograd.grad(as_tuple(function(**inputs)), wanted, ones, materialize_grads=True)

    def forward() -> None:
        with torch.no_grad():
            function(**inputs)

    def backward() -> None:
        torch.autograd.grad(outputs, wanted, ones, retain_graph=True, materialize_grads=True)

    quantiles = [0.5, 0.2, 0.8]
    runs = (forward, backward, both)
    return {phase: tuple(do_bench(run, quantiles=quantiles)) for phase, run in zip(PHASES, runs)}


def growth(function: Callable[..., Any], inputs: dict[str, Any]) -> float:
    """Peak device memory of a forward and backward beyond the inputs, as a multiple of inputs and outputs."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    outputs = as_tuple(function(**inputs))
    torch.autograd.grad(outputs, leaves(inputs), [torch.ones_like(o) for o in outputs])
    held = sum(x.nbytes for x in [*leaves(inputs), *outputs])
    return (torch.cuda.max_memory_allocated() - before) / held


def ceilings() -> dict[str, float]:
    """Bandwidth of a device copy and rate of a large bfloat16 product on random data, measured now."""
    from triton.testing import do_bench

    source = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    copy = 2 * source.nbytes / do_bench(lambda: target.copy_(source), return_mode="median") / 1e9
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    product = 2 * 8192**3 / do_bench(lambda: a @ b, return_mode="median") / 1e9
    return {"TB/s": copy, "TFLOP/s": product}


def judge(
    goal: Goal, rows: dict[str, Any], case: Case, limit: dict[str, float], inputs: dict[str, Any]
) -> tuple[str, bool]:
    """What was measured for a goal, and whether it is met."""
    ours = rows["javisc"][goal.phase][0]
    if goal.kind == "share":
        share = case.moved[PHASES.index(goal.phase)] / ours / 1e9 / limit["TB/s"]
        return f"{share:.0%} of the copy bandwidth", share >= goal.least
    if goal.kind == "memory":
        value = growth(case.ours, inputs)
        return f"{value:.1f} times inputs and outputs", value <= goal.least
    rivals = {n: r[goal.phase][0] for n, r in rows.items() if n.startswith(goal.peers) and isinstance(r, dict)}
    if not rivals:
        return "no peer could run", False
    best = min(rivals, key=lambda name: rivals[name])
    return f"{rivals[best] / ours:.2f} times {best}", rivals[best] / ours >= goal.least


def row(case: Case, goal: Goal, measured: str, met: bool) -> str:
    """A line of the table of goals."""
    return f"| {case.op} | {case.shape} | {goal.text} | {measured} | {'met' if met else '**missed**'} |"


def on_device(found: list[Case], chosen: str) -> tuple[list[str], bool]:
    """The report of a CUDA machine, and whether every goal is met."""
    limit = ceilings()
    out = [f"{torch.cuda.get_device_name()}, torch {torch.__version__}, CUDA {torch.version.cuda}, bfloat16.", ""]
    out += [
        f"Ceilings measured in this run: copy {limit['TB/s']:.2f} TB/s, product {limit['TFLOP/s']:.0f} TFLOP/s.",
        "",
    ]
    out += [
        "| op | shape | error | backend | forward ms (p20–p80) | backward ms | both ms (p20–p80) | TB/s | TFLOP/s |"
    ]
    out += ["|---|---|---:|---|---:|---:|---:|---:|---:|"]
    verdicts, fine = [], True
    for case in (c for c in found if chosen in c.op):
        try:
            error = worst_error(case, "cuda")
            wrong = "" if error <= TOLERANCE else f"wrong by {error:.1e}"
        except Exception as error_:  # noqa: BLE001  a kernel that cannot run is a row of the table, and misses its goals
            wrong = " ".join(f"cannot: {type(error_).__name__}: {error_}".split())[:100]
        if wrong:
            out.append(f"| {case.op} | {case.shape} | | **javisc: {wrong}, not timed** | | | | | |")
            verdicts += [row(case, goal, wrong, False) for goal in case.goals]
            fine = False
            continue
        inputs = case.inputs("cuda", torch.bfloat16, **case.sizes)
        torch._dynamo.reset()
        functions = {
            "javisc": case.ours,
            "definition": case.definition,
            "torch.compile": torch.compile(case.definition),
        }
        rows: dict[str, Any] = {}
        for name, function in (functions | case.peers).items():
            try:
                rows[name] = timings(function, inputs)
            except Exception as error_:  # noqa: BLE001  a peer that cannot run a shape is a row of the table
                rows[name] = " ".join(f"{type(error_).__name__}: {error_}".split())[:60]
                torch.cuda.empty_cache()
            if isinstance(rows[name], str):
                fine &= name != "javisc"
                out.append(f"| {case.op} | {case.shape} | | {name} | cannot: {rows[name]} | | | | |")
                continue
            (f, f2, f8), (b, _, _), (a, a2, a8) = (rows[name][phase] for phase in PHASES)
            rate = sum(case.moved) / a / 1e9, sum(case.flops) / a / 1e9
            out.append(
                f"| {case.op} | {case.shape} | {f'{error:.0e}' if name == 'javisc' else ''} | {name} |"
                f" {f:.3f} ({f2:.3f}–{f8:.3f}) | {b:.3f} | {a:.3f} ({a2:.3f}–{a8:.3f}) | {rate[0]:.2f} | {rate[1]:.0f} |"
            )
        print(*out[-len(rows) :], sep="\n", file=sys.stderr, flush=True)
        for goal in case.goals:
            timed = isinstance(rows["javisc"], dict)
            measured, met = judge(goal, rows, case, limit, inputs) if timed else ("not timed", False)
            fine &= met
            verdicts.append(row(case, goal, measured, met))
        del inputs
        torch.cuda.empty_cache()
    out += ["", "## Goals", "", "| op | shape | goal | measured | verdict |", "|---|---|---|---|---|", *verdicts]
    return out, fine


def cpu_time(function: Callable[[], Any], repeats: int = 5) -> float:
    """Median CPU milliseconds of one call."""
    function()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        function()
        times.append((time.process_time() - start) * 1e3)
    return statistics.median(times)


def torch_forms() -> list[str]:
    """CPU times of what saves work whatever runs it: distinct keys, absorbed projections."""
    from javisc.kernels.prior_attention import prior_attention

    out = ["| work (forward, float32, one thread) | usual form ms | javisc's form ms | ratio |", "|---|---:|---:|---:|"]
    torch.manual_seed(0)

    def row(text: str, usual: Callable[[], Any], ours: Callable[[], Any]) -> None:
        torch.testing.assert_close(usual(), ours(), atol=1e-3, rtol=1e-3)
        a, b = cpu_time(usual), cpu_time(ours)
        out.append(f"| {text} | {a:.1f} | {b:.1f} | {a / b:.1f} |")

    for frames, patches in ((15, 144), (15, 405)):
        q, k, v = (torch.randn(2, n, 4, 72) for n in (frames * patches // 4, 32, 32))

        def repeated(q: Tensor = q, k: Tensor = k, v: Tensor = v, times: int = frames) -> Tensor:
            many = [x.repeat_interleave(times, 1).reshape(1, -1, 4, 72).transpose(1, 2) for x in (k, v)]
            rows = q.reshape(1, -1, 4, 72).transpose(1, 2)
            return F.scaled_dot_product_attention(rows, *many).transpose(1, 2).reshape(q.shape)

        def distinct(q: Tensor = q, k: Tensor = k, v: Tensor = v) -> Tensor:
            return prior_attention(q, k, v, scope="batch", backend="torch")

        text = f"spatial prior, 2 clips, {q.shape[1]} queries (a quarter of {frames} × {patches}), 4 heads: "
        text += f"keys repeated {frames} times or once"
        row(text, repeated, distinct)
    return out


def resources() -> list[str]:
    """The compiled kernels: the most that any configuration of each uses."""
    from javisc.kernels import aot

    rows = aot.compile_all([v for arch in (80, 90) for v in aot.variants(arch)])
    out = [
        "| kernel | configurations | architecture | most registers | spilled bytes | most shared KB |",
        "|---|---:|---|---:|---:|---:|",
    ]
    for kernel, arch in dict.fromkeys((r.kernel, r.arch) for r in rows):
        mine = [r for r in rows if (r.kernel, r.arch) == (kernel, arch)]
        most = [max(getattr(r, name) for r in mine) for name in ("registers", "spill", "shared")]
        out.append(f"| {kernel} | {len(mine)} | sm_{arch} | {most[0]} | {most[1]} | {most[2] / 1024:.1f} |")
    return out


def without_device(found: list[Case], chosen: str) -> list[str]:
    """The report of a machine without a GPU: no kernel is timed, no goal is settled."""
    out = [
        f"**No GPU here** ({platform.processor() or platform.machine()}, torch {torch.__version__}): no kernel was timed and no",
        "goal is settled. Run the same command on an H200 to settle them.",
        "",
        "## Least work",
        "",
        "What each call must read, write and compute in bfloat16, and the time an H200 cannot go below: the larger of bytes over",
        f"{H200['TB/s']} TB/s and FLOPs over {H200['TFLOP/s']:.0f} TFLOP/s, both measured on one elsewhere.",
        "",
        "| op | shape | forward MB | forward GFLOP | forward µs | backward MB | backward GFLOP | backward µs |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for case in (c for c in found if chosen in c.op):
        cells = []
        for moved, flops in zip(case.moved, case.flops):
            least = max(moved / H200["TB/s"], flops / H200["TFLOP/s"]) / 1e6
            cells += [f"{moved / 1e6:.1f}", f"{flops / 1e9:.1f}", f"{least:.1f}"]
        out.append(f"| {case.op} | {case.shape} | " + " | ".join(cells) + " |")
    out += ["", "## Goals", "", "| op | shape | goal | verdict |", "|---|---|---|---|"]
    out += [
        f"| {c.op} | {c.shape} | {g.text} | not settled: needs a GPU |"
        for c in found
        if chosen in c.op
        for g in c.goals
    ]
    out += [
        "",
        "## Compiled ahead of time",
        "",
        "Each configuration alone: benchmarks/results/aot.md.",
        "",
        *resources(),
    ]
    out += [
        "",
        "## Torch forms on this CPU",
        "",
        "Median CPU time of five calls; results agree to 1e-3.",
        "",
        *torch_forms(),
    ]
    return out


def main() -> int:
    """Run, print or write the report; 1 if a kernel is wrong or a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--op", default="", metavar="TEXT", help="only ops whose name holds this text")
    parser.add_argument("--out", type=Path, metavar="FILE")
    options = parser.parse_args()
    if os.environ.get("TRITON_INTERPRET"):
        parser.error("TRITON_INTERPRET is set: the interpreter's times mean nothing; unset it")
    torch.set_num_threads(1)
    found, missing = cases()
    body, fine = (
        on_device(found, options.op) if torch.cuda.is_available() else (without_device(found, options.op), True)
    )
    head = ["# Kernels beside their peers", "", "`python -P benchmarks/kernels.py " + " ".join(sys.argv[1:]) + "`", ""]
    if missing:
        head += [f"Not measured, as this version has no such op: {', '.join(missing)}. Their goals stay open.", ""]
    text = "\n".join(head + body) + "\n"
    if options.out:
        options.out.write_text(text)
    else:
        print(text)
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
