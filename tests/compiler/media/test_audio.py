"""Sound keeps its time, pitch and level, and never clips in a mix."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from javisc.compiler.media.mixing import mix_matrix
from javisc.compiler.media.transcode import transcode
from javisc.compiler.reasons import Rejected
from javisc.compiler.recipe import PRESETS
from support.media import BEATS, Spec, beep_times, ffmpeg, sound, write

AUDIO = PRESETS["audio"]
JAV = PRESETS["jav"].replace(encoder_preset="ultrafast")


LAYOUTS = ["mono", "stereo", "2.1", "3.0", "quad", "5.0", "5.1", "5.1(side)", "7.1", "hexagonal", "octagonal", "22.2"]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("channels", [1, 2])
def test_mixes_cannot_clip(layout: str, channels: int) -> None:
    names = tuple(channel.name for channel in av.AudioLayout(layout).channels)
    matrix = mix_matrix(names, channels)
    assert matrix.shape == (channels, len(names)) and (matrix >= 0).all()
    assert matrix.sum(axis=1).max() == pytest.approx(1)
    assert (matrix.sum(axis=0) > 0).sum() >= len(names) - (2 if "LFE" in names else 0)


def test_mixes_follow_the_standard() -> None:
    names = tuple(channel.name for channel in av.AudioLayout("5.1").channels)
    left, right = mix_matrix(names, 2)
    by = dict(zip(names, zip(left, right)))
    assert by["FC"][0] / by["FL"][0] == pytest.approx(2**-0.5) and by["BL"][0] / by["FL"][0] == pytest.approx(2**-0.5)
    assert by["FL"][1] == by["LFE"][0] == by["LFE"][1] == 0
    assert mix_matrix(("FL", "FR"), 1).tolist() == [[0.5, 0.5]]
    assert mix_matrix(("FL", "FR"), 2).tolist() == [[1, 0], [0, 1]]
    assert mix_matrix(("FC",), 2).tolist() == [[1], [1]]


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 22050, 32000, 44100, 48000, 96000, 192000])
def test_every_rate_keeps_time_level_and_pitch(tmp_path: Path, rate: int) -> None:
    t = np.arange(2 * rate) / rate
    tone = 0.5 * np.sin(2 * np.pi * 997 * t)
    tone[: rate // 2] = 0
    source = tmp_path / "tone.wav"
    soundfile.write(source, tone, rate, "FLOAT")
    clip = transcode(source, AUDIO, tmp_path)
    assert clip.flac is not None and clip.mp4 is None
    out, out_rate = soundfile.read(clip.flac)
    assert out_rate == 16000 and len(out) == 32000 == clip.columns["num_samples"]
    ideal = 0.5 * np.sin(2 * np.pi * 997 * np.arange(32000) / 16000)
    assert np.abs(out[9000:31000] - ideal[9000:31000]).max() < 2e-4
    assert np.abs(out[:7500]).max() < 2e-4
    assert clip.columns["source_sample_rate"] == rate and clip.columns["audio_fps"] == 16000


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
def test_every_sample_format(tmp_path: Path, subtype: str) -> None:
    source = tmp_path / "tone.wav"
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)
    soundfile.write(source, tone, 16000, subtype)
    clip = transcode(source, AUDIO, tmp_path)
    assert clip.flac is not None
    out, _ = soundfile.read(clip.flac)
    assert np.abs(out - tone).max() < (2e-2 if subtype == "PCM_U8" else 1e-4)


@pytest.mark.parametrize(
    ("name", "codec", "tolerance"),
    [
        ("a.wav", "pcm_s16le", 0.0001),
        ("a.flac", "flac", 0.0001),
        ("a.aiff", "pcm_s16be", 0.0001),
        ("a.m4a", "aac", 0.001),
        ("a.mp3", "libmp3lame", 0.001),
        ("a.ogg", "libvorbis", 0.001),
        ("a.opus", "libopus", 0.001),
        ("a.aac", "aac", 0.025),
    ],
)
def test_audio_files_of_every_kind(tmp_path: Path, name: str, codec: str, tolerance: float) -> None:
    """Encoders' delays are undone wherever the file tells them; a bare .aac stream does not (1024 samples)."""
    plain, source = tmp_path / "plain.wav", tmp_path / name
    soundfile.write(plain, sound(44100, 3.5), 44100)
    ffmpeg("-i", plain, "-c:a", codec, "-ac", "2", *(["-b:a", "192k"] if codec == "libmp3lame" else []), source)
    clip = transcode(source, AUDIO, tmp_path)
    assert clip.flac is not None
    out, rate = soundfile.read(clip.flac, dtype="float32")
    found = np.array(beep_times(out, rate, list(BEATS)))
    assert np.abs(found - BEATS).max() < tolerance, (found - BEATS) * 1000
    expected = {"height": 720, "width": 1280, "fps": 24.0, "resolution": 720 * 1280, "audio_fps": 16000, "channels": 1}
    assert expected.items() <= clip.columns.items()
    assert clip.columns["num_frames"] == int(float(str(clip.columns["duration"])) * 24)
    assert clip.columns["duration"] == pytest.approx(3.5, abs=0.06)


