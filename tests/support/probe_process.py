"""Asked of a worker by a test: what it is made of."""

from __future__ import annotations

import sys


def modules() -> list[str]:
    """The modules this process has imported."""

    return sorted(sys.modules)


def threads() -> int:
    """Threads of this process once it has multiplied matrices."""
    import os

    import numpy as np

    square = np.ones((600, 600))
    assert (square @ square)[0, 0] == 600
    return len(os.listdir("/proc/self/task"))
