"""Limits of a kernel launch, and the numbers a configuration table is keyed by."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch

#: Programs in one launch along x. Kernels use x alone: y and z end at 65,535, which batch × positions passes. Half of what x
#: takes, so that `first` + program_id(0) stays within 32 bits as long as `first` is passed as 32.
MAX_PROGRAMS = 2**30


def launches(programs: int) -> Iterator[tuple[int, int]]:
    """Split `programs` into launches that fit the grid: yields (first, how many). Kernels add the first to program_id(0)."""
    for first in range(0, programs, MAX_PROGRAMS):
        yield first, min(MAX_PROGRAMS, programs - first)


@functools.cache
def _architecture(index: int) -> int:
    return 90 if torch.cuda.get_device_capability(index) >= (9, 0) else 80


def architecture(device: torch.device) -> int:
    """The configuration table's column: 90 for Hopper and newer, 80 for Ampere and Ada; 90 off CUDA (the interpreter)."""
    return _architecture(device.index or 0) if device.type == "cuda" else 90


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """Streaming multiprocessors of a CUDA device; 132 (an H100's or H200's) off CUDA, so that splits are the same there."""
    return int(torch.cuda.get_device_properties(device).multi_processor_count) if device.type == "cuda" else 132


def head_tiles(head_dim: int) -> tuple[int, int]:
    """Cover a head dim with two power-of-two tiles, each at least 16 wide (0: no second tile): 72 → (64, 16), not 128."""
    first = max(16, 1 << (head_dim.bit_length() - 1))
    rest = head_dim - first
    if rest <= 0:
        return first, 0
    second = max(16, 1 << (rest - 1).bit_length())
    return (2 * first, 0) if second == first else (first, second)
