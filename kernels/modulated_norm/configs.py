"""Static launch configurations of the modulated norm, keyed by width class; the same for every architecture."""

from __future__ import annotations

from javisc.kernels.launch import Config

MAX_CHANNELS = 4096  # a row and its gradients stay in registers
#: Rows that a program owns: a few forward, where nothing is carried from row to row; more backward, at least so many, where each
#: program leaves sums, so that the programs make whole waves of four a multiprocessor.
FORWARD_ROWS, BACKWARD_ROWS, BACKWARD_WAVES = 8, 16, 8
#: Largest C of the class → warps forward and backward. One warp holds a row of 1152 and needs no barrier; two share one where its
#: gradients are summed (benchmarks/results/aot.csv).
WARPS: dict[int, tuple[int, int]] = {640: (1, 1), 1280: (1, 2), 2560: (2, 4), 4096: (4, 8)}


def config(direction: str, channels: int) -> Config:
    """Return the configuration of a width, "fwd" or "bwd"."""
    warps = next(pair for limit, pair in WARPS.items() if channels <= limit)
    return Config(1, channels, warps[direction == "bwd"], 2)
