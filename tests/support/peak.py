"""How much memory a process has had at most."""

from __future__ import annotations

from pathlib import Path


def peak() -> int:
    """Resident memory of this process at its peak since it is what it is, KiB (Linux).

    getrusage's ru_maxrss begins with what the process had that started this one: below one that holds a gigabyte nothing shows.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
