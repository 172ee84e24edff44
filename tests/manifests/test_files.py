"""A folder is published whole or stays what it was, wherever its writer is killed."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest

from javisc.manifests import files
from javisc.manifests.files import kept_folder, published, published_folder, recover_folder

PARTS = 6


def write(folder: Path, generation: int) -> None:
    with published_folder(folder) as new:
        for part in range(PARTS):
            (new / f"part-{part}").write_text(str(generation) * 20_000)


def generations(folder: Path) -> set[str]:
    assert len(list(folder.iterdir())) == PARTS
    contents = {(folder / f"part-{part}").read_text() for part in range(PARTS)}
    assert all(content == content[:1] * 20_000 for content in contents)
    return {content[:1] for content in contents}


def test_it_takes_the_place_of_the_old_one_and_leaves_nothing(tmp_path: Path) -> None:
    for generation in (1, 2):
        write(tmp_path / "best", generation)
        assert generations(tmp_path / "best") == {str(generation)}
        assert [path.name for path in tmp_path.iterdir()] == ["best"]


def test_an_error_leaves_the_old_one(tmp_path: Path) -> None:
    write(tmp_path / "best", 1)
    with pytest.raises(OSError, match="full"), published_folder(tmp_path / "best") as new:
        (new / "part-0").write_text("2")
        raise OSError("full")
    assert generations(tmp_path / "best") == {"1"} and [path.name for path in tmp_path.iterdir()] == ["best"]


@pytest.mark.parametrize("can_exchange", [True, False])
def test_killed_anywhere_it_is_one_generation(
    can_exchange: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forked writers are killed at random; where names cannot be exchanged, what was moved away is found again."""
    if not can_exchange:
        monkeypatch.setattr(files, "_exchanged", lambda one, other: False)
    folder, draws = tmp_path / "best", random.Random(os.environ.get("JAVISC_TEST_SEED"))
    write(folder, 0)
    for _ in range(50):
        child = os.fork()
        if child == 0:
            for generation in range(1, 10**6):
                write(folder, generation % 10)
        time.sleep(draws.uniform(0, 0.02))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        place = folder if folder.exists() else kept_folder(folder)
        assert can_exchange <= (place == folder)
        assert len(generations(place)) == 1
        recover_folder(folder)
        assert len(generations(folder)) == 1 and not list(tmp_path.glob(".best.*.tmp"))


def test_who_cannot_be_written_has_the_name_that_was_given(tmp_path: Path) -> None:
    (tmp_path / "out.csv").mkdir()
    with pytest.raises(OSError) as told, published(tmp_path / "out.csv") as temporary:
        temporary.touch()
    assert told.value.filename == str(tmp_path / "out.csv")
