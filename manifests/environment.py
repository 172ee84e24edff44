"""Storage that does not answer: told apart from a file's own faults, and waited for.

A failure is the input's (it is refused), the environment's (it is tried again, then the work stops and nothing is held against
a file) or ours. This module knows the second kind: an object store that says 403 or 503 or cuts its answers, a mount that went
away, a disk that reports an I/O error.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import BinaryIO, TypeVar, cast

from javisc.manifests.errors import UserError
from javisc.manifests.urls import filesystem

T = TypeVar("T")

#: What the system says when nothing more can be written here: never the fault of an input, and nothing that waiting lifts.
UNWRITABLE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EMFILE, errno.ENFILE})
#: What the system says when storage is away: a lost mount, a dead server, a failing disk.
AWAY = frozenset(
    getattr(errno, name)
    for name in (
        *(
            "EIO",
            "ESTALE",
            "ENOTCONN",
            "ETIMEDOUT",
            "EHOSTDOWN",
            "EHOSTUNREACH",
            "ENETDOWN",
            "ENETUNREACH",
            "ENETRESET",
        ),
        *("ECONNRESET", "ECONNREFUSED", "ECONNABORTED", "EREMOTEIO", "ENODEV", "ENXIO", "ENOLINK", "ECOMM", "EPROTO"),
        *("EKEYEXPIRED", "EKEYREVOKED", "ENOKEY", "ESHUTDOWN", "EPIPE", "EAGAIN", "EBUSY", "EINTR"),
    )
    if hasattr(errno, name)
)
#: Errors that say a name is or is not there: an answer, not a failure to answer.
_ANSWERS = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError)
#: Errors that a driver of a file system raises by a mistake in a program, which waiting does not lift.
_MISTAKES = (TypeError, AttributeError, NameError, AssertionError, ImportError, NotImplementedError, MemoryError)
#: Seconds between attempts: the first, and the most.
_FIRST, _MOST = 0.25, 30.0


class Unavailable(UserError):
    """Storage does not answer. `waited`: it was given `patience()` seconds already; else another attempt may do."""

    def __init__(self, message: str, *, waited: bool = False) -> None:
        super().__init__(message, exit_code=1)
        self.waited = waited


def patience() -> float:
    """Seconds to wait for storage that does not answer: JAVISC_PATIENCE, else 120."""
    try:
        return max(0.0, float(os.environ.get("JAVISC_PATIENCE", "120")))
    except ValueError:
        raise UserError(
            f"JAVISC_PATIENCE {os.environ['JAVISC_PATIENCE']!r}: a number of seconds is allowed, as 120"
        ) from None


def pause(attempt: int) -> float:
    """Seconds to wait after so many failed attempts: twice as long each time, by a dice so that many callers spread."""
    return min(_MOST, _FIRST * float(2 ** min(attempt, 10))) * random.uniform(0.5, 1.0)


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it was raised from, a dozen at most."""
    for _ in range(12):
        if error is None:
            return
        yield error
        error = error.__cause__ or error.__context__


def is_away(error: BaseException, *, remote: bool) -> bool:
    """True if an error says that storage did not answer.

    remote: it came from the driver of an object store, whose errors mean that unless they are an answer (no such file), a local
    disk's (full) or a mistake in a program; drivers raise their libraries' own classes, which no table could list.
    """
    if isinstance(error, UserError):
        return isinstance(error, Unavailable)
    if isinstance(error, OSError) and error.errno in UNWRITABLE:
        return False
    if remote:
        return isinstance(error, Exception) and not isinstance(error, (*_ANSWERS, *_MISTAKES))
    return isinstance(error, OSError) and error.errno in AWAY


def said(error: BaseException) -> str:
    """An error in one line, with its class where it says nothing or too little; without the path, which its reader knows."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return error.strerror
    text = " ".join(str(error).split())[:300]
    return text if len(text) > 20 else f"{type(error).__name__}: {text}".rstrip(": ")


def unavailable(what: str, error: BaseException, *, waited: bool = False) -> Unavailable:
    """The error that says which storage does not answer, and that nothing is lost by it."""
    if isinstance(error, Unavailable):
        return Unavailable(str(error), waited=waited or error.waited)
    if isinstance(error, FileNotFoundError):
        return Unavailable(
            f"{what} is gone, and its folder with it or all that was in it: nothing is held against any file; mount it again and "
            "run the same command, it resumes (if it was deleted, a new scan will do without it)",
            waited=waited,
        )
    return Unavailable(
        f"{what}: {said(error)}: the storage does not answer; nothing is held against any file: mend that (mount, network, "
        "rights) and run the same command again, it resumes",
        waited=waited,
    )


def patiently(call: Callable[[], T], what: str, *, remote: bool) -> T:
    """The result of `call`, tried again for `patience()` seconds while storage does not answer.

    what: the path or URL, for the message. Other errors pass. Raises Unavailable.
    """
    until: float | None = None
    attempt = 0
    while True:
        try:
            return call()
        except Exception as error:
            if not is_away(error, remote=remote) or (isinstance(error, Unavailable) and error.waited):
                raise
            now = time.monotonic()
            until = now + patience() if until is None else until
            wait = pause(attempt)
            if now + wait > until:
                raise unavailable(what, error, waited=True) from error
            attempt += 1
            time.sleep(wait)


def gone(path: str | os.PathLike[str] | bytes) -> bool:
    """True if a path that should be there is missing with all around it: its folder is missing, empty or cannot be read.

    So a lost mount, which leaves an empty folder or none, is told from a single file that somebody deleted.
    """
    try:
        with os.scandir(os.path.dirname(os.path.abspath(path))) as entries:  # noqa: PTH100, PTH120 (names may be bytes)
            return next(entries, None) is None
    except OSError:
        return True


def ask_local(call: Callable[[], T], path: str | os.PathLike[str] | bytes) -> T:
    """The result of `call`, which asks the system for a local path that should be there; patient where its storage is away.

    Errors that are the path's own pass. Raises Unavailable.
    """

    def ask() -> T:
        try:
            return call()
        except FileNotFoundError as error:
            if gone(path):
                raise unavailable(os.fsencode(path).decode("utf-8", "backslashreplace"), error) from error
            raise

    return patiently(ask, os.fsencode(path).decode("utf-8", "backslashreplace"), remote=False)


def open_fetched(url: str) -> BinaryIO:
    """The content of a URL as a temporary file that goes when it is closed; fetched whole, patiently.

    Raises OSError, ValueError or ImportError where it is not there or its kind is unknown, Unavailable where storage is away.
    """
    fs, inside = filesystem(url)

    def fetch() -> BinaryIO:
        size = fs.info(inside).get("size")
        target = cast(BinaryIO, tempfile.TemporaryFile())  # noqa: SIM115 (the caller closes it)
        try:
            with fs.open(inside, "rb") as stream:
                shutil.copyfileobj(stream, target, 1 << 20)
            if size is not None and target.tell() != size:
                raise OSError(f"{target.tell()} of {size} bytes came")
        except BaseException:
            target.close()
            raise
        target.seek(0)
        return target

    return patiently(fetch, url, remote=True)
