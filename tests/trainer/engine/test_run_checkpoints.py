"""A checkpoint is complete or it does not count; it is of this run or it is refused; nothing in it is executed."""

from __future__ import annotations

import os
import pickle
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from javisc.manifests.errors import UserError
from javisc.trainer.engine.checkpoint import MARKER, STATE, Checkpoints, generators, restore_generators
from javisc.trainer.engine.distributed import world


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


def test_another_model_is_refused(tmp_path: Path) -> None:
    with world() as here:
        checkpoints = Checkpoints(tmp_path, here)
        checkpoints.save(1, tensors(), {"step": 1}, wait=True)
        path = checkpoints.path(1)
        with pytest.raises(UserError, match="lacks x"):
            checkpoints.load(path, {**tensors(), "x": torch.zeros(1)})
        with pytest.raises(UserError, match="holds n"):
            checkpoints.load(path, {"w": torch.zeros(5, 3), "b": torch.zeros(2, dtype=torch.bfloat16)})
        with pytest.raises(UserError, match="does not load"):
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
        with pytest.raises(UserError, match="no place in a checkpoint's index"):
            checkpoints.load(path, tensors())
        assert not mark.exists()
        (path / STATE).write_text("{")
        with pytest.raises(UserError, match="no checkpoint of javisc"):
            checkpoints.load(path, tensors())


def test_generators_go_on_where_they_stood() -> None:
    state = generators()
    want = (random.random(), float(np.random.rand()), float(torch.rand(())))
    restore_generators(state)
    assert (random.random(), float(np.random.rand()), float(torch.rand(()))) == want
