"""The cores that this process may use: what the machine has is not what a container or a batch job was given."""

from __future__ import annotations

import math
import os
from pathlib import Path

#: Where Linux shows this process's control groups and their limits.
_GROUPS = Path("/proc/self/cgroup")
_MOUNT = Path("/sys/fs/cgroup")


def usable_cores(groups: Path = _GROUPS, mount: Path = _MOUNT) -> int:
    """At least 1, at most the machine's: the affinity, and the CPU quota of every control group above, rounded up."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([cores, *(math.ceil(quota) for quota in _quotas(groups, mount))]))


def _quotas(groups: Path, mount: Path) -> list[float]:
    """Cores' worth of time that control groups grant: version 2 (cpu.max) and version 1 (cpu.cfs_quota_us)."""
    found = []
    for line in _text(groups).splitlines():
        _, controllers, inside = (*line.split(":", 2), "", "")[:3]
        if controllers == "":
            tops = [mount]
        elif "cpu" in controllers.split(","):
            tops = [mount / controllers, mount / "cpu"]
        else:
            continue
        for top in tops:
            folder = top / inside.lstrip("/")
            # In a container the group's own path may not be visible: its limits then stand at the top.
            for place in {top, folder, *(parent for parent in folder.parents if parent.is_relative_to(top))}:
                quota, period = (*_text(place / "cpu.max").split(), "", "")[:2]
                if not quota:
                    quota, period = _text(place / "cpu.cfs_quota_us"), _text(place / "cpu.cfs_period_us")
                if quota.isdigit() and period.isdigit() and int(period) > 0 and int(quota) > 0:
                    found.append(int(quota) / int(period))
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:  # no control groups, or none of that kind
        return ""
