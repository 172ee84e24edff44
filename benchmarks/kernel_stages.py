"""What `kernels.py` measures of the kernels, a function a stage: each runs in a process of its own and writes its cells
into a log."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from typing import Any

import torch
from cells import Log, Record
from checkout import ROOT, bare

PHASES = ("forward", "backward", "both")
DTYPES = (torch.bfloat16, torch.float32)


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def identity(tiny: bool) -> Record:
    """What cells hold for: device, versions, the source of what is measured, whether sizes are tiny; "on", a digest of it all."""
    cuda = torch.cuda.is_available()
    try:
        import triton

        version = str(triton.__version__)
    except ImportError:
        version = "none"
    source = hashlib.sha256()
    for folder in ("benchmarks", "kernels", "trainer"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            source.update(f"{file.relative_to(ROOT)}\n".encode() + file.read_bytes())
    facts = {
        "device": torch.cuda.get_device_name() if cuda else "no GPU: the interpreter's times mean nothing",
        "cores": len(os.sched_getaffinity(0)),
        "torch": torch.__version__,
        "CUDA": torch.version.cuda if cuda else None,
        "triton": version,
        "python": platform.python_version(),
        "source": source.hexdigest()[:12],
        "tiny": tiny or not cuda,
        "interpreted": not cuda,
    }
    return {"on": hashlib.sha256(repr(facts).encode()).hexdigest()[:8], **facts}


def bench(run: Callable[[], object], tiny: bool) -> list[float]:
    """Median, 20th and 80th percentile in ms; the cache is flushed between repetitions. Tiny: one call's time."""
    if tiny:
        started = time.perf_counter()
        run()
        return [(time.perf_counter() - started) * 1e3] * 3
    from triton.testing import do_bench

    return [float(x) for x in do_bench(run, warmup=10, rep=40, quantiles=[0.5, 0.2, 0.8])]


def timings(function: Callable[..., Any], inputs: dict[str, Any], tiny: bool) -> Record:
    """Phase → [median, 20th, 80th percentile] in ms, for random gradients of the outputs; "kernels": what of ours it launches."""
    leaves = [x for x in inputs.values() if isinstance(x, torch.Tensor) and x.requires_grad]
    with launched() as kernels:
        started = time.perf_counter()
        out = function(**inputs)
        outs = out if isinstance(out, tuple) else (out,)
        between = time.perf_counter()
        grads = [torch.randn_like(o) for o in outs]
        torch.autograd.grad(outs, leaves, grads, retain_graph=not tiny)
    if tiny:  # a rehearsal: once is enough
        first, second = between - started, time.perf_counter() - between
        return {phase: [ms * 1e3] * 3 for phase, ms in zip(PHASES, (first, second, first + second))}

    def forward() -> None:
        with torch.no_grad():
            function(**inputs)

    def both() -> None:
        torch.autograd.grad(function(**inputs), leaves, grads)

    def backward() -> None:
        torch.autograd.grad(outs, leaves, grads, retain_graph=True)

    found: Record = {phase: bench(run, tiny) for phase, run in zip(PHASES, (forward, backward, both))}
    return found | ({"kernels": [resources(kernel) for kernel in kernels.values()]} if kernels else {})


@contextmanager
def launched() -> Iterator[dict[int, Any]]:
    """The compiled kernels that are launched inside, each once. The interpreter compiles none."""
    from triton.runtime.jit import JITFunction

    found: dict[int, Any] = {}
    run = JITFunction.run

    def kept(self: Any, *args: Any, **options: Any) -> Any:
        binary = run(self, *args, **options)
        if binary is not None:
            found[id(binary)] = binary
        return binary

    JITFunction.run = kept
    try:
        yield found
    finally:
        JITFunction.run = run


def resources(binary: Any) -> Record:
    """Registers and spilled bytes a thread, shared memory a block, and blocks that a multiprocessor holds at once."""
    from javisc.kernels.aot import SHARED_LIMIT, resident

    arch = int(binary.metadata.target.arch)
    arch = arch if arch in SHARED_LIMIT else 90
    shared, registers = int(binary.metadata.shared), int(binary.n_regs)
    return {
        "kernel": binary.metadata.name,
        "registers": registers,
        "spill B": 4 * int(binary.n_spills),
        "shared": shared,
        "blocks": resident(arch, int(binary.metadata.num_warps), registers, shared),
    }


