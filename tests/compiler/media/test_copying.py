"""A stream that is already what the recipe makes is copied; one that only looks like it is not."""

from __future__ import annotations

from pathlib import Path

import av
import pytest

from javisc.compiler.media.transcode import Clip, transcode
from javisc.compiler.recipe import PRESETS
from support.media import Spec, write

JAV = PRESETS["jav"]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Clip:
    folder = tmp_path_factory.mktemp("compiled")
    return transcode(write(Spec(fps="30", seconds=2.0), folder / "source.mp4"), JAV, folder)


def joined(clip: Clip, path: Path, video_options: dict[str, str] | None = None, **container: str) -> Path:
    """The compiled picture with sound beside it in one MP4, copied or (with options) encoded again."""
    assert clip.mp4 is not None and clip.flac is not None
    with (
        av.open(str(clip.mp4)) as picture,
        av.open(str(clip.flac)) as sound,
        av.open(str(path), "w", options=dict(container)) as out,
    ):
        source = picture.streams.video[0]
        if video_options is None:
            video = out.add_stream_from_template(source)
        else:
            video = out.add_stream("libx264", rate=24, options=video_options)
            video.width, video.height, video.pix_fmt = source.width, source.height, "yuv420p"
        audio = out.add_stream("aac", rate=16000, layout="mono")
        if video_options is None:
            for packet in picture.demux(source):
                if packet.size:
                    packet.stream = video
                    out.mux(packet)
        else:
            for frame in picture.decode(video=0):
                frame.pict_type = 0
                out.mux(video.encode(frame))
            out.mux(video.encode(None))
        for block in sound.decode(audio=0):
            out.mux(audio.encode(block))
        out.mux(audio.encode(None))
    return path


def packets(path: Path | None) -> list[bytes]:
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(container.streams.video[0]) if packet.size]


def test_what_the_recipe_made_is_copied(compiled: Clip, tmp_path: Path) -> None:
    source = joined(compiled, tmp_path / "joined.mp4", use_editlist="0", avoid_negative_ts="disabled")
    again = transcode(source, JAV, tmp_path)
    assert again.columns["copied"] is True and compiled.columns["copied"] is False
    assert packets(again.mp4) == packets(compiled.mp4)
    kept = ("num_frames", "num_samples", "height", "width", "duration")
    assert [again.columns[name] for name in kept] == [compiled.columns[name] for name in kept]
    assert again.mp4 is not None and b"edts" not in again.mp4.read_bytes()


OTHERS: list[dict[str, object]] = [
    {"crf": 21},
    {"encoder_preset": "veryfast"},
    {"fps": "25"},
    {"gop": 6},
    {"short_side": 64},
]


@pytest.mark.parametrize("change", OTHERS)
def test_other_recipes_encode_it(compiled: Clip, tmp_path: Path, change: dict[str, object]) -> None:
    source = joined(compiled, tmp_path / "joined.mp4", use_editlist="0", avoid_negative_ts="disabled")
    assert transcode(source, JAV.replace(**change), tmp_path).columns["copied"] is False


def test_a_cut_and_a_window_encode_it(compiled: Clip, tmp_path: Path) -> None:
    source = joined(compiled, tmp_path / "joined.mp4", use_editlist="0", avoid_negative_ts="disabled")
    short = transcode(source, JAV.replace(max_seconds=1.0), tmp_path)
    assert short.columns["copied"] is False and short.columns["num_frames"] == 24
    assert transcode(source, JAV, tmp_path, window=(0.0, 1.0)).columns["copied"] is False


def test_lookalikes_are_encoded(compiled: Clip, tmp_path: Path) -> None:
    options = {"preset": "superfast", "crf": "22", "profile": "high", "g": "12", "bf": "0", "sc_threshold": "0"}
    assert transcode(joined(compiled, tmp_path / "look.mp4", options), JAV, tmp_path).columns["copied"] is False
    source = joined(compiled, tmp_path / "joined.mp4", use_editlist="0", avoid_negative_ts="disabled")
    content = bytearray(source.read_bytes())
    note = content.index(b"crf=")
    content[note + 4 : note + 6] = b"10"
    source.write_bytes(content)
    assert transcode(source, JAV, tmp_path).columns["copied"] is False
