"""A checkpoint is complete or it does not count; it is of this run or it is refused; nothing in it is executed."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.distributed.checkpoint import FileSystemReader

from javisc.manifests.errors import UserError
from javisc.trainer.engine.checkpoint import MARKER, STATE, Checkpoints, Damaged, find, generators, restore_generators
from javisc.trainer.engine.distributed import world
from support.operated import sign


def tensors(value: float = 1.0) -> dict[str, torch.Tensor]:
    return {
        "w": torch.full((5, 3), value),
        "n": torch.tensor(int(value)),
        "b": torch.full((2,), value, dtype=torch.bfloat16),
    }


def test_round_trip_prune_and_newest(tmp_path: Path) -> None:
    with world() as here:
        checkpoints = Checkpoints(tmp_path / "c", here, keep=2)
        assert checkpoints.newest() is None
        changing = tensors(0)
        for step in (1, 2, 3):
            for value in changing.values():
                value.fill_(step)
            checkpoints.save(step, changing, {"step": step})
            for value in changing.values():
                value.fill_(-1)  # the background must not see this
        checkpoints.finish()
        assert [path.name for path in checkpoints.complete()] == ["step-00000002", "step-00000003"]
        newest = checkpoints.newest()
        assert newest is not None
        got = tensors(0)
        assert checkpoints.load(newest, got) == {"step": 3}
        assert all(bool((value == 3).all()) for value in got.values())


def test_without_its_marker_a_checkpoint_does_not_count(tmp_path: Path) -> None:
    with world() as here:
        checkpoints = Checkpoints(tmp_path, here)
        for step in (1, 2):
            checkpoints.save(step, tensors(step), {"step": step}, wait=True)
        (checkpoints.path(2) / MARKER).unlink()
        assert checkpoints.newest() == checkpoints.path(1)
        checkpoints.discard_incomplete()
        assert not checkpoints.path(2).exists() and checkpoints.path(1).exists()


def test_what_somebody_copied_beside_checkpoints_is_left_alone(tmp_path: Path) -> None:
    with world() as here:
        checkpoints = Checkpoints(tmp_path, here, keep=1)
        checkpoints.save(4, tensors(4), {"step": 4}, wait=True)
        for name in ("step-00000004 (copy)", "step-4-old", "step-notes"):
            shutil.copytree(checkpoints.path(4), tmp_path / name)
        (tmp_path / "step-notes" / MARKER).unlink()
        checkpoints.save(5, tensors(5), {"step": 5}, wait=True)
        checkpoints.discard_incomplete()
        assert checkpoints.newest() == checkpoints.path(5) and checkpoints.complete() == [checkpoints.path(5)]
        there = {path.name for path in tmp_path.iterdir()}
        assert there == {"step-00000004 (copy)", "step-4-old", "step-notes", "step-00000005"}


def test_another_model_is_refused(tmp_path: Path) -> None:
    with world() as here:
        checkpoints = Checkpoints(tmp_path, here)
        checkpoints.save(1, tensors(), {"step": 1}, wait=True)
        path = checkpoints.path(1)
        with pytest.raises(UserError, match="lacks x"):
            checkpoints.load(path, {**tensors(), "x": torch.zeros(1)})
        with pytest.raises(UserError, match="holds n"):
            checkpoints.load(path, {"w": torch.zeros(5, 3), "b": torch.zeros(2, dtype=torch.bfloat16)})
        with pytest.raises(UserError, match=r"w is \[5, 3\] in it, here \[5, 4\]"):
            checkpoints.load(path, {**tensors(), "w": torch.zeros(5, 4)})


def test_a_hostile_or_broken_index_is_refused(tmp_path: Path) -> None:
    mark = tmp_path / "mark"

    class Evil:
        def __reduce__(self) -> object:
            return os.system, (f"touch {mark}",)

    with world() as here:
        checkpoints = Checkpoints(tmp_path / "c", here)
        checkpoints.save(1, tensors(), {"step": 1}, wait=True)
        path = checkpoints.path(1)
        (path / ".metadata").write_bytes(pickle.dumps(Evil()))
        with pytest.raises(Damaged, match=r"\.metadata has \d+ bytes, \d+ were written"):
            checkpoints.load(path, tensors())
        sign(path)  # whoever writes the index writes the marker, too
        with pytest.raises(Damaged, match="no place in a checkpoint's index"):
            checkpoints.load(path, tensors())
        assert not mark.exists()
        (path / STATE).write_text("{")
        sign(path)
        with pytest.raises(Damaged, match="damaged"):
            checkpoints.load(path, tensors())
        (path / MARKER).write_text(json.dumps({"world": 1, "files": {"../../x": 1}}))
        with pytest.raises(Damaged, match=r"names '\.\./\.\./x'"):
            checkpoints.load(path, tensors())


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2])


def flip(path: Path) -> None:
    """Turn a bit in the middle: the size stays."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def claim(path: Path) -> None:
    """Let the index tell of a tensor that is larger than any memory, under a marker that fits."""
    index = FileSystemReader(path).read_metadata()
    index.state_dict_metadata["w"].size = torch.Size([1 << 45])  # type: ignore[union-attr]
    (path / ".metadata").write_bytes(pickle.dumps(index))
    sign(path)


