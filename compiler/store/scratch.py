"""Local folders for what is not published yet, and getting rid of those that killed builds left behind."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import tempfile
import uuid
from pathlib import Path

from javisc.compiler.store.commits import BUILD
from javisc.compiler.store.files import Store
from javisc.manifests.urls import is_url, plain

WORK = ".work"
#: Locked by a folder's owner while it lives, so that others can tell.
_ALIVE = ".alive"


class Scratch:
    """This build's folder of unpacked clips: below `scratch`, in the dataset, or, for one at a URL, the system's.

    Its name holds the machine and a random part: process numbers are used again, and containers share names.
    """

    def __init__(self, out: str, scratch: Path | None) -> None:
        out = plain(out)
        name = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:12]}"
        if scratch is not None or is_url(out):
            self.path = Path(scratch or tempfile.gettempdir(), f"javisc-{name}")
        else:
            self.path = Path(os.path.abspath(out), WORK, name)  # noqa: PTH100 (keeps links)
        self.descriptor: int | None = None

    def open(self) -> None:
        """Make the folder. Raises OSError."""
        self.path.mkdir(parents=True, exist_ok=True)
        self.descriptor = os.open(self.path / _ALIVE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # no locks here: nobody will take it for dead, and nobody removes it
            return

    def close(self) -> None:
        """Remove the folder, and the dataset's folder of such folders if it was the last."""
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None
        shutil.rmtree(self.path, ignore_errors=True)
        if self.path.parent.name == WORK:
            try:
                self.path.parent.rmdir()
            except OSError:  # other ranges still work in it, or it was never made
                return


def sweep(store: Store, scratch: Scratch) -> None:
    """Remove what killed builds and workers left behind. The dataset's lock must be ours alone, so that nobody uses it."""
    if not store.remote:
        root = Path(store.root)
        for stale in (root / WORK).glob("*"):
            if stale != scratch.path:
                shutil.rmtree(stale, ignore_errors=True)
        sweep_files(root)
    for stale in scratch.path.parent.glob(f"javisc-{socket.gethostname()}-*"):
        if stale != scratch.path and _abandoned(stale):
            shutil.rmtree(stale, ignore_errors=True)


def sweep_files(root: Path) -> None:
    """Remove half-written files of a dataset at `root` and of its fields; its lock must be ours alone."""
    beside = root / "fields"
    homes = [root, *(path for path in (beside.iterdir() if beside.is_dir() else ()) if path.is_dir())]
    folders = [root / "shards", beside, *(home / part for home in homes for part in ("", BUILD, f"{BUILD}/parts"))]
    for folder in folders:
        for leftover in folder.glob(".*.tmp") if folder.is_dir() else ():
            leftover.unlink(missing_ok=True)


def _abandoned(folder: Path) -> bool:
    """True if the folder's owner is gone: its lock can be had. A folder without one is somebody else's business."""
    try:
        descriptor = os.open(folder / _ALIVE, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # held, or there are no locks here
        return False
    else:
        return True
    finally:
        os.close(descriptor)
