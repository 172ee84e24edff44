"""How fast a run is."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from javisc.trainer.engine.distributed import World


class Meter:
    """What was done since the last reading, over all processes: samples and FLOP per second, the share of the devices' `peak`
    FLOP/s that is (MFU, where the peak is known), the share of time spent waiting for data, memory; and the imbalance: by how
    much a step's largest share of the work exceeds the mean. Clocks cannot tell it: in a step all wait for the slowest.

    What is done inside `paused` (validation, saving, previews) counts for nothing."""

    def __init__(self, here: World, peak: float | None) -> None:
        self.here, self.peak = here, peak
        self.begin = time.monotonic()
        #: Whether something that is no training runs now.
        self.is_paused = False
        self._forget()

    def _forget(self) -> None:
        self.waited, self.samples, self.flops, self.steps, self.away = 0.0, 0, 0.0, 0, 0.0
        #: What this process had to do in each step.
        self.work: list[float] = []

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time that is no training. What the device still has to do is waited for first: it belongs to the steps before."""
        if self.here.device.type == "cuda":
            torch.cuda.synchronize(self.here.device)
        if self.is_paused:  # within another pause, which counts the time
            yield
            return
        begin, self.is_paused = time.monotonic(), True
        try:
            yield
        finally:
            self.is_paused = False
            self.away += time.monotonic() - begin

    def start(self) -> None:
        self.mark = time.monotonic()

    def got_data(self, work: float, at: float | None = None) -> None:
        """`work`: what this process has to do in this step, in any unit. `at`: when the data were there, if not just now."""
        self.waited += (time.monotonic() if at is None else at) - self.mark
        self.work.append(work)

    def took(self, samples: int, flops: float) -> None:
        """`samples` of all processes, `flops` of this one."""
        self.samples, self.flops, self.steps = self.samples + samples, self.flops + flops, self.steps + 1

    def read(self) -> dict[str, float]:
        """Values over all processes since the last reading, which all took the same steps since."""
        seconds = max(time.monotonic() - self.begin - self.away, 1e-9)
        given = self.here.gather(self.flops, self.waited / seconds, *self.work)
        flops, waiting = given[:2].sum(1).tolist()
        most, mean = float(given[2:].max(1).values.sum()), float(given[2:].mean(1).sum())
        size = self.here.size
        told = {
            "samples_per_sec": self.samples / seconds,
            "step_sec": seconds / max(self.steps, 1),
            "data_wait": waiting / size,
            "imbalance": most / mean - 1 if mean else 0.0,
        }
        if flops:
            told["tflops_per_sec"] = flops / seconds / 1e12
            if self.peak is not None:
                told["mfu"] = flops / seconds / (self.peak * size)
        if self.here.device.type == "cuda":
            told["memory_gb"] = torch.cuda.max_memory_allocated() / 1e9
            told["allocation_retries"] = float(torch.cuda.memory_stats().get("num_alloc_retries", 0))
        self.begin = time.monotonic()
        self._forget()
        return told
