"""Many calls of one function, side by side in supervised workers: what dies takes one call with it, not the work."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from javisc.compiler.run.cores import usable_cores
from javisc.compiler.run.pool import Call, Outcome, Pool
from javisc.manifests.errors import UserError


def spread(
    function: str,
    calls: Iterable[tuple[Any, dict[str, Any], float]],
    *,
    workers: int | None = None,
    preload: Sequence[str] = (),
) -> Iterator[Outcome]:
    """Call `module:function` for every (tag, arguments, seconds) and yield how each ended, in the order in which they end.

    Arguments and values are JSON. A call whose worker dies is made once more, alone; see Pool. calls is read as workers become
    free. Raises UserError for a mistake of the user's and where storage does not answer: those end the work.
    """
    pending = iter(calls)
    exhausted = False
    size = workers or usable_cores()
    with (
        tempfile.TemporaryDirectory(prefix="javisc-logs-") as logs,
        Pool(size, Path(logs), (function.partition(":")[0], *preload)) as pool,
    ):
        while True:
            while not exhausted and pool.hungry:
                call = next(pending, None)
                exhausted = call is None
                if call is not None:
                    tag, arguments, limit = call
                    pool.submit(Call(tag, function, arguments, limit))
            if exhausted and not pool.busy:
                return
            for outcome in pool.wait():
                outcome.stop_if_unavailable()
                if outcome.error in ("fatal", "unwritable"):
                    raise UserError(outcome.message, exit_code=outcome.details.get("code", 1))
                yield outcome