def listed(path: Path) -> None:
    """A state that is no mapping, under a marker that fits."""
    (path / STATE).write_text("[1]")
    sign(path)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "index claims": claim,
    "state a list": listed,
    "tensors cut": lambda path: cut(next(path.glob("*.distcp"))),
    "tensors gone": lambda path: next(path.glob("*.distcp")).unlink(),
    "index cut": lambda path: cut(path / ".metadata"),
    "index gone": lambda path: (path / ".metadata").unlink(),
    "state cut": lambda path: cut(path / STATE),
    "state gone": lambda path: (path / STATE).unlink(),
    "state empty": lambda path: (path / STATE).write_text(""),
    "marker cut": lambda path: cut(path / MARKER),
    "marker of nothing": lambda path: (path / MARKER).write_text("[]"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with world() as here:
        checkpoints = Checkpoints(tmp_path, here)
        for step in (1, 2, 3):
            checkpoints.save(step, tensors(step), {"step": step}, wait=True)
        DAMAGES[damage](checkpoints.path(3))
        got = tensors(0)
        state, path = checkpoints.resume(got)
        assert (state["step"], path) == (2, checkpoints.path(2)) and bool((got["w"] == 2).all())
        # What cannot be read does not come back at the next resume, and is not deleted either.
        assert checkpoints.newest() == path and (tmp_path / "aside" / "step-00000003").is_dir()
        told = capsys.readouterr().err
        assert "warning" in told and "step-00000003 is damaged" in told and "aside" in told
        for older in (1, 2):
            DAMAGES["tensors gone"](checkpoints.path(older))
        with pytest.raises(UserError, match="none of its 2 checkpoints can be read; give another with --from"):
            checkpoints.resume(got)


def test_of_another_model_none_is_taken(tmp_path: Path) -> None:
    """A mistake is no damage: falling back would hide it."""
    with world() as here:
        checkpoints = Checkpoints(tmp_path, here)
        for step in (1, 2):
            checkpoints.save(step, tensors(step), {"step": step}, wait=True)
        with pytest.raises(UserError, match=r"step-00000002 lacks x"):
            checkpoints.resume({**tensors(), "x": torch.zeros(1)})
        assert len(checkpoints.complete()) == 2


def test_from_names_a_step_a_folder_or_a_run(tmp_path: Path) -> None:
    run, other = tmp_path / "run", tmp_path / "other"
    with world() as here:
        for folder, steps in ((run, (1, 2)), (other, (5, 7))):
            checkpoints = Checkpoints(folder / "checkpoints", here)
            for step in steps:
                checkpoints.save(step, tensors(step), {"step": step}, wait=True)
    assert find(run, "1") == run / "checkpoints" / "step-00000001"
    assert find(run, str(other)) == other / "checkpoints" / "step-00000007"
    assert find(run, str(other / "checkpoints" / "step-00000005")).name == "step-00000005"
    for wrong in ("3", str(tmp_path), "nowhere", "-1"):
        with pytest.raises(UserError, match=rf"--from {wrong}: no complete checkpoint is there; .* has the steps 1, 2"):
            find(run, wrong)


def test_generators_go_on_where_they_stood() -> None:
    state = generators()
    want = (random.random(), float(np.random.rand()), float(torch.rand(())))
    restore_generators(state)
    assert (random.random(), float(np.random.rand()), float(torch.rand(()))) == want


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("torch.distributed.checkpoint.filesystem", "Path.home"),
        ("torch.distributed.checkpoint.filesystem", "FileSystemReader.__init__"),
        ("torch.distributed.checkpoint.metadata", "Metadata.__class__"),
        ("torch.distributed.checkpoint.filesystem", "os.system"),
        ("torch.distributed.checkpoint.filesystem", "pickle"),
        ("torch", "load"),
        ("torch", "float32.__class__"),
        ("pathlib", "Path.home"),
        ("builtins", "eval"),
    ],
)
def test_names_with_dots_reach_nothing_behind_the_names_that_are_known(module: str, name: str, tmp_path: Path) -> None:
    """From protocol 4 on a pickle may name an attribute of what it imports."""

    def short(text: str) -> bytes:
        return b"\x8c" + bytes([len(text)]) + text.encode()

    with world() as here:
        checkpoints = Checkpoints(tmp_path / "c", here)
        checkpoints.save(1, tensors(), {"step": 1}, wait=True)
        path = checkpoints.path(1)
        (path / ".metadata").write_bytes(b"\x80\x04" + short(module) + short(name) + b"\x93.")
        sign(path)
        with pytest.raises(Damaged, match="no place in a checkpoint's index"):
            checkpoints.load(path, tensors())
