"""A worker that starts while its parent still imports what a build needs: either takes a third of a second."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from javisc.compiler.run.cores import usable_cores
from javisc.compiler.run.engine import COMPILERS, modules_of
from javisc.compiler.run.pool import Pool
from javisc.compiler.store.files import BUILD
from javisc.manifests.urls import is_url


@contextmanager
def early(kind: str, out: str, workers: int | None) -> Iterator[Pool | None]:
    """Workers of this machine for a build of recipes of a kind into `out`, the first of which starts at once.

    They are gone when the block ends. None where a build was begun in `out`: there may be nothing left to do.
    """
    if is_url(out) or Path(out, BUILD).exists():
        yield None
        return
    with Pool(workers or usable_cores(), None, modules_of(COMPILERS[kind])) as pool:
        with suppress(OSError):  # no room for what it says, or for another process: the build tells it better
            pool.warm()
        yield pool
