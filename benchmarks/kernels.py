"""Judge every kernel, then time it beside its peers at the shapes the models run, most decisive first, within a budget.

    python -P benchmarks/kernels.py --budget 600 --results kernels.jsonl --out kernels.md          (or: javisc bench kernels)

Every stage runs in a process of its own, and every cell is a JSON line of --results as soon as it is measured: an end at any
moment loses one cell, and --resume measures what is missing. First the ceilings of this device and the gate (gate.py): a kernel
that fails it is not timed. A peer that cannot run a shape is "not measured". Needs torch and triton only; without a CUDA device
it runs the same stages at toy sizes in Triton's interpreter, whose times mean nothing (--tiny).
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
import time
import types
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
if (
    importlib.util.find_spec("javisc") is None
):  # not installed: the checkout's own floors, of which only kernels is needed
    package = types.ModuleType("javisc")
    package.__path__ = [str(ROOT)]
    sys.modules["javisc"] = package

from cells import Log, Record, report  # noqa: E402  (found beside this file, by the path above)

#: Stage → share of what is left of the budget when it starts. In the order of what they decide.
STAGES = {
    "ceilings": 0.1,
    "gate": 0.4,
    "attention": 0.4,
    "norms": 0.3,
    "prior_attention": 0.3,
    "bidirectional_attention": 0.35,
    "temporal_attention": 0.4,
    "selector_attention": 0.5,
    "block": 0.5,
    "sweep": 1.0,
}
PHASES = ("forward", "backward", "both")


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def bench(run: Callable[[], object], tiny: bool) -> list[float]:
    """Median, 20th and 80th percentile in ms; the cache is flushed between repetitions. Tiny: one call's time."""
    if tiny:
        started = time.perf_counter()
        run()
        return [(time.perf_counter() - started) * 1e3] * 3
    from triton.testing import do_bench

    return [float(x) for x in do_bench(run, warmup=10, rep=40, quantiles=[0.5, 0.2, 0.8])]


def timings(function: Callable[..., Any], inputs: dict[str, Any], tiny: bool) -> Record:
    """Phase → [median, 20th, 80th percentile] in ms, for random gradients of the outputs."""
    leaves = [x for x in inputs.values() if isinstance(x, torch.Tensor) and x.requires_grad]
    out = function(**inputs)
    outs = out if isinstance(out, tuple) else (out,)
    grads = [torch.randn_like(o) for o in outs]

    def forward() -> None:
        with torch.no_grad():
            function(**inputs)

    def both() -> None:
        again = function(**inputs)
        torch.autograd.grad(again, leaves, grads)

    def backward() -> None:
        torch.autograd.grad(outs, leaves, grads, retain_graph=True)

    return {phase: bench(run, tiny) for phase, run in zip(PHASES, (forward, backward, both))}


