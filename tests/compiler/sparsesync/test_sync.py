"""Flash-and-beep clips of known event times in many containers and codecs: every picture and sound keeps its time."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import soundfile

from javisc.compiler.media.transcode import Clip, transcode
from javisc.compiler.recipe import PRESETS
from support.media import BEATS, SECONDS, Spec, beep_times, decode_pictures, ffmpeg, write

JAV = PRESETS["jav"].replace(encoder_preset="ultrafast")
B_FRAMES = (("preset", "veryfast"), ("bf", "3"), ("g", "30"))
NO_B = (("preset", "veryfast"), ("bf", "0"))
HEVC = (("preset", "ultrafast"), ("x265-params", "log-level=error:pools=none"))
VP9 = (("deadline", "realtime"), ("cpu-used", "8"), ("crf", "20"), ("b", "1000000"))
FRAGMENTS = (("movflags", "frag_keyframe+empty_moov+default_base_moof"),)
FRAGMENTS_LATER = (("movflags", "frag_keyframe+delay_moov"),)
_STEPS = np.random.default_rng(0).integers(1000, 9000, 100)
VARIABLE = tuple(Fraction(int(at), 90000) for at in np.concatenate([[0], np.cumsum(_STEPS)]) if at < SECONDS * 90000)

CASES = {
    "mp4-h264b-aac-24": Spec(fps="24", video_options=B_FRAMES),
    "mp4-h264-aac-25": Spec(rate=48000, video_options=NO_B),
    "mp4-h264b-mp3-25": Spec(audio="libmp3lame", video_options=B_FRAMES),
    "mp4-h264b-opus-25": Spec(audio="libopus", rate=48000, video_options=B_FRAMES),
    "mp4-hevc-aac-59.94": Spec(video="libx265", fps="60000/1001", rate=48000, video_options=HEVC),
    "mp4-vfr": Spec(times=VARIABLE, video_options=B_FRAMES),
    "mp4-late-audio": Spec(audio_late=0.4, video_options=B_FRAMES),
    "mp4-late-video": Spec(video_late=0.5, video_options=B_FRAMES),
    "fragmented-h264b-aac-30": Spec(fps="30", video_options=B_FRAMES, format_options=FRAGMENTS),
    "fragmented-h264-aac-12": Spec(fps="12", video_options=NO_B, format_options=FRAGMENTS_LATER),
    "mov-mpeg4-pcm-29.97": Spec("mov", "mpeg4", "pcm_s16le", "30000/1001", 22050),
    "mov-h264b-aac-23.976": Spec("mov", fps="24000/1001", video_options=B_FRAMES),
    "mov-late-audio-pcm": Spec("mov", audio="pcm_s16le", audio_late=0.4, video_options=B_FRAMES),
    "mkv-hevc10-opus-24": Spec("matroska", "libx265", "libopus", "24", 48000, pixels="yuv420p10le", video_options=HEVC),
    "mkv-h264b-aac-60": Spec("matroska", fps="60", video_options=B_FRAMES),
    "mkv-vp9-opus-30": Spec("matroska", "libvpx-vp9", "libopus", "30", 48000, video_options=VP9),
    "mkv-h264b-mp3-25": Spec("matroska", audio="libmp3lame", video_options=B_FRAMES),
    "mkv-h264b-flac-50": Spec("matroska", audio="flac", fps="50", video_options=B_FRAMES),
    "mkv-vfr": Spec("matroska", times=VARIABLE, video_options=B_FRAMES),
    "mkv-late-audio": Spec("matroska", audio_late=0.4, video_options=B_FRAMES),
    "mkv-late-video": Spec("matroska", video_late=0.5, video_options=B_FRAMES),
    "webm-vp9-opus-25": Spec("webm", "libvpx-vp9", "libopus", "25", 48000, video_options=VP9),
    "webm-vfr": Spec("webm", "libvpx-vp9", "libopus", "30", 48000, times=VARIABLE, video_options=VP9),
    "webm-late-audio": Spec("webm", "libvpx-vp9", "libopus", "25", 48000, audio_late=0.4, video_options=VP9),
    "avi-h264-pcm-30": Spec("avi", audio="pcm_s16le", fps="30", video_options=NO_B),
    "avi-h264b-mp3-24": Spec("avi", audio="libmp3lame", fps="24", video_options=B_FRAMES),
    "avi-mpeg4b-pcm-25": Spec("avi", "mpeg4", "pcm_s16le", "25", 48000, video_options=(("bf", "2"),)),
    "avi-mpeg4-pcm-15": Spec("avi", "mpeg4", "pcm_s16le", "15", 8000),
    "ts-h264b-aac-25": Spec("mpegts", video_options=B_FRAMES),
    "ts-mpeg2-mp2-29.97": Spec("mpegts", "mpeg2video", "mp2", "30000/1001", 48000),
    "ts-mpeg2b-mp2-25": Spec("mpegts", "mpeg2video", "mp2", "25", 48000, video_options=(("bf", "2"),)),
    "ts-h264b-ac3-50": Spec("mpegts", audio="ac3", fps="50", rate=48000, video_options=B_FRAMES),
    "ts-hevc-opus-30": Spec("mpegts", "libx265", "libopus", "30", 48000, video_options=HEVC),
    "ts-late-audio": Spec("mpegts", audio_late=0.4, video_options=B_FRAMES),
    "ts-late-video": Spec("mpegts", video_late=0.5, video_options=B_FRAMES),
    "mpg-mpeg2b-mp2-25": Spec("vob", "mpeg2video", "mp2", "25", 48000, video_options=(("bf", "2"),)),
    "flv-h264b-mp3-25": Spec("flv", audio="libmp3lame", video_options=B_FRAMES),
}
#: AVI does not say by how much MP3's encoder delays the sound.
SOUND_TOLERANCE = {"avi-h264b-mp3-24": 0.030}


def check_clock(
    clip: Clip, times: list[Fraction], *, audio_late: float = 0.0, zero: float | None = None, tolerance: float = 0.002
) -> None:
    """Every picture within half a tick + 1 ms of its true time, every beep within `tolerance`, lengths exact.

    `times` are the true times of the pictures, `zero` that of the sample's start: the first picture's unless given.
    """
    assert clip.mp4 is not None and clip.flac is not None
    numbers = decode_pictures(clip.mp4).numbers
    samples, rate = soundfile.read(clip.flac, dtype="float32")
    assert len(numbers) == clip.columns["num_frames"]
    assert len(samples) == clip.columns["num_samples"] == round(len(numbers) * 16000 / 24)
    start = float(times[0]) if zero is None else zero
    assert numbers == sorted(numbers), "pictures went backwards"
    appeared = -1
    for tick, number in enumerate(numbers):
        for index in range(appeared + 1, number + 1):
            true = float(times[index]) - start
            if true > 0:
                assert abs(tick / 24 - true) <= 0.5 / 24 + 0.001, (
                    f"picture {index} of {true:.4f} s appears at tick {tick}"
                )
        appeared = number
    end = float(times[-1]) - start
    assert numbers[-1] == len(times) - 1 and len(numbers) / 24 > end
    expected = [
        beat + audio_late - start for beat in BEATS if 0.05 < beat + audio_late - start < len(numbers) / 24 - 0.05
    ]
    assert len(expected) >= 2
    found = beep_times(samples, rate, expected)
    assert np.allclose(found, expected, rtol=0, atol=tolerance), (
        f"beeps off by {np.subtract(found, expected) * 1000} ms"
    )


@pytest.mark.parametrize("name", CASES)
def test_pictures_and_sounds_keep_their_times(name: str, tmp_path: Path) -> None:
    spec = CASES[name]
    source = write(spec, tmp_path / "source")
    clip = transcode(source, JAV, tmp_path)
    late = Fraction(spec.video_late)
    times = [time + late for time in spec.frame_times]
    check_clock(clip, times, audio_late=spec.audio_late, tolerance=SOUND_TOLERANCE.get(name, 0.002))
    assert clip.columns["source_decoded_frames"] == len(times)
    assert clip.columns["source_vfr"] == (spec.times is not None)
    if spec.times is None:
        assert clip.columns["source_fps"] == pytest.approx(float(Fraction(spec.fps)), rel=3e-4)
    if spec.audio_late:
        assert clip.columns["pad_head"] == pytest.approx(0.4 * 16000, abs=0.03 * 16000)


@pytest.fixture(scope="module")
def encoded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `src.mp4`, `src.mkv`, `src.ts`: 25 fps, B-frames, AAC, written by the system's ffmpeg."""
    folder = tmp_path_factory.mktemp("encoded")
    master = write(
        Spec("matroska", audio="pcm_s16le", rate=48000, video_options=(("preset", "ultrafast"), ("qp", "8"))),
        folder / "master.mkv",
    )
    for name in ("src.mp4", "src.mkv", "src.ts"):
        ffmpeg(
            "-i", master, "-c:v", "libx264", "-g", "25", "-bf", "2", "-preset", "veryfast", "-c:a", "aac", folder / name
        )
    return folder


