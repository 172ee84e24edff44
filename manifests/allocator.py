"""What polars' allocator (jemalloc) does with memory that is free again."""

from __future__ import annotations

import os


def keep_freed() -> None:
    """Let memory that polars gives back wait five seconds for its next use. For commands that make table after table.

    By itself jemalloc returns it to the system at once, which then clears every page anew: a third of `annotate`'s time. It
    listens when polars is loaded, so this comes before that. What a user has set stays.
    """
    os.environ.setdefault("_RJEM_MALLOC_CONF", f"narenas:{os.cpu_count() or 1},dirty_decay_ms:5000,muzzy_decay_ms:5000")
