"""Sharing a machine's devices out among the worker processes of one run."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Sequence
from pathlib import Path

from javisc.manifests.errors import UserError


def claim(folder: Path, devices: Sequence[str]) -> str:
    """One of the devices (a slot each; names may repeat) for this process, until it ends: the kernel drops its lock then."""
    for number, device in enumerate(devices):
        descriptor = os.open(folder / f"device-{number}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return device
        except BlockingIOError:
            os.close(descriptor)
    raise UserError(f"all of {', '.join(devices)} are taken by other processes of this run")
