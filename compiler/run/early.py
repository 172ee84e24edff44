"""A worker that starts while its parent still imports what a build needs: either takes a third of a second."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from javisc.compiler.run.cores import usable_cores
from javisc.compiler.run.engine import COMPILERS, modules_of
from javisc.compiler.run.pool import Pool
from javisc.compiler.run.stopping import stoppable
from javisc.compiler.store.files import BUILD
from javisc.manifests.errors import UserError
from javisc.manifests.urls import is_url

#: What is said where a build is interrupted as long as it has no plan.
UNPLANNED = "interrupted before the plan was written; nothing is published: run the same command again"


@contextmanager
def early(kind: str, out: str, workers: int | None) -> Iterator[Pool | None]:
    """Workers of this machine for a build of recipes of a kind into `out`, the first of which starts at once.

    They are gone when the block ends, however it is stopped. None where a build was begun in `out`: there may be nothing left to
    do. Raises UserError where the block is interrupted before its build looks after that.
    """
    if is_url(out) or Path(out, BUILD).exists():
        yield None
        return
    try:
        with stoppable(), Pool(workers or usable_cores(), None, modules_of(COMPILERS[kind])) as pool:
            with suppress(OSError):  # no room for what it says, or for another process: the build tells it better
                pool.warm()
            yield pool
    except KeyboardInterrupt:
        raise UserError(UNPLANNED, exit_code=130) from None
