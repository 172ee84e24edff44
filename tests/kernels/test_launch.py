"""Launches fit the grid; head dims are covered without padding to the next power of two."""

import pytest

from javisc.kernels import launch


def test_launches_cover_every_program_once(monkeypatch):
    monkeypatch.setattr(launch, "MAX_PROGRAMS", 7)
    for programs in (0, 1, 6, 7, 8, 14, 23):
        seen = [first + i for first, count in launch.launches(programs) for i in range(count)]
        assert seen == list(range(programs))
        assert all(0 < count <= 7 for _, count in launch.launches(programs))


@pytest.mark.parametrize(
    "head_dim, tiles",
    [
        (8, (16, 0)),
        (32, (32, 0)),
        (40, (32, 16)),
        (64, (64, 0)),
        (72, (64, 16)),
        (96, (64, 32)),
        (112, (128, 0)),
        (128, (128, 0)),
    ],
)
def test_head_tiles(head_dim, tiles):
    assert launch.head_tiles(head_dim) == tiles
