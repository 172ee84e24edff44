"""Asked of a worker by a test: what it is made of."""

from __future__ import annotations

import sys


def modules() -> list[str]:
    """The modules this process has imported."""

    return sorted(sys.modules)
