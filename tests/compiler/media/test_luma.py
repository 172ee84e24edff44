"""What quality columns are made of, the quick way against the definition: points of the luma, and what changes between them."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from av.video.frame import VideoFrame
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from javisc.compiler.media.luma import LumaSampler
from javisc.compiler.media.quality import PictureStatistics
from javisc.compiler.media.scaling import Scaler

#: Formats whose luma is read where it lies: bytes of a sample, black and white as they are stored.
READ = {
    "yuv420p": (1, 16, 235),
    "yuvj422p": (1, 0, 255),
    "gray": (1, 0, 255),
    "nv12": (1, 16, 235),
    "yuv444p10le": (2, 64, 940),
    "gray12le": (2, 256, 3760),
    "p010le": (2, 64 << 6, 940 << 6),
}
SIZES = [(2, 2), (16, 34), (62, 128), (64, 64), (66, 130), (200, 322), (402, 720)]


def noise(name: str, height: int, width: int, seed: int) -> VideoFrame:
    frame = VideoFrame(width, height, name)
    rng = np.random.default_rng(seed)
    for plane in frame.planes:
        plane.update(rng.integers(0, 256, plane.buffer_size, np.uint8).tobytes())
    return frame


def points(size: int) -> list[int]:
    """The lines or columns that are taken: the middles of 64 parts, or all."""
    step = max(size // 64, 1)
    return [step // 2 + number * step for number in range(64) if step // 2 + number * step < size]


@pytest.mark.parametrize("name", READ)
def test_points_are_those_of_the_plane(name: str) -> None:
    item, black, white = READ[name]
    sampler = LumaSampler()
    for seed, (height, width) in enumerate([*SIZES, *SIZES[::-1]]):
        frame = noise(name, height, width, seed)
        plane = frame.planes[0]
        raw = bytes(plane)
        expected = [
            [
                (int.from_bytes(raw[at : at + item], "little") - black) / (white - black)
                for column in points(width)
                for at in [row * plane.line_size + column * item]
            ]
            for row in points(height)
        ]
        found = sampler(frame)
        assert found.dtype == np.float32 and found == pytest.approx(np.array(expected), rel=1e-5, abs=1e-5)
        assert not np.shares_memory(found, np.frombuffer(plane, np.uint8)), "the decoder will write there again"


@pytest.mark.parametrize("name", ["rgb24", "pal8", "gray16be", "yuv420p10be"])
def test_other_formats_are_converted_first(name: str) -> None:
    sampler = LumaSampler()
    for height, width in ((40, 66), (300, 400)):
        frame = noise(name, height, width, 1)
        grey = Scaler()(frame, width=min(width, 128), height=min(height, 128), format="gray")
        plane = np.frombuffer(grey.planes[0], np.uint8).reshape(-1, grey.planes[0].line_size)  # type: ignore[arg-type]
        expected = plane[np.ix_(points(grey.height), points(grey.width))] / 255
        assert sampler(frame) == pytest.approx(expected, abs=1e-6)


Luma = NDArray[np.float32]
#: How a picture differs from the one before: not at all, in one corner, everywhere, by about what counts as no change.
KINDS = st.lists(
    st.tuples(st.sampled_from(["same", "corner", "all", "near"]), st.integers(0, 9), st.integers(0, 3)), max_size=30
)


def film(height: int, width: int, kinds: list[tuple[str, int, int]]) -> list[tuple[Luma, int]]:
    """Pictures, and for how many ticks each is shown."""
    pictures = [(np.full((height, width), 0.05, np.float32), 1)]
    for kind, seed, shown in kinds:
        rng = np.random.default_rng(seed)
        luma = pictures[-1][0].copy()
        if kind == "corner":
            luma[-3:, -3:] += np.float32(rng.choice([-0.4, 0.02, 0.4]))
        elif kind == "all":
            luma = rng.random((height, width)).astype(np.float32)
        elif kind == "near":
            luma += np.float32((1 + rng.choice([-1e-2, -1e-4, 0, 1e-4, 1e-2])) / 255)
        pictures.append((luma, shown))
    return pictures


@settings(deadline=None, max_examples=40)
@given(st.sampled_from([(64, 64), (7, 5), (60, 64), (33, 50)]), KINDS)
def test_statistics_are_their_definitions(size: tuple[int, int], kinds: list[tuple[str, int, int]]) -> None:
    """Decoding is a picture ahead of showing, as in a build."""
    pictures, statistics = film(*size, kinds), PictureStatistics()
    shown: list[Luma] = []
    for number, (luma, _) in enumerate(pictures):
        statistics.source(luma)
        for _ in range(pictures[number - 1][1] if number else 0):
            shown.append(pictures[number - 1][0])
            statistics.shown(shown[-1])
    for _ in range(pictures[-1][1]):
        shown.append(pictures[-1][0])
        statistics.shown(shown[-1])

    rows, columns = max(size[0] // 8, 1), max(size[1] // 8, 1)
    repeats = 0
    for (before, _), (after, _) in pairwise(pictures):
        whole = np.abs(after - before)[: size[0] // rows * rows, : size[1] // columns * columns]
        tiles = whole.reshape(size[0] // rows, rows, -1, columns).mean(axis=(1, 3))
        repeats += bool(tiles.max() < 1 / 255)
    changes = [0.0 if a is b else float(np.abs(b - a).mean()) for a, b in pairwise(shown)]
    told = statistics.columns()
    assert told["still_ratio"] == (repeats / (len(pictures) - 1) if len(pictures) > 1 else 1.0)
    assert told["black_ratio"] == (np.mean([(each < 0.1).mean() >= 0.98 for each in shown]) if shown else 0.0)
    assert told["motion"] == (sum(changes) / (len(shown) - 1) if len(shown) > 1 else 0.0)
    steps = zip([0.0, *changes], changes)
    assert told["scene_cuts"] == sum(min(change, abs(change - before)) > 0.1 for before, change in steps)