TIMES = Spec().frame_times


@pytest.mark.parametrize("cut", ["0.7", "1.3", "1.52"])
@pytest.mark.parametrize("container", ["mp4", "mov"])
def test_a_cut_with_an_edit_list_starts_at_the_cut(encoded: Path, tmp_path: Path, container: str, cut: str) -> None:
    """Also where the cut falls between two pictures: then the picture that was on the screen is the first one."""
    source = tmp_path / f"cut.{container}"
    ffmpeg("-ss", cut, "-i", encoded / "src.mp4", "-c", "copy", source)
    clip = transcode(source, JAV, tmp_path)
    check_clock(clip, TIMES, zero=float(cut))
    assert clip.columns["source_edit_list"] is True
    assert clip.columns["source_vfr"] is False


@pytest.mark.parametrize("container", ["mp4", "mkv", "ts"])
def test_a_cut_that_keeps_its_time_stamps(encoded: Path, tmp_path: Path, container: str) -> None:
    source = tmp_path / f"cut.{container}"
    keep = ["-copyts", "-avoid_negative_ts", "disabled"]
    ffmpeg("-ss", "1.3", "-i", encoded / f"src.{container}", "-c", "copy", *keep, source)
    clip = transcode(source, JAV, tmp_path)
    assert clip.mp4 is not None
    check_clock(clip, TIMES, zero=float(TIMES[decode_pictures(clip.mp4).numbers[0]]))
    assert clip.columns["source_video_start"] > 0.5  # type: ignore[operator]


