"""Being stopped from outside: the first signal ends the work in order, the third at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

#: Not empty while a block is at work in the main thread.
_ACTIVE: list[bool] = []


@contextmanager
def stoppable() -> Iterator[None]:
    """Turn the first SIGINT or SIGTERM into KeyboardInterrupt and let the clean-up finish; the third ends at once.

    Within another such block it changes nothing: a second signal does not disturb the outer one's clean-up either.
    """
    if threading.current_thread() is not threading.main_thread() or _ACTIVE:
        yield
        return
    count = 0

    def stop(number: int, frame: object) -> None:
        nonlocal count
        count += 1
        if count == 1:
            raise KeyboardInterrupt
        if count >= 3:
            os._exit(128 + number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    _ACTIVE.append(True)
    try:
        yield
    finally:
        _ACTIVE.clear()
        for number, handler in before.items():
            signal.signal(number, handler)
