"""Loading killed for good at random points and resumed, by other worlds and numbers of threads: not a byte is different."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path
from typing import Any

import pytest

from support import compiled
from support.loading import EPOCHS, Life, Part, opened, part

KILLS = random.Random(os.environ.get("JAVISC_TEST_SEED"))  # other places in every run of the suite; pytest shows them
LENGTHS = [20 + (7 * clip) % 45 for clip in range(23)]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled.write(tmp_path_factory.mktemp("killed") / "ds", LENGTHS, size=(36, 52))


def undisturbed(dataset: Path, world: int) -> list[list[Part]]:
    """What each rank gets of a run that nobody disturbs, one process after the other."""
    out = []
    for rank in range(world):
        with opened(dataset, rank, world, 2) as loader:
            out.append([part(loaded, loader.state_dict()) for _ in range(EPOCHS) for loaded in loader])
    return out


@pytest.fixture(scope="module")
def contents(dataset: Path) -> dict[tuple[int, int], str]:
    """(epoch, row) → digest of its tensors. A clip's content depends on nothing else, so it holds for every world."""
    found = {(done.epoch, row): digest for done in undisturbed(dataset, 1)[0] for row, digest in done.clips}
    assert len(found) == EPOCHS * len(LENGTHS) == len(set(found.values()))
    return found


@pytest.mark.dist
@pytest.mark.parametrize("worlds", [(1, 1, 1), (2, 2, 2), (3, 3), (1, 3, 2, 1), (2, 1, 3)], ids=str)
def test_killed_and_resumed_is_the_run_that_was_not(
    dataset: Path, contents: dict[tuple[int, int], str], tmp_path: Path, worlds: tuple[int, ...]
) -> None:
    """A run goes on from the last step that every rank has finished, as from a checkpoint of that step."""
    state: dict[str, Any] | None = None
    kept: list[list[Part]] = [[] for _ in range(max(worlds))]
    told = []
    for number, world in enumerate(worlds):
        threads = KILLS.randint(1, 3)
        life = Life(dataset, tmp_path / str(number), world, threads, state)
        last = number == len(worlds) - 1
        if not last:
            after, delay = KILLS.randint(1, 5), KILLS.uniform(0, 0.06)
            told.append((world, threads, after, delay))
            life.kill(after, delay)
        parts = life.parts()
        assert life.codes == [0 if last else -signal.SIGKILL] * world, told
        for rank in parts:  # what was loaded and then lost to the kill was right too
            assert all(contents[done.epoch, row] == digest for done in rank for row, digest in done.clips), told
        finished = min(len(rank) for rank in parts)
        assert not last or {len(rank) for rank in parts} == {finished}
        for rank, done in enumerate(parts):
            kept[rank] += done[:finished]
        if finished:
            states = [rank[finished - 1].state for rank in parts]
            assert all(other == states[0] for other in states), told
            state = states[0]
    got = sorted((done.epoch, row) for rank in kept for done in rank for row, _ in done.clips)
    assert got == sorted(contents), told
    if len(set(worlds)) == 1:
        whole = [[(done.epoch, done.step, done.clips) for done in rank] for rank in undisturbed(dataset, worlds[0])]
        assert [[(done.epoch, done.step, done.clips) for done in rank] for rank in kept] == whole, told


def test_a_change_of_world_is_the_same_whether_killed_or_not(dataset: Path) -> None:
    """The batches after a change are a function of how many steps which world has taken, not of who asks, or how often."""
    with opened(dataset, 0, 1, 1) as loader:
        for _, loaded in zip(range(3), loader):
            state = part(loaded, loader.state_dict()).state
    for world in (2, 3):
        for rank in range(world):
            seen = []
            for threads in (1, 3):
                with opened(dataset, rank, world, threads) as loader:
                    loader.load_state_dict(state)
                    seen.append([part(loaded, loader.state_dict()) for loaded in loader])
            assert seen[0] == seen[1] and seen[0]
