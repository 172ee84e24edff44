"""Limits of a kernel launch, and the numbers a configuration table is keyed by."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from javisc.kernels import dispatch
from javisc.kernels.layout import ceil_div, head_blocks

#: Programs in one launch along x. Kernels use x alone: y and z end at 65,535, which batch × positions passes. Half of what x
#: takes, so that `first` + program_id(0) stays within 32 bits as long as `first` is passed as 32.
MAX_PROGRAMS = 2**30


class Config(NamedTuple):
    """A kernel's tile and launch: rows owned or streamed, columns (keys, times, channels) beside them, warps, pipeline stages,
    registers a thread may take (None: as many as the compiler likes; fewer let more programs share a multiprocessor)."""

    rows: int
    columns: int
    warps: int
    stages: int = 1
    registers: int | None = None

    @property
    def options(self) -> dict[str, int | None]:
        """What a launch is given beside its arguments."""
        return {"num_warps": self.warps, "num_stages": self.stages, "maxnreg": self.registers}


def launches(programs: int) -> Iterator[tuple[int, int]]:
    """Split `programs` into launches that fit the grid: yields (first, how many)."""
    for first in range(0, programs, MAX_PROGRAMS):
        yield first, min(MAX_PROGRAMS, programs - first)


def launch(kernel: Any, programs: int, *arguments: Any, **options: Any) -> None:
    """Run a Triton kernel's programs, in as many launches as the grid asks for. Its first argument is the number of a launch's
    first program, which kernels add to program_id(0)."""
    for first, count in launches(programs):
        kernel[(count,)](first, *arguments, **options)


def head_class(dim: int) -> int:
    """The class of a head's width that configurations are keyed by: 64 (d ≤ 64), 96 (two blocks, 72…96) or 128."""
    width = sum(size for size, _ in head_blocks(dim))
    return 64 if width <= 64 else 96 if width <= 96 else 128


def architecture(device: torch.device) -> int:
    """The configuration table's column: 90 for data-centre devices since Hopper, 80 for others; 90 off CUDA (the interpreter).

    The entries of 80 fit 99 KB of shared memory a block, what 8.6, 8.9 and 12.x have.
    """
    if device.type != "cuda" and dispatch.pretended is None:
        return 90
    # Capability 12 has the product instructions of 9.0's predecessors, and less shared memory.
    return 90 if (9, 0) <= dispatch.capability(device.index or 0) < (12, 0) else 80


@functools.cache
def _multiprocessors(index: int) -> int:
    return int(torch.cuda.get_device_properties(index).multi_processor_count)


def multiprocessors(device: torch.device) -> int:
    """Streaming multiprocessors of a CUDA device; 132 (an H100's or H200's) off CUDA, so that splits are the same there."""
    return _multiprocessors(device.index or 0) if device.type == "cuda" and dispatch.pretended is None else 132


def parts(programs: int, tiles: int, device: torch.device, *, least: int, most: int = 64, waves: int = 2) -> int:
    """Into how many parts to cut the `tiles` that each of `programs` streams, each part of at least `least` tiles: as many as
    make at most that many whole waves of programs, so that the last wave is not nearly empty."""
    wanted = waves * multiprocessors(device) // max(programs, 1)
    return max(1, min(wanted, tiles // least, most))


def ranges(
    programs: int, length: int, tile: int, device: torch.device, *, least: int = 2, most: int = 64, waves: int = 2
) -> tuple[int, int]:
    """(ranges, rows of each, whole tiles) into which to cut the `length` rows that each of `programs` streams: by `parts`."""
    tiles = ceil_div(length, tile)
    each = max(ceil_div(tiles, parts(programs, tiles, device, least=least, most=most, waves=waves)), 1)
    return ceil_div(tiles, each), each * tile


def is_long(stride: int, rows: int) -> bool:
    """Whether offsets within a tile of `rows` rows, `stride` elements apart, pass 32 bits."""
    return stride * rows + 4096 >= 2**31
