"""Asked of a worker by a test: what it is made of."""

from __future__ import annotations

import sys


def modules() -> list[str]:
    """The modules this process has imported."""
    import javisc.compiler.tasks
    import javisc.compiler.transcode  # noqa: F401

    return sorted(sys.modules)
