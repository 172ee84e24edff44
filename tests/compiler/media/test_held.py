"""Pictures that stand for long, and pictures whose size changes midway: what is seen, when, and that sound keeps to it."""

from __future__ import annotations

import itertools
import shutil
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from javisc.compiler.media.edits import Edit
from javisc.compiler.media.encode import fit
from javisc.compiler.media.pictures import PictureClock
from javisc.compiler.media.transcode import Clip, transcode
from javisc.compiler.reasons import Rejected
from javisc.compiler.recipe import PRESETS, Recipe
from support.media import BAND, HEIGHT, Spec, beep_times, decode_pictures, picture, read_number, sound, write
from support.shared import SHARED, need

FAST = PRESETS["jav"].replace(encoder_preset="ultrafast", min_frames=1)
TICK = 1 / 24


def outcome(source: Path, scratch: Path, recipe: Recipe = FAST) -> Clip:
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    return transcode(source, recipe, scratch)


def refusal(source: Path, scratch: Path, recipe: Recipe = FAST) -> Rejected:
    with pytest.raises(Rejected) as caught:
        outcome(source, scratch, recipe)
    return caught.value


def held(
    path: Path,
    times: list[Fraction],
    last: Fraction,
    seconds: float,
    beats: tuple[float, ...] = (),
    form: str = "mp4",
    options: dict[str, str] | None = None,
) -> Path:
    """A clip whose n-th picture shows n and is presented at `times[n]`, the last for `last` seconds, with sound of `seconds`."""
    base = Fraction(1, 12000)
    with av.open(str(path), "w", format=form, options=options or {}) as out:
        video = out.add_stream("libx264", rate=24, options={"preset": "ultrafast", "bf": "0", "g": "6"})
        video.width, video.height, video.pix_fmt = 160, 120, "yuv420p"
        video.codec_context.time_base, video.codec_context.thread_count = base, 1
        audio = out.add_stream("flac" if form == "mp4" else "pcm_s16le", rate=16000, layout="mono")
        packets = []
        for number, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(picture(number % 256, -1), "rgb24")
            frame.pts, frame.time_base = round(time / base), base
            packets += video.encode(frame)
        packets += video.encode(None)
        until = [*times[1:], times[-1] + last]
        for packet, time, end in zip(packets, times, until, strict=True):
            packet.duration = round((end - time) / base)
        block = av.AudioFrame.from_ndarray(sound(16000, seconds, beats)[None], "fltp", "mono")
        block.sample_rate, block.pts, block.time_base = 16000, 0, Fraction(1, 16000)
        tones = [*audio.encode(block), *audio.encode(None)]
        for packet in sorted([*packets, *tones], key=lambda packet: packet.dts * packet.time_base):
            out.mux(packet)
    return path


def shown_at(numbers: list[int]) -> dict[int, float]:
    """When each picture appears, seconds."""
    return {number: list(numbers).index(number) * TICK for number in sorted(set(numbers))}


def beeps(clip: Clip, expected: list[float]) -> list[float]:
    assert clip.flac is not None
    samples, rate = soundfile.read(clip.flac, dtype="float32")
    return beep_times(samples, rate, expected)


STEPS = st.lists(st.sampled_from([1, 2, 3, 12, 40]), min_size=1, max_size=4)


