"""Local folders for what is not published yet, and getting rid of those that killed builds left behind."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from pathlib import Path

from javisc.compiler.store.commits import BUILD
from javisc.compiler.store.files import Store
from javisc.compiler.store.lock import alive
from javisc.manifests.urls import is_url

WORK = ".work"


def scratch_of(out: str, scratch: Path | None) -> Path:
    """The folder of this build's unpacked clips: below `scratch`, in the dataset, or, for one at a URL, the system's."""
    name = f"{socket.gethostname()}-{os.getpid()}"
    if scratch is not None or is_url(out):
        return Path(scratch or tempfile.gettempdir(), f"javisc-{name}")
    return Path(os.path.abspath(out), WORK, name)  # noqa: PTH100 (keeps links)


def sweep(store: Store, scratch: Path) -> None:
    """Remove what killed builds and workers left behind. The dataset's lock must be ours alone, so that nobody uses it."""
    if not store.remote:
        root = Path(store.root)
        for stale in (root / WORK).glob("*"):
            if stale != scratch:
                shutil.rmtree(stale, ignore_errors=True)
        for folder in (root, root / "shards", root / BUILD, root / BUILD / "parts"):
            for leftover in folder.glob(".*.tmp") if folder.is_dir() else ():
                leftover.unlink(missing_ok=True)
    own = f"javisc-{socket.gethostname()}-"
    for stale in scratch.parent.glob(f"{own}*"):
        pid = stale.name.removeprefix(own)
        if pid.isdigit() and not alive(int(pid)):
            shutil.rmtree(stale, ignore_errors=True)


def clear(store: Store, scratch: Path) -> None:
    """Remove this build's folder, and the dataset's folder of such folders if it was the last."""
    shutil.rmtree(scratch, ignore_errors=True)
    work = Path(store.root, WORK)
    if not store.remote and scratch.parent == work:
        try:
            work.rmdir()
        except OSError:  # other ranges still work in it, or it was never made
            return