@pytest.mark.parametrize("late", [0.4, -0.3])
@pytest.mark.parametrize("container", ["mp4", "mkv", "ts", "mov"])
def test_a_deliberate_delay_stays(encoded: Path, tmp_path: Path, container: str, late: float) -> None:
    source, original = tmp_path / f"late.{container}", encoded / "src.mp4"
    ffmpeg("-i", original, "-itsoffset", str(late), "-i", original, "-map", "0:v", "-map", "1:a", "-c", "copy", source)
    check_clock(transcode(source, JAV, tmp_path), TIMES, audio_late=late)


@pytest.mark.parametrize(
    ("name", "codecs"),
    [
        ("v.webm", ["-c:v", "libvpx", "-deadline", "realtime", "-b:v", "1M", "-c:a", "libvorbis"]),
        ("v.ogv", ["-c:v", "libtheora", "-q:v", "9", "-c:a", "libvorbis"]),
        ("v.wmv", ["-c:v", "wmv2", "-b:v", "2M", "-c:a", "wmav2"]),
        (
            "v.m2ts",
            [
                "-c:v",
                "libx264",
                "-bf",
                "2",
                "-preset",
                "veryfast",
                "-c:a",
                "aac",
                "-f",
                "mpegts",
                "-mpegts_m2ts_mode",
                "1",
            ],
        ),
        ("v.mpg", ["-c:v", "mpeg2video", "-q:v", "2", "-bf", "2", "-c:a", "mp2"]),
        ("v.3gp", ["-c:v", "mpeg4", "-q:v", "3", "-c:a", "aac"]),
        (
            "delay.mp4",
            ["-c:v", "libx264", "-preset", "veryfast", "-c:a", "aac", "-movflags", "frag_keyframe+delay_moov"],
        ),
    ],
)
def test_files_of_another_writer(encoded: Path, tmp_path: Path, name: str, codecs: list[str]) -> None:
    source = tmp_path / name
    ffmpeg("-i", encoded / "master.mkv", *codecs, source)
    check_clock(transcode(source, JAV, tmp_path), TIMES)


def test_windows_share_the_clock_of_the_whole(tmp_path: Path) -> None:
    source = write(Spec(fps="30000/1001", video_options=B_FRAMES), tmp_path / "source.mp4")
    whole = write_numbers(transcode(source, JAV, folder(tmp_path, "a")))
    part = transcode(source, JAV, folder(tmp_path, "b"), window=(1.0, 2.5))
    assert part.columns["num_frames"] == 36 and part.columns["num_samples"] == 24000
    assert write_numbers(part) == whole[24:60]
    assert part.flac is not None
    samples, rate = soundfile.read(part.flac, dtype="float32")
    assert np.allclose(beep_times(samples, rate, [0.61, 1.2]), [0.61, 1.2], rtol=0, atol=0.002)


@pytest.mark.parametrize("container", ["mp4", "matroska"])
def test_a_late_window_is_what_the_whole_has_there(tmp_path: Path, container: str) -> None:
    """Far into a file the reader seeks; pictures must be the same, and the sound too after the decoder's run-up."""
    options = (("bf", "3"), ("g", "40"), ("preset", "veryfast"))
    spec = Spec(
        container, fps="12", seconds=15.0, video_late=0.25, beats=(0.5, 9.77, 10.3, 12.0), video_options=options
    )
    source = write(spec, tmp_path / "source")
    whole, part = (
        transcode(source, JAV, folder(tmp_path, "a")),
        transcode(source, JAV, folder(tmp_path, "b"), window=(9.5, 12.5)),
    )
    assert write_numbers(part) == write_numbers(whole)[228:300]
    assert whole.flac is not None and part.flac is not None
    long, short = (soundfile.read(path, dtype="float32")[0] for path in (whole.flac, part.flac))
    assert len(short) == 48000 and np.abs(short).max() > 0.5
    assert np.allclose(beep_times(short, 16000, [0.02, 0.55, 2.25]), [0.02, 0.55, 2.25], rtol=0, atol=0.001)
    if (
        container == "mp4"
    ):  # Matroska rounds every time stamp to a millisecond: which one anchors the sound makes a difference
        assert np.abs(short[100:] - long[152100:200000]).max() < 0.001
    assert part.columns["source_video_start"] == whole.columns["source_video_start"]
    tail = transcode(source, JAV, folder(tmp_path, "c"), window=(14.0, 99.0))
    assert write_numbers(tail) == write_numbers(whole)[336:]


def write_numbers(clip: Clip) -> list[int]:
    assert clip.mp4 is not None
    return decode_pictures(clip.mp4).numbers


def folder(parent: Path, name: str) -> Path:
    path = parent / name
    path.mkdir()
    return path
