"""How fast a run is."""

from __future__ import annotations

import time

import torch
import torch.distributed as dist

from javisc.trainer.distributed import World


class Meter:
    """What was done since the last reading, over all processes: samples and FLOP per second, the share of the devices' `peak`
    FLOP/s that is (MFU, where the peak is known), the share of time spent waiting for data, imbalance, memory."""

    def __init__(self, here: World, peak: float | None) -> None:
        self.here, self.peak = here, peak
        self.begin = time.monotonic()
        self.waited, self.samples, self.flops, self.steps = 0.0, 0, 0.0, 0

    def start(self) -> None:
        self.mark = time.monotonic()

    def got_data(self) -> None:
        self.waited += time.monotonic() - self.mark

    def took(self, samples: int, flops: float) -> None:
        self.samples, self.flops, self.steps = self.samples + samples, self.flops + flops, self.steps + 1

    def read(self) -> dict[str, float]:
        """Values over all processes since the last reading."""
        seconds = max(time.monotonic() - self.begin, 1e-9)
        mine = torch.tensor(
            [self.samples, self.flops, self.waited / seconds, seconds - self.waited], dtype=torch.float64
        )
        slowest = mine[3:].clone()
        dist.all_reduce(mine, group=self.here.control)
        dist.all_reduce(slowest, dist.ReduceOp.MAX, group=self.here.control)
        samples, flops, waiting, busy = mine.tolist()
        size = self.here.size
        told = {
            "samples_per_sec": samples / seconds,
            "step_sec": seconds / max(self.steps, 1),
            "data_wait": waiting / size,
            "imbalance": float(slowest) / max(busy / size, 1e-9) - 1,
        }
        if flops:
            told["tflops_per_sec"] = flops / seconds / 1e12
            if self.peak is not None:
                told["mfu"] = flops / seconds / (self.peak * size)
        if self.here.device.type == "cuda":
            told["memory_gb"] = torch.cuda.max_memory_allocated() / 1e9
        self.begin, self.waited, self.samples, self.flops, self.steps = time.monotonic(), 0.0, 0, 0.0, 0
        return told
