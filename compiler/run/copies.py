"""Local copies of remote sources: each is fetched once on a machine, however many windows of it there are.

Builds of one folder share what is in it, in one process or several: a copy that somebody holds stays, the others go, the oldest
first, when room is needed. Copies appear whole, and are complete or not there.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

#: Bytes of copies that are kept, at most; and this share of what was free when the build began.
MOST = 16_000_000_000
SHARE = 0.5
#: Beside a copy: locked by who needs it (shared), and by who fetches it (alone).
USED, FETCHING = ".used", ".fetching"
#: What is no copy, or none yet.
_BESIDE = (USED, FETCHING, ".part")


class Copies:
    """The copies in `folder`, which is made when there is one. most: bytes, a single larger copy has its place all the same."""

    def __init__(self, folder: Path, most: int = MOST) -> None:
        self.folder, self.given, self._most = folder, most, 0
        #: Copies that this build needs: how often, a descriptor that holds it, and its size.
        self.held: dict[str, tuple[int, int, int]] = {}

    @property
    def most(self) -> int:
        """Bytes of copies that may lie here."""
        if not self._most:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._most = min(self.given, int(shutil.disk_usage(self.folder).free * SHARE)) or 1
        return self._most

    def place(self, url: str) -> str:
        """Where the copy of a URL lies, or is to lie."""
        name = hashlib.sha256(url.encode()).hexdigest()[:32] + os.path.splitext(url)[1][:8]  # noqa: PTH122 (a URL)
        return str(self.folder / name.replace("/", "_"))

    def hold(self, url: str, size: int | None) -> str:
        """Keep the copy of a URL, which may have to be fetched yet, until it is released as often. Returns its place."""
        place = self.place(url)
        count, descriptor, held = self.held.get(place, (0, -1, 0))
        if descriptor < 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(place + USED, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            locked(descriptor, fcntl.LOCK_SH)  # waits only for one who removes it now
        self.held[place] = count + 1, descriptor, max(held, size or 0)
        return place

    def release(self, url: str, *, keep: bool) -> None:
        """It is needed once less. keep: it may be needed again, let it lie until its room is needed."""
        place = self.place(url)
        count, descriptor, size = self.held[place]
        if count > 1:
            self.held[place] = count - 1, descriptor, size
            return
        del self.held[place]
        os.close(descriptor)
        if not keep:
            self._drop(Path(place))

    def room(self, size: int | None) -> bool:
        """True if a copy of so many bytes may be fetched now: there is room, made if need be, or nothing that could make any."""
        wanted = sum(held for _, _, held in self.held.values()) + (size or 0)
        if self.held and wanted > self.most:
            return False
        lying = sorted(self._lying())
        total = sum(held for _, held, _ in lying) + (size or 0)
        for _, held, path in lying:
            if total <= self.most:
                break
            total -= held if self._drop(path) else 0
        return total <= self.most or not self.held  # what others need lies here, too: then one at a time

    def close(self) -> None:
        """Hold nothing any more."""
        for _, descriptor, _ in self.held.values():
            os.close(descriptor)
        self.held.clear()

    def _lying(self) -> Iterator[tuple[float, int, Path]]:
        """When each copy came, its size and its place."""
        for path in self.folder.iterdir() if self.folder.is_dir() else ():
            try:
                status = path.stat()
            except FileNotFoundError:  # another build removed it meanwhile
                continue
            if path.suffix not in _BESIDE:
                yield status.st_mtime, status.st_size, path

    def _drop(self, copy: Path) -> bool:
        """Remove a copy that nobody needs. False if somebody does."""
        try:
            descriptor = os.open(f"{copy}{USED}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:  # the folder is gone
            return True
        try:
            if not locked(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB):
                return False
            copy.unlink(missing_ok=True)
            return True
        finally:
            os.close(descriptor)


def locked(descriptor: int, kind: int) -> bool:
    """Lock an open file. False if it is held otherwise, with LOCK_NB; where there are no locks, nobody shares the folder."""
    try:
        fcntl.flock(descriptor, kind)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


@contextmanager
def alone(copy: str) -> Iterator[None]:
    """Be the only one on this machine to fetch a copy; others wait."""
    descriptor = os.open(copy + FETCHING, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        locked(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