def work(call: Any, dtype: torch.dtype) -> Record:
    """Least bytes and FLOPs of forward and of backward, from the definition on tensors without memory."""
    from torch.utils.flop_counter import FlopCounterMode

    inputs = call.make(torch.device("meta"), dtype)
    tensors = [x for x in inputs.values() if isinstance(x, torch.Tensor)]
    if "cu_seqlens_k" in inputs:  # packed: the definition would read the bounds; all are of the longest length
        outs: tuple[Any, ...] = (inputs["q"],)
        flops = 4 * inputs["q"].numel() * call.options["max_seqlen_k"]
    else:
        with FlopCounterMode(display=False) as counter:
            out = call.definition(**inputs, **call.options)
        outs = out if isinstance(out, tuple) else (out,)
        flops = counter.get_total_flops()
    read, made = (sum(x.numel() * x.element_size() for x in group) for group in (tensors, outs))
    return {"bytes": [read + made, 2 * read + made], "flops": [flops, 5 * flops // 2]}


class _Chosen(Exception):
    """The backend that was chosen for a call, before it runs."""


def auto(call: Any, dtype: torch.dtype) -> str:
    """The backend that `auto` takes for a call on this device, or on an H200 where there is none."""
    from javisc.kernels import dispatch

    choose, pretended = dispatch.choose, dispatch.pretended

    def chosen(*request: Any) -> str:
        raise _Chosen(choose(*request))

    dispatch.pretended = torch.cuda.get_device_capability() if torch.cuda.is_available() else (9, 0)
    dispatch.choose = chosen  # type: ignore[assignment]
    try:
        call.function(**call.make(torch.device("meta"), dtype), **call.options)
    except _Chosen as found:
        return str(found)
    finally:
        dispatch.choose, dispatch.pretended = choose, pretended
    raise RuntimeError(f"{call.name} chose no backend")


# Stages.


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

    log.measure("ceilings/copy", copy)
    log.measure("ceilings/product", product)


class Compilers:
    """Processes that compile variants into Triton's cache while this one finds out what is launched. Make it before anything else
    touches the device or starts a thread: they are forked."""

    def __init__(self) -> None:
        self.pool = ProcessPoolExecutor(len(os.sched_getaffinity(0)), mp_context=get_context("fork"))
        self.pool.submit(os.getpid).result()
        self.jobs: dict[Any, Any] = {}

    def launch(self, call: Any, dtype: torch.dtype) -> None:
        """Begin to compile what a call launches on this device, on an H200 where there is none."""
        from javisc.kernels import aot

        major, minor = torch.cuda.get_device_capability() if torch.cuda.is_available() else (9, 0)
        with aot.capturing(10 * major + minor) as seen:
            call.run(torch.device("meta"), dtype)
        for variant in seen:
            if variant not in self.jobs:
                self.jobs[variant] = self.pool.submit(aot.compile_variant, variant, inspect=False)

    def wait(self) -> Record:
        """Wait for all; how many there were, and what did not compile."""
        rows = [job.result() for job in self.jobs.values()]
        return {
            "variants": len(rows),
            "failed": [f"{r.kernel} {r.label}: {r.problem}"[:200] for r in rows if r.problem],
        }


def compile_stage(log: Log, tiny: bool) -> None:
    """Compile what the gate and the timings will launch, in as many processes as there are cores, into Triton's cache."""

    from javisc.kernels import dispatch

    def run() -> Record:
        if dispatch.interpreting():
            return {"variants": 0, "failed": []}  # it compiles nothing
        compilers = Compilers()
        for call, dtype in [*((call, dtype) for call in gate_calls(tiny) for dtype in DTYPES), *timed(tiny)]:
            compilers.launch(call, dtype)
        return compilers.wait()

    log.measure("compile/variants", run)


def gate_calls(tiny: bool) -> list[Any]:
    from javisc.kernels.calls import GATE, TINY, calls

    return list(calls(TINY if tiny else GATE))


def timed(tiny: bool) -> list[tuple[Any, torch.dtype]]:
    """The models' calls, those that decide most first."""
    from javisc.kernels.calls import MODELS, TINY, calls

    def later(call: Any) -> bool:
        return call.op == "attention" and not call.shape.startswith("spatial")

    return [(call, torch.bfloat16) for call in sorted(calls(TINY if tiny else MODELS), key=later)]


def is_of(call: Any, op: str) -> bool:
    """Whether a call is of an op, or of the three that one kernel serves, "norms"."""
    return bool(call.op == op or (op == "norms" and ("residual" in call.op or "layer_norm" in call.op)))


def gate_stage(log: Log, tiny: bool, op: str) -> None:
    """Every variant of an op that the models launch, in bfloat16 and float32, against float64."""
    from gate import gate

    for call in gate_calls(tiny):
        for dtype in dtypes() if is_of(call, op) else ():

            def run(call: Any = call, dtype: torch.dtype = dtype) -> Record:
                torch.manual_seed(0)
                return gate(call.ours, partial(call.definition, **call.options), call.make(device(), dtype))

            log.measure(gate_name(call, dtype), run)


def dtypes() -> tuple[torch.dtype, ...]:
    """What is judged; in the interpreter, where bfloat16 is computed in float32, that alone."""
    from javisc.kernels import dispatch

    return (torch.bfloat16,) if dispatch.interpreting() else DTYPES


def gate_name(call: Any, dtype: torch.dtype) -> str:
    return f"gate/{call.name}/{str(dtype).removeprefix('torch.')}"


def wrong(log: Log, op: str, tiny: bool) -> str:
    """Why an op is not timed: the first of its cells that the gate has not seen or has failed; "" if there is none."""
    for call in gate_calls(tiny):
        for dtype in dtypes() if call.op == op else ():
            name = gate_name(call, dtype)
            if name not in log:
                return f"the gate did not come to {name}"
            if not log.cells[name].get("passed"):
                return f"fails the gate: {name}"
    return ""


def peers(call: Any) -> dict[str, Callable[..., Any]]:
    """What a call is timed beside: its definition compiled, and for attentions every fused one that PyTorch has, pinned."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    found: dict[str, Callable[..., Any]] = {"torch": partial(call.function, **call.options, backend="torch")}
    if is_of(call, "norms"):
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


def beside(log: Log, tiny: bool, op: str) -> None:
    """Time the calls of an op: ours where the gate passes it, then each peer."""
    for call, dtype in timed(tiny):
        if not is_of(call, op):
            continue
        why = wrong(log, call.op, tiny)

        def ours(call: Any = call, dtype: torch.dtype = dtype, why: str = why) -> Record:
            if why:
                return {"not measured": why} | ({"again": True} if "did not come" in why else {})
            torch.manual_seed(0)
            times = timings(call.ours, call.make(device(), dtype), tiny)
            return {**times, **work(call, dtype), "auto": auto(call, dtype)}

        log.measure(f"{op}/{call.name}/javisc", ours)
        for name, peer in peers(call).items():

            def run(peer: Callable[..., Any] = peer, call: Any = call, dtype: torch.dtype = dtype) -> Record:
                torch.manual_seed(0)
                return timings(peer, call.make(device(), dtype), tiny)

            if not (tiny and name == "torch.compile"):
                log.measure(f"{op}/{call.name}/{name}", run)


def block(log: Log, tiny: bool) -> None:
    """One block of the joint DiT, eager with our kernels, compiled around them, and on torch's: forward and backward, and the
    share of that time in which the host is busy launching."""

    def step(backend: str, compile_: bool) -> Record:
        try:
            importlib.import_module("javisc.trainer.models.dit")
        except ModuleNotFoundError:  # the block itself needs torch alone
            for name in ("trainer", "trainer.models", "trainer.models.dit", "trainer.engine"):
                bare(f"javisc.{name}")
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
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # the queue is empty, so that launching is all that the host does
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
        ("torch, compiled", "torch", True),
    ):
        if not (tiny and compile_):
            log.measure(f"block/144p 51 frames, 16 clips/{name}", partial(step, backend, compile_))


if __name__ == "__main__":
    print(json.dumps(identity("--tiny" in sys.argv)))
