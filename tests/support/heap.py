"""New memory with what a test wants in it: what reads memory that nothing was written to gives another result."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

_M_PERTURB = -6  # malloc.h's


@contextmanager
def filled(byte: int) -> Iterator[None]:
    """While open, glibc fills what it hands out with the complement of `byte` (1 to 255), as MALLOC_PERTURB_ does."""
    tune = ctypes.CDLL(None).mallopt
    assert tune(_M_PERTURB, byte) == 1
    try:
        yield
    finally:
        assert tune(_M_PERTURB, 0) == 1