def test_audio_is_trimmed_and_windowed(tmp_path: Path) -> None:
    source = tmp_path / "long.wav"
    soundfile.write(source, sound(16000, 40.0, (0.5, 31.0)), 16000)
    clip = transcode(source, AUDIO, tmp_path)
    assert clip.columns["num_samples"] == 30 * 16000 and clip.columns["num_frames"] == 720
    part = transcode(source, AUDIO, tmp_path, window=(30.5, 32.5))
    assert part.flac is not None and part.columns["num_samples"] == 32000
    out, rate = soundfile.read(part.flac, dtype="float32")
    assert beep_times(out, rate, [0.5]) == pytest.approx([0.5], abs=1e-4)
    for late in (40.0, 50.0):
        with pytest.raises(Rejected, match=f"no_audio: the window begins at {late:g} s, after the end of the sound$"):
            transcode(source, AUDIO, tmp_path, window=(late, 52.0))


@pytest.mark.parametrize("name", ["film.mp4", "film.mkv", "film.avi"])
def test_a_window_after_the_last_picture_is_no_picture_of_before(tmp_path: Path, name: str) -> None:
    source = write(Spec(seconds=6.0, size=(64, 48)), tmp_path / name)
    one = JAV.replace(min_frames=1)
    assert transcode(source, one, tmp_path, window=(5.9, 9.0)).columns["num_frames"] in (2, 3)
    for late in (6.5, 100.0):
        with pytest.raises(Rejected, match=f"too_short: the window begins at {late:g} s, after the end of the video"):
            transcode(source, one, tmp_path, window=(late, late + 2))


def test_stereo_is_kept_when_asked(tmp_path: Path) -> None:
    source = tmp_path / "two.wav"
    two = np.stack([sound(48000, 2.0, (0.5,)), sound(48000, 2.0, (1.0,))]).T
    soundfile.write(source, two, 48000)
    clip = transcode(source, AUDIO.replace(channels=2), tmp_path)
    assert clip.flac is not None and clip.columns["channels"] == 2
    out, rate = soundfile.read(clip.flac, dtype="float32")
    assert beep_times(np.ascontiguousarray(out[:, 0]), rate, [0.5]) == pytest.approx([0.5], abs=1e-4)
    assert beep_times(np.ascontiguousarray(out[:, 1]), rate, [1.0]) == pytest.approx([1.0], abs=1e-4)


def test_surround_in_a_video(tmp_path: Path) -> None:
    source = write(Spec(audio="aac", rate=48000, layout="5.1", seconds=2.0), tmp_path / "source.mp4")
    clip = transcode(source, JAV, tmp_path)
    assert clip.flac is not None and clip.columns["source_channels"] == 6 and clip.columns["channels"] == 1
    out, rate = soundfile.read(clip.flac, dtype="float32")
    assert beep_times(out, rate, [0.5, 0.97]) == pytest.approx([0.5, 0.97], abs=0.002)
    assert np.abs(out).max() == pytest.approx(0.8, abs=0.1)


def test_the_default_track_is_taken(tmp_path: Path) -> None:
    """Two tracks: the second one carries the default disposition. Without any, the first is taken."""
    video = write(Spec(audio=None, seconds=3.5), tmp_path / "video.mp4")
    early, late = tmp_path / "early.wav", tmp_path / "late.wav"
    soundfile.write(early, sound(16000, 3.5, (0.5,)), 16000)
    soundfile.write(late, sound(16000, 3.5, (2.5,)), 16000)
    for disposition, expected in (("0", 0.5), ("default", 2.5)):
        source = tmp_path / f"two{disposition}.mkv"
        maps = ["-map", "0:v", "-map", "1:a", "-map", "2:a", "-c:v", "copy", "-c:a", "flac"]
        ffmpeg(
            "-i",
            video,
            "-i",
            early,
            "-i",
            late,
            *maps,
            "-disposition:a:0",
            "0",
            "-disposition:a:1",
            disposition,
            source,
        )
        clip = transcode(source, JAV, tmp_path)
        assert clip.flac is not None and clip.columns["source_audio_tracks"] == 2
        out, rate = soundfile.read(clip.flac, dtype="float32")
        assert beep_times(out, rate, [expected]) == pytest.approx([expected], abs=0.002)


@pytest.mark.parametrize(("seconds", "pad"), [(2.0, 1.5), (5.0, 0.0)])
def test_sound_shorter_or_longer_than_the_picture(tmp_path: Path, seconds: float, pad: float) -> None:
    source = write(
        Spec("matroska", audio="flac", fps="24", picture_seconds=3.5, sound_seconds=seconds), tmp_path / "s.mkv"
    )
    clip = transcode(source, JAV, tmp_path)
    assert clip.columns["num_frames"] == 84 and clip.columns["num_samples"] == 56000
    assert clip.columns["pad_tail"] == pytest.approx(pad * 16000, abs=2)
    assert clip.flac is not None and soundfile.info(clip.flac).frames == 56000
