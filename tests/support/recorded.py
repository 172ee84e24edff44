"""A recording file layer: what was flushed, renamed and removed, in order; and the rule that publishing must follow."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

Step = tuple[str, str]


@contextmanager
def recorded(patch: pytest.MonkeyPatch) -> Iterator[list[Step]]:
    """Yield a list that grows by ("flush", path), ("rename", "from → to") of this process; everything still happens."""
    steps: list[Step] = []
    fsync, rename, replace = os.fsync, os.rename, os.replace

    def note_fsync(descriptor: Any) -> None:
        number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
        steps.append(("flush", str(Path(f"/proc/self/fd/{number}").readlink())))
        fsync(descriptor)

    def note(real: Any) -> Any:
        def move(source: Any, target: Any, **more: Any) -> None:
            real(source, target, **more)
            steps.append(("rename", f"{Path(source).absolute()} → {Path(target).absolute()}"))

        return move

    with patch.context() as patched:
        patched.setattr(os, "fsync", note_fsync)
        patched.setattr(os, "rename", note(rename))
        patched.setattr(os, "replace", note(replace))
        yield steps


def published(steps: list[Step]) -> list[str]:
    """The files that were published, in order. Fails unless each was flushed before its rename, and its folder after it."""
    names = []
    for number, (what, path) in enumerate(steps):
        if what != "rename":
            continue
        source, _, target = path.partition(" → ")
        assert ("flush", source) in steps[:number], f"{target} was renamed into place before it was flushed"
        assert ("flush", str(Path(target).parent)) in steps[number:], (
            f"the folder of {target} was not flushed after the rename"
        )
        assert Path(source).parent == Path(target).parent, (
            f"{target} came from another folder: the rename may not be atomic"
        )
        names.append(target)
    return names
