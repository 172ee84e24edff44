"""What several benchmarks share: this machine in words, contestants in turn, peak memory, fitted exponents."""

from __future__ import annotations

import gc
import math
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch


def machine(device: torch.device) -> str:
    """The device, its threads and the versions, in one line."""
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}, {versions}"
    names = [line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {torch.get_num_threads()} threads, {versions}"


def command(script: str) -> str:
    """The exact command that runs now."""
    return f"python -P benchmarks/{script} {' '.join(sys.argv[1:])}".rstrip()


@dataclass(frozen=True)
class Times:
    """Seconds of a contestant's repetitions."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def __str__(self) -> str:
        return f"{self.median:.3g} ({min(self.seconds):.3g}–{max(self.seconds):.3g})"


def in_turn(contestants: Mapping[str, Callable[[], object]], repeats: int, device: torch.device) -> dict[str, Times]:
    """Wall seconds of every contestant: one warm-up each, then `repeats` rounds in each of which everyone runs once."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(repeats + 1):
        for name, run in contestants.items():
            _wait(device)
            start = time.perf_counter()
            run()
            _wait(device)
            if number:
                seconds[name].append(time.perf_counter() - start)
        print(f"round {number} of {repeats} done", file=sys.stderr, flush=True)
    return {name: Times(tuple(values)) for name, values in seconds.items()}


def growth(run: Callable[[], object], device: torch.device) -> int:
    """Bytes by which memory grows at its peak while `run` runs once; on the CPU the process's, so give it one of its own."""
    run()
    gc.collect()
    _wait(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return int(torch.cuda.max_memory_allocated() - before)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts anew
    before = _status("VmRSS")
    run()
    return _status("VmHWM") - before


def exponent(points: Sequence[tuple[float, float]]) -> float:
    """The least-squares slope of log(y) over log(x): 1 is linear, 2 quadratic."""
    xs, ys = [math.log(x) for x, _ in points], [math.log(y) for _, y in points]
    mx, my = statistics.mean(xs), statistics.mean(ys)
    return sum((x - mx) * (y - my) for x, y in zip(xs, ys)) / sum((x - mx) ** 2 for x in xs)


def matmul_ceiling(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a large product on random data, the best of a few."""
    size = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    seconds = in_turn({"product": lambda: a @ b}, 5, device)["product"].seconds
    return 2 * size**3 / min(seconds)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table, the first column to the left."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return ["| " + " | ".join(row) + " |" for row in (header, rule, *rows)]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _status(name: str) -> int:
    return next(int(line.split()[1]) * 1024 for line in _lines("/proc/self/status") if line.startswith(name + ":"))


def _lines(path: str) -> list[str]:
    return Path(path).read_text(encoding="utf-8").splitlines()