@settings(max_examples=10, deadline=None)
@given(steps=STEPS, last=st.integers(1, 60), fragmented=st.booleans())
def test_what_stts_says_is_shown(
    steps: list[int], last: int, fragmented: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Intervals and the last picture's duration, in 24ths of a second, of any mixture; sound is as long and in its place."""
    folder = tmp_path_factory.mktemp("held")
    times = [Fraction(at, 24) for at in itertools.accumulate(steps, initial=0)]
    total = float(times[-1] + Fraction(last, 24))
    beat = round(total / 2, 3)
    options = {"movflags": "frag_keyframe+empty_moov"} if fragmented else {}
    source = held(folder / "source.mp4", times, Fraction(last, 24), max(total, 0.3), (beat,), options=options)
    clip = outcome(source, folder / "scratch")
    assert clip.mp4 is not None
    numbers = decode_pictures(clip.mp4).numbers
    assert len(numbers) == clip.columns["num_frames"] == round(total * 24)
    assert numbers == [n for n, ticks in enumerate([*steps, last]) for _ in range(ticks)]
    if total > 0.5:
        assert beeps(clip, [beat]) == [pytest.approx(beat, abs=0.002)]


@pytest.mark.parametrize("form", ["mp4", "matroska"])
def test_slides_longer_than_half_a_minute(tmp_path: Path, form: str) -> None:
    times = [Fraction(0), Fraction(1), Fraction(32), Fraction(33)]
    source = held(tmp_path / "source", times, Fraction(1, 24), 33.0, (0.5, 20.0, 32.0), form)
    clip = outcome(source, tmp_path / "scratch")
    assert clip.mp4 is not None
    assert shown_at(decode_pictures(clip.mp4).numbers) == pytest.approx({0: 0, 1: 1, 2: 32, 3: 33})
    assert beeps(clip, [0.5, 20.0, 32.0]) == pytest.approx([0.5, 20.0, 32.0], abs=0.002)
    said = refusal(source, tmp_path / "scratch", FAST.replace(max_hold=30.9))
    assert said.reason == "timestamps" and "--max-hold 30.9" in said.message


def test_the_last_picture_is_held_up_to_max_hold(tmp_path: Path) -> None:
    source = held(tmp_path / "source.mp4", [Fraction(0), Fraction(1, 2)], Fraction(10), 10.5)
    assert outcome(source, tmp_path / "scratch").columns["num_frames"] == 252
    assert outcome(source, tmp_path / "scratch", FAST.replace(max_hold=2.0)).columns["num_frames"] == 60


def test_a_duration_that_no_container_states_is_not_believed(tmp_path: Path) -> None:
    """In MPEG-TS a packet whose stamp is damaged makes FFmpeg reckon with minutes for the picture before it."""
    source = write(Spec("mpegts", audio=None, seconds=0.5, video_options=(("bf", "0"),)), tmp_path / "source.ts")
    with av.open(str(source)) as container:
        stream = container.streams.video[0]
        packets = [packet for packet in container.demux(stream) if packet.size]
        clock = PictureClock(stream, Edit(), None, Fraction(300))
        frames = [frame for packet in packets for frame in packet.decode()] + stream.decode(None)
        frames[-1].duration = 90000 * 200
        for frame in frames:
            clock.stamp(frame)
            list(clock.place(frame))
    assert clock.end - clock.last == Fraction(1, 25)


def test_a_leap_of_half_an_hour_is_no_slide(tmp_path: Path) -> None:
    source = held(tmp_path / "source.mkv", [Fraction(0), Fraction(1), Fraction(1801)], Fraction(1), 3.0, (), "matroska")
    assert refusal(source, tmp_path / "scratch").reason == "timestamps"


def test_case_of_a_last_picture_of_3_s(tmp_path: Path) -> None:
    clip = outcome(need(SHARED / "cases" / "last_picture_3s.mp4"), tmp_path / "scratch")
    assert clip.columns["num_frames"] in (119, 120)
    duration = clip.columns["duration"]
    assert isinstance(duration, float) and duration == pytest.approx(5.0, abs=0.05)


#: (container, codec): streams that may change their size anywhere.
CHANGING = [("mpegts", "libx264"), ("webm", "libvpx"), ("matroska", "mjpeg"), ("mpegts", "mpeg2video")]
BEAT = 1.5


def changing(path: Path, form: str, codec: str, sizes: list[tuple[int, int]]) -> Path:
    """Half a second of each size; pictures count on. The band flashes and a beep sounds at BEAT."""
    with av.open(str(path), "w", format=form) as out:
        pixels = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        video = out.add_stream(codec, rate=24)
        video.width, video.height, video.pix_fmt = *sizes[0], pixels
        audio = out.add_stream("mp2" if form == "mpegts" else "libopus" if form == "webm" else "pcm_s16le", rate=48000)
        audio.layout = "mono"
        packets = []
        for part, (width, height) in enumerate(sizes):
            coder = av.CodecContext.create(codec, "w")
            coder.width, coder.height, coder.pix_fmt = width, height, pixels
            coder.time_base, coder.framerate, coder.thread_count = Fraction(1, 24), Fraction(24), 1
            quick = {
                "libx264": {"preset": "ultrafast", "bf": "0"},
                "libvpx": {"deadline": "realtime", "lag-in-frames": "0"},
            }
            coder.options = {**quick.get(codec, {}), **({"b": "2000000"} if codec != "libx264" else {})}
            for number in range(12 * part, 12 * part + 12):
                time = number / 24
                image = picture(number, -1, width, height)
                if 0 <= time - BEAT < 0.1:
                    image[height - height * BAND // HEIGHT :] = 240
                frame = av.VideoFrame.from_ndarray(image, "rgb24").reformat(format=pixels)
                frame.pts, frame.time_base = number, Fraction(1, 24)
                packets += coder.encode(frame)
            packets += coder.encode(None)
        total = len(sizes) / 2
        wave = (sound(48000, total, (BEAT,)) * 32767).astype(np.int16)
        tones = []
        for at in range(0, len(wave), 960):
            block = av.AudioFrame.from_ndarray(wave[None, at : at + 960], "s16", "mono")
            block.sample_rate, block.pts, block.time_base = 48000, at, Fraction(1, 48000)
            tones += audio.encode(block)
        tones += audio.encode(None)
        for packet in packets:
            packet.stream = video
        for packet in sorted([*packets, *tones], key=lambda packet: (packet.dts or 0) * packet.time_base):
            out.mux(packet)
    return path


@pytest.mark.parametrize(("form", "codec"), CHANGING)
def test_another_size_is_letterboxed(tmp_path: Path, form: str, codec: str) -> None:
    sizes = [(160, 120), (320, 240), (240, 120), (96, 120), (160, 120)]
    clip = outcome(changing(tmp_path / "source", form, codec, sizes), tmp_path / "scratch")
    assert clip.mp4 is not None
    assert (clip.columns["width"], clip.columns["height"]) == (160, 120)
    assert clip.columns["source_size_changes"] == 4
    luma = decode_pictures(clip.mp4).luma
    assert len(luma) == 60
    flash = []
    for tick, image in enumerate(luma):
        width, height = sizes[min(tick // 12, 4)]
        wide, high, left, top = fit(width, height, 160, 120)
        inner = image[top : top + high, left : left + wide]
        if inner.shape[0] >= 60:
            late = codec == "mpeg2video" and tick in (
                11,
                23,
                35,
                47,
            )  # its decoder loses the last picture before a change
            assert read_number(inner) == tick - late, tick
        bars = np.concatenate([image[:, : max(left - 2, 0)].ravel(), image[: max(top - 2, 0)].ravel()])
        assert not bars.size or np.abs(bars.astype(int) - 16).max() <= 3, tick
        flash.append(inner[-inner.shape[0] // 4 :].mean() > 120)
    assert flash.index(True) == round(BEAT * 24)
    assert beeps(clip, [BEAT]) == [pytest.approx(BEAT, abs=0.002)]


def test_a_change_of_size_can_be_refused(tmp_path: Path) -> None:
    source = changing(tmp_path / "source", "matroska", "mjpeg", [(160, 120), (160, 90)])
    said = refusal(source, tmp_path / "scratch", FAST.replace(resized="refuse"))
    assert said.reason == "resized" and "160x120, then 160x90" in said.message
    steady = changing(tmp_path / "steady", "matroska", "mjpeg", [(160, 120), (160, 120)])
    clip = outcome(steady, tmp_path / "scratch", FAST.replace(resized="refuse"))
    assert clip.columns["source_size_changes"] is None


def test_a_change_of_size_below_short_side_keeps_the_shape(tmp_path: Path) -> None:
    """With --short-side, too, pictures of another shape get bars, and those of the same shape none."""
    source = changing(tmp_path / "source", "matroska", "mjpeg", [(320, 240), (160, 120), (240, 120)])
    clip = outcome(source, tmp_path / "scratch", FAST.replace(short_side=64))
    assert clip.mp4 is not None
    assert (clip.columns["width"], clip.columns["height"]) == (84, 64)
    luma = decode_pictures(clip.mp4).luma
    assert read_number(luma[14]) == 14 and read_number(luma[20]) == 20
    assert np.abs(luma[30][:8].astype(int) - 16).max() <= 3


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 2000), st.integers(1, 2000))
def test_fit(wide: int, high: int, width: int, height: int) -> None:
    """Inside, even, in the middle, touching two sides, and of the same shape to a pixel or two."""
    width, height = 2 * width, 2 * height
    w, h, left, top = fit(wide, high, width, height)
    assert 2 <= w <= width and 2 <= h <= height and not any(value % 2 for value in (w, h, left, top))
    assert w == width or h == height
    assert abs(width - w - 2 * left) <= 2 and abs(height - h - 2 * top) <= 2
    scale = min(width / wide, height / high)
    assert abs(w - max(wide * scale, 2)) <= 1 and abs(h - max(high * scale, 2)) <= 1
