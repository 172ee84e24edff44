"""Machines that are short of something: a node of a Ray cluster with little memory, a folder with little room. Both need root."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

#: Where the system's memory groups are (version 1).
_GROUPS = Path("/sys/fs/cgroup/memory")


@contextmanager
def little_memory(address: str, size: int, log: Path, **resources: int) -> Iterator[None]:
    """A node of the cluster at `address` whose machine has `size` bytes of memory, of which Ray lets processes take 70 %.

    It is what a container is: a memory group, which is all that the node sees. resources: of `ray start`, as num_cpus.
    """
    group = _GROUPS / f"javisc-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"a node with little memory needs root and memory cgroups of version 1: {error}")
    try:
        (group / "memory.limit_in_bytes").write_text(str(size))
        given = " ".join(f"--{name.replace('_', '-')}={value}" for name, value in resources.items())
        ray = Path(sys.executable).with_name("ray")
        script = f"mount --bind {group} {_GROUPS} && exec {ray} start --address={address} {given} --block"
        told = {"RAY_memory_usage_threshold": "0.7", "RAY_task_oom_retry_delay_base_ms": "50"}
        with log.open("wb") as out:
            subprocess.Popen(
                ["sh", "-c", f'echo $$ > {group}/cgroup.procs; exec unshare -m sh -c "{script}"'],
                env=os.environ | told,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        yield
    finally:
        until = time.monotonic() + 30
        while pids := (group / "cgroup.procs").read_text().split():
            assert time.monotonic() < until
            for pid in map(int, pids):
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)
        group.rmdir()


@contextmanager
def little_room(folder: Path, size: int) -> Iterator[Callable[[int], None]]:
    """Have a folder with room for so many bytes; what is yielded gives it another room."""

    def mount(options: str) -> None:
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=True, capture_output=True)

    folder.mkdir()
    if shutil.which("mount") is None or os.geteuid() != 0:
        pytest.skip("a folder with little room needs root and the command mount")
    try:
        mount(f"size={size}")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"a folder with little room needs the right to mount: {error.stderr!r}")
    try:
        yield lambda more: mount(f"remount,size={more}")
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)
