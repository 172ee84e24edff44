"""Windows of a film whose decoder goes on from one to the next: the bytes and columns of each by itself, whatever came before."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from javisc.compiler.media import onward
from javisc.compiler.media.transcode import transcode
from javisc.compiler.reasons import Rejected
from javisc.compiler.recipe import PRESETS
from support.media import Spec, write

Window = tuple[float, float]
Everything = dict[Window, Any]
X264 = (("g", "40"), ("sc_threshold", "0"), ("bf", "2"))
BASE = Spec(seconds=12.0, size=(96, 64), video_options=X264)
FILMS = {
    "closed.mp4": replace(BASE, fps="30000/1001", audio_late=0.4),
    "far.mkv": replace(BASE, container="matroska", video_options=(*X264[1:], ("g", "9999"))),
    "open.mkv": replace(BASE, container="matroska", video_options=(*X264, ("x264-params", "open-gop=1"))),
    "woven.mp4": replace(BASE, video_options=(*X264, ("flags", "+ildct+ilme"))),
    "hevc.mp4": replace(
        BASE, video="libx265", video_options=(("x265-params", "log-level=0:keyint=40:open-gop=0:scenecut=0:pools=1"),)
    ),
    "vp9.webm": replace(
        BASE, size=(97, 65), container="webm", video="libvpx-vp9", audio="libopus", rate=48000,
        video_options=(("g", "40"), ("deadline", "realtime"), ("cpu-used", "8")),
    ),
}  # fmt: skip
#: Side by side over key frames and not, with a gap, overlapping by less than is held and by more, far on, and back.
WINDOWS = [(4.5, 5.5), (5.5, 6.2), (6.2, 7.0), (7.8, 8.4), (8.3, 9.0), (8.5, 9.2), (5.5, 6.2), (11.0, 11.5), (1.0, 2.0)]


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("films")
    for name, spec in FILMS.items():
        write(spec, folder / name)
    return folder


@pytest.fixture(scope="module")
def apart(films: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Everything]:
    """What becomes of every window of a film where nothing came before."""
    known: dict[str, Everything] = {}

    def found(name: str) -> Everything:
        if name not in known:
            known[name] = each_apart(films / name, WINDOWS, tmp_path_factory.mktemp("apart"))
        return known[name]

    return found


def each_apart(film: Path, windows: Sequence[Window], folder: Path) -> Everything:
    found = {}
    for window in windows:
        onward.forget()
        found[window] = made(film, window, folder)
    onward.forget()
    return found


def made(film: Path, window: Window, folder: Path) -> Any:
    """Everything that becomes of a window."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        clip = transcode(film, PRESETS["jav"], folder, window=window)
    except Rejected as error:
        return error.reason, error.message
    return {end: path.read_bytes() for end, path in clip.files.items()}, clip.columns


@pytest.fixture
def went_on(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of every window that found an open decoder, whether that went on."""
    found: list[bool] = []
    takes = onward.Onward._takes

    def counted(self: onward.Onward, *given: Any) -> bool:
        found.append(takes(self, *given))
        return found[-1]

    monkeypatch.setattr(onward.Onward, "_takes", counted)
    return found


@pytest.mark.parametrize(("name", "times"), [
    ("closed.mp4", 5), ("far.mkv", 5), ("hevc.mp4", 5), ("vp9.webm", 5), ("open.mkv", 1), ("woven.mp4", 0),
])  # fmt: skip
def test_a_window_is_the_same_whatever_came_before(
    films: Path, apart: Callable[[str], Everything], tmp_path: Path, name: str, times: int, went_on: list[bool]
) -> None:
    for window, expected in list(apart(name).items())[: None if times else 3]:
        assert isinstance(expected[0], dict), expected
        assert made(films / name, window, tmp_path / "clip") == expected, window
    assert sum(went_on) >= times and any(went_on) == bool(times)


@settings(deadline=None, max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(given_windows=st.lists(st.sampled_from(WINDOWS), min_size=2, max_size=4))
def test_any_order_gives_the_same(
    films: Path, apart: Callable[[str], Everything], tmp_path: Path, given_windows: list[Window]
) -> None:
    for window in given_windows:
        assert made(films / "closed.mp4", window, tmp_path / "clip") == apart("closed.mp4")[window]


@pytest.mark.parametrize("name", ["closed.mp4", "hevc.mp4"])
def test_damage_is_that_of_the_window_by_itself(films: Path, tmp_path: Path, name: str) -> None:
    """In a key frame, before one and after one, of the picture alone: what is concealed, too, is concealed as ever."""
    film = tmp_path / name
    content = bytearray((films / name).read_bytes())
    with av.open(str(films / name)) as container:
        coded = [packet for packet in container.demux(video=0) if packet.size]
    keys = [place for place, packet in enumerate(coded) if packet.is_keyframe]
    for place in (keys[3] + 1, keys[4], keys[5] - 2):
        middle = coded[place].pos + coded[place].size // 2
        content[middle : middle + 6] = bytes(255 - byte for byte in content[middle : middle + 6])
    film.write_bytes(content)
    expected = each_apart(film, WINDOWS[:4], tmp_path / "clip")
    for window, one in expected.items():
        assert made(film, window, tmp_path / "clip") == one, window


@pytest.mark.parametrize("name", list(FILMS))
def test_pictures_that_reset_are_told_from_others(films: Path, name: str) -> None:
    """All key frames of closed groups of pictures; of open ones the first alone."""
    with av.open(str(films / name)) as container:
        context = container.streams.video[0].codec_context
        coded = [packet for packet in container.demux(video=0) if packet.size]
        resets = [onward._Coded(packet, context).resets for packet in coded]
        assert all(onward._Coded(packet, context).plain for packet in coded)
    keys = [packet.is_keyframe for packet in coded]
    assert resets == ([True] + [False] * (len(keys) - 1) if name == "open.mkv" else keys)
    assert sum(keys) > 1 or name == "far.mkv"