def work(call: Any, dtype: torch.dtype) -> Record:
    """Least bytes and FLOPs of forward and of backward, from the call itself on tensors without memory."""
    from torch.utils.flop_counter import FlopCounterMode

    from javisc.kernels import dispatch

    before, dispatch.pretended = dispatch.pretended, (9, 0)
    try:
        inputs = call.make(torch.device("meta"), dtype)
        tensors = [x for x in inputs.values() if isinstance(x, torch.Tensor)]
        definition = call.definition if "cu_seqlens_k" not in inputs else None
        with FlopCounterMode(display=False) as counter:
            out = definition(**inputs, **call.options) if definition else inputs["q"]
        outs = out if isinstance(out, tuple) else (out,)
    finally:
        dispatch.pretended = before
    read, made = (sum(x.numel() * x.element_size() for x in group) for group in (tensors, outs))
    flops = counter.get_total_flops()
    return {"bytes": [read + made, 2 * read + made], "flops": [flops, 5 * flops // 2]}


def compiled() -> list[Record]:
    """Registers, spills, shared memory and programs a multiprocessor of every kernel that this process compiled."""
    from triton.runtime.jit import JITFunction

    found = []
    for module in [m for name, m in sys.modules.items() if name.startswith("javisc.kernels")]:
        for name, kernel in vars(module).items():
            if not isinstance(kernel, JITFunction) or kernel.fn.__module__ != module.__name__:
                continue
            for cache in kernel.device_caches.values():
                for binary in cache[0].values():
                    threads = 32 * binary.metadata.num_warps
                    limits = [
                        65536 // max(binary.n_regs * threads, 1),
                        227 * 1024 // max(binary.metadata.shared, 1),
                        2048 // threads,
                    ]
                    facts = {"registers": binary.n_regs, "spilled": binary.n_spills, "shared": binary.metadata.shared}
                    found.append({"kernel": name, **facts, "programs per multiprocessor": min(limits)})
    return found


# Stages. Each takes the log and whether sizes are tiny.


def ceilings(log: Log, tiny: bool) -> None:
    """Bandwidth of a device copy, and rate of a large product on random data, measured now."""

    def copy() -> Record:
        source = torch.empty(2**16 if tiny else 2**30, dtype=torch.uint8, device=device())
        target = torch.empty_like(source)
        return {"TB/s": 2 * source.nbytes / bench(lambda: target.copy_(source), tiny)[0] / 1e9}

    def product() -> Record:
        n = 64 if tiny else 8192
        a, b = (torch.randn(n, n, device=device(), dtype=torch.bfloat16) for _ in range(2))
        return {"TFLOP/s": 2 * n**3 / bench(lambda: a @ b, tiny)[0] / 1e9}

    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU: the interpreter's times mean nothing"
    log.measure("ceilings/device", lambda: {"device": name, "torch": torch.__version__})
    log.measure("ceilings/copy", copy)
    log.measure("ceilings/product", product)


def sizes(tiny: bool) -> Any:
    from javisc.kernels.calls import MODELS, TINY

    return TINY if tiny else MODELS


def gate_stage(log: Log, tiny: bool) -> None:
    """Every variant that the models launch, in bfloat16 and float32, against float64."""
    from gate import gate

    from javisc.kernels.calls import GATE, TINY, calls

    for call in calls(TINY if tiny else GATE):
        for dtype in (torch.bfloat16, torch.float32):
            name = f"gate/{call.name}/{str(dtype).removeprefix('torch.')}"

            def run(call: Any = call, dtype: torch.dtype = dtype) -> Record:
                torch.manual_seed(0)
                return gate(call.ours, partial(call.definition, **call.options), call.make(device(), dtype))

            log.measure(name, run)


def gate_names(found: Iterator[Any]) -> Iterator[str]:
    """The gate's cells."""
    return (f"gate/{call.name}/{dtype}" for call in found for dtype in ("bfloat16", "float32"))


def wrong(log: Log, op: str, tiny: bool) -> str:
    """Why an op is not timed: the first of its cells that failed the gate; "" if none did."""
    from javisc.kernels.calls import GATE, TINY, calls

    wanted = [name for name in gate_names(calls(TINY if tiny else GATE)) if name.startswith(f"gate/{op},")]
    missing = [name for name in wanted if name not in log.cells]
    if missing:
        return f"the gate did not come to {missing[0]}"
    failed = [name for name in wanted if not log.cells[name].get("passed")]
    return f"fails the gate: {failed[0]}" if failed else ""


def peers(call: Any) -> dict[str, Callable[..., Any]]:
    """What a call is timed beside: its definition compiled, and for attentions every fused one that PyTorch has, pinned."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    found: dict[str, Callable[..., Any]] = {"torch": partial(call.function, **call.options, backend="torch")}
    if "norm" in call.op or "residual" in call.op:
        return found | {"torch.compile": torch.compile(partial(call.definition, **call.options))}
    kinds = {
        "flash": SDPBackend.FLASH_ATTENTION,
        "efficient": SDPBackend.EFFICIENT_ATTENTION,
        "cuDNN": SDPBackend.CUDNN_ATTENTION,
    }
    for name, kind in kinds.items():

        def pinned(kind: Any = kind, **inputs: Any) -> Any:
            with sdpa_kernel([kind]):
                return call.function(**inputs, **call.options, backend="torch")

        found[f"torch, {name}"] = pinned
    return found | {"xformers": partial(call.function, **call.options, backend="xformers")}


def beside(op: str) -> Callable[[Log, bool], None]:
    """The stage that times the calls of an op: ours, then each peer."""

    def stage(log: Log, tiny: bool) -> None:
        from javisc.kernels.calls import calls

        for call in calls(sizes(tiny)):
            if op != ("norms" if "residual" in call.op or "layer_norm" in call.op else call.op):
                continue
            why = wrong(log, call.op, tiny)

            def ours(call: Any = call, why: str = why) -> Record:
                if why:
                    return {"not measured": why}
                torch.manual_seed(0)
                times = timings(call.ours, call.make(device(), torch.bfloat16), tiny)
                return {**times, **work(call, torch.bfloat16), "kernels": [] if tiny else compiled()}

            log.measure(f"{op}/{call.name}/javisc", ours)
            for name, peer in peers(call).items():

                def run(peer: Callable[..., Any] = peer, call: Any = call) -> Record:
                    torch.manual_seed(0)
                    return timings(peer, call.make(device(), torch.bfloat16), tiny)

                if not (tiny and name == "torch.compile"):
                    log.measure(f"{op}/{call.name}/{name}", run)

    return stage


def block(log: Log, tiny: bool) -> None:
    """One block of the joint DiT, eager with our kernels, compiled around them, and on torch's: forward and backward, and the
    share of that time in which the host is busy launching."""

    def step(backend: str, compile_: bool) -> Record:
        from javisc.trainer.models.dit.attention import PackedText
        from javisc.trainer.models.dit.blocks import Modulation, STDiT3Block

        os.environ["JAVISC_KERNELS"] = backend
        torch.manual_seed(0)
        width, heads, (b, t, s) = (144, 2, (1, 2, 4)) if tiny else (1152, 16, (16, 15, 144))
        dtype = torch.float32 if tiny else torch.bfloat16
        module = STDiT3Block(width, heads, 4.0, True, temporal=False).to(device(), dtype)
        x = torch.randn(b, t * s, width, device=device(), dtype=dtype, requires_grad=True)
        text = PackedText.of(torch.randn(b * 9, width, device=device(), dtype=dtype), [9] * b)
        modulation = Modulation(torch.randn(b, 6 * width, device=device(), dtype=dtype))
        run = torch.compile(module) if compile_ else module

        def both() -> None:
            run(x, modulation, text, t, None).float().square().mean().backward()

        both()
        times = bench(both, tiny)
        started = time.perf_counter()
        both()
        host = (time.perf_counter() - started) * 1e3
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return {"both": times, "host share": min(host / times[0], 1.0)}

    for name, backend, compile_ in (
        ("javisc", "triton", False),
        ("javisc, compiled", "triton", True),
        ("torch", "torch", False),
    ):
        if not (tiny and compile_):
            log.measure(f"block/144p 51 frames, 16 clips/{name}", partial(step, backend, compile_))


def sweep(log: Log, tiny: bool) -> None:
    """Attention's tiles: each candidate is timed on the models' calls; the report prints the winners, for the gate to judge."""
    from javisc.kernels.attention import host
    from javisc.kernels.calls import calls
    from javisc.kernels.launch import Config

    chosen = host.configuration
    for call in calls(sizes(tiny)):
        if call.op != "attention" or "audio" in call.shape:
            continue
        for kind in ("fwd", "dkv", "dq"):
            for candidate in candidates(kind) if not tiny else [Config(16, 16, 4, 1)]:

                def run(call: Any = call, kind: str = kind, candidate: Config = candidate) -> Record:
                    host.configuration = lambda k, *rest: candidate if k == kind else chosen(k, *rest)
                    try:
                        times = timings(call.ours, call.make(device(), torch.bfloat16), tiny)
                        return {"phase": times["forward" if kind == "fwd" else "backward"], "config": list(candidate)}
                    finally:
                        host.configuration = chosen

                log.measure(f"sweep/{call.name}/{kind}/{tuple(candidate)}", run)


def candidates(kind: str) -> Iterator[Any]:
    """Tiles of a pass that fit an H200's registers and shared memory, for heads of 72."""
    from javisc.kernels.launch import Config

    for rows in (64, 128) if kind != "dkv" else (32, 64):
        for columns in (32, 64, 128):
            for warps in (4, 8):
                for registers in (None, 128):
                    yield Config(rows, columns, warps, 3 if kind == "fwd" else 2, registers)


RUN: dict[str, Callable[[Log, bool], None]] = {
    name: {"ceilings": ceilings, "gate": gate_stage, "block": block, "sweep": sweep}.get(name) or beside(name)
    for name in STAGES
}


def main() -> int:
    """Run the stages within the budget, write the report; 1 if a kernel fails the gate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--budget", type=float, default=600, metavar="SECONDS", help="for everything together (default 600)"
    )
    parser.add_argument(
        "--results", type=Path, default=Path("kernels.jsonl"), metavar="FILE", help="a JSON line a cell"
    )
    parser.add_argument("--resume", action="store_true", help="keep what --results holds and measure the rest")
    parser.add_argument("--only", nargs="+", choices=list(STAGES), metavar="STAGE", help=", ".join(STAGES))
    parser.add_argument(
        "--tiny", action="store_true", help="toy sizes, one repetition (always so without a CUDA device)"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the report there instead of printing it")
    parser.add_argument("--stage", choices=list(STAGES), help=argparse.SUPPRESS)
    options = parser.parse_args()
    tiny = options.tiny or not torch.cuda.is_available()
    if options.stage:
        torch.set_num_threads(1)
        RUN[options.stage](Log(options.results), tiny)
        return 0
    if options.results.exists() and not options.resume:
        parser.error(f"{options.results} is there already: give --resume, or another --results")
    end = time.monotonic() + options.budget
    environment = os.environ | ({} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"})
    for stage, share in STAGES.items():
        if options.only and stage not in options.only:
            continue
        left = end - time.monotonic()
        command = [sys.executable, "-P", "-W", "ignore", __file__, "--stage", stage, "--results", str(options.results)]
        ended = "not started: the budget is spent"
        if left > 1:
            try:
                done = subprocess.run(
                    [*command, *(["--tiny"] if tiny else [])], env=environment, timeout=max(left * share, min(left, 20)),
                    stderr=subprocess.PIPE, text=True, check=False,
                )  # fmt: skip
                ended = "done" if done.returncode == 0 else f"failed: {' '.join(done.stderr.split())[-300:]}"
            except subprocess.TimeoutExpired:
                ended = "stopped: its share of the budget is spent"
        log = Log(options.results)
        log.write({"cell": f"stage/{stage}", "ended": ended})
        print(f"{stage}: {ended}", file=sys.stderr, flush=True)
    log = Log(options.results)
    text = report(log)
    if options.out:
        options.out.write_text(text)
    else:
        print(text)
    return int(any(not c.get("passed") for name, c in log.cells.items() if name.startswith("gate/")))


if __name__ == "__main__":
    sys.exit(main())
