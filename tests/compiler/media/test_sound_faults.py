"""What real files do to sound: stamps that swing, step and leap, packets that are garbage, channels that cancel each other."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from javisc.compiler.media.transcode import Clip, transcode
from javisc.compiler.reasons import Rejected
from javisc.compiler.recipe import PRESETS
from support.media import BEATS, Spec, beep_times, decode_pictures, sound, write
from support.peak import peak
from support.wobble import SHAPES, off_tone, wobble, write_sound

AUDIO = PRESETS["audio"]
JAV = PRESETS["jav"].replace(encoder_preset="ultrafast")
CASES = Path(__file__).resolve().parents[3].parent / "shared" / "cases"
SUPPORT = Path(__file__).resolve().parents[2]
#: Containers and codecs that real recorders and sites use, and a rate of each.
KINDS = [
    ("matroska", "pcm_s16le", 48000),
    ("matroska", "aac", 44100),
    ("webm", "libopus", 48000),
    ("webm", "vorbis", 44100),
    ("mpegts", "aac", 48000),
    ("mpegts", "libopus", 48000),
    ("mp4", "aac", 32000),
    ("mov", "pcm_s16le", 16000),
]


def heard(clip: Clip) -> tuple[NDArray[np.float32], int]:
    assert clip.flac is not None
    out, rate = soundfile.read(clip.flac, dtype="float32")
    return out, rate


def longest_silence(out: NDArray[np.float32]) -> int:
    """Samples of the longest run of exact silence between the first and the last sound.

    Not of what a codec lets fade away after it, where some dozen samples are one step from zero, or none.
    """
    loud, places = np.flatnonzero(np.abs(out) > 0.01), np.flatnonzero(out)
    places = places[(places >= loud[0]) & (places <= loud[-1])]
    return int(np.diff(places).max()) - 1


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind[0]}-{kind[1]}")
def test_stamps_that_swing_leave_a_tone_alone(kind: tuple[str, str, int], tmp_path: Path) -> None:
    """Off-tone energy is that of the codec, or -60 dB; there is no silence that the source has not."""
    container, codec, rate = kind
    tone = (0.5 * np.sin(2 * np.pi * 1000 * np.arange(5 * rate) / rate)).astype(np.float32)
    clean = transcode(write_sound(tmp_path / "clean", container, codec, tone, rate, lambda _: 0.0), AUDIO, tmp_path)
    out, out_rate = heard(clean)
    allowed = max(-60.0, off_tone(out[4000:-4000], out_rate) + 2)
    assert clean.columns["audio_repaired_ms"] == clean.columns["audio_stretched_ms"] == 0
    assert float(str(clean.columns["audio_wobble_ms"])) <= 1
    silence = longest_silence(out)

    @given(st.sampled_from(sorted(SHAPES)), st.floats(0.002, 0.03), st.floats(0.1, 2.0), st.integers(0, 2**32 - 1))
    @settings(max_examples=4, deadline=None)
    def swing(shape: str, size: float, period: float, seed: int) -> None:
        grid = np.arange(0, 6, 0.0005)
        line = wobble(shape, grid, size, period, seed)
        if container in ("mp4", "mov"):  # no packet may overtake another there
            line *= min(1, 0.008 / size)
        source = tmp_path / "swings"
        write_sound(source, container, codec, tone, rate, lambda time: float(line[int(max(time, 0) / 0.0005)]))
        clip = transcode(source, AUDIO, tmp_path)
        out, _ = heard(clip)
        assert off_tone(out[4000:-4000], out_rate) <= allowed, (shape, size, period)
        assert longest_silence(out) <= silence + 8, (shape, size, period)
        assert clip.columns["audio_repaired_ms"] == clip.columns["audio_stretched_ms"] == 0

    swing()


@pytest.mark.parametrize("kind", [KINDS[0], KINDS[2], KINDS[3], KINDS[4]], ids=lambda kind: f"{kind[0]}-{kind[1]}")
@pytest.mark.parametrize("step", [0.006, 0.018, 0.12])
def test_flashes_and_beeps_on_stamps_that_step(kind: tuple[str, str, int], step: float, tmp_path: Path) -> None:
    """From the step on every beep is where its packet's stamp says, next to pictures that keep their times."""
    container, codec, rate = kind
    source = write_sound(
        tmp_path / "source",
        container,
        codec,
        sound(rate, 3.5) + np.float32(0.001) * np.random.default_rng(0).standard_normal(int(3.5 * rate)).astype("f4"),
        rate,
        lambda time: step if time >= 1.3 else 0.0,
        pictures="libvpx" if container == "webm" else "libx264",
    )
    clip = transcode(source, JAV, tmp_path)
    out, out_rate = heard(clip)
    assert clip.mp4 is not None and len(decode_pictures(clip.mp4).numbers) == clip.columns["num_frames"] == 84
    expected = [beat + 0.2 + (step if beat > 1.35 else 0) for beat in BEATS]
    expected = [time for time in expected if time < 3.4]
    found = np.array(beep_times(out, out_rate, expected, 0.1))
    assert np.abs(found - expected).max() < 0.002, (found - expected) * 1000
    assert clip.columns["audio_repaired_ms"] == pytest.approx(step * 1000, abs=1.6)


def test_short_blocks_of_vorbis_are_no_leaps(tmp_path: Path) -> None:
    """Attacks make Vorbis switch its blocks, which muxers stamp as they like."""
    rate = 44100
    dice = np.random.default_rng(0)
    bursts = dice.standard_normal(6 * rate).astype(np.float32) * np.float32(0.002)
    for start in range(0, 6 * rate - 3000, 9000):
        bursts[start : start + 2500] += 0.4 * dice.standard_normal(2500).astype(np.float32)
    source = write_sound(tmp_path / "a.webm", "webm", "vorbis", bursts, rate, lambda _: 0.0)
    clip = transcode(source, AUDIO, tmp_path)
    assert clip.columns["audio_repaired_ms"] == clip.columns["audio_stretched_ms"] == 0


@pytest.mark.skipif(not CASES.is_dir(), reason="the shared cases are not here")
def test_the_cases_come_out_as_their_texts_say(tmp_path: Path) -> None:
    clip = transcode(CASES / "audio_gap_18ms.mp4", JAV, tmp_path)
    out, rate = heard(clip)
    onsets = [0.518, 1.268, 2.518, 3.018, 4.268]
    loud = np.abs(out) > 0.1
    found = [(np.flatnonzero(loud[round((time - 0.1) * rate) :])[0] / rate + time - 0.1) for time in onsets]
    assert np.abs(np.subtract(found, onsets)).max() < 0.002, found
    clip = transcode(CASES / "audio_stamp_late_every_half_second.mp4", JAV, tmp_path)
    assert longest_silence(heard(clip)[0]) < 20
    assert float(str(clip.columns["audio_wobble_ms"])) == pytest.approx(20.5, abs=0.5)
    with pytest.raises(Rejected, match=r"corrupt: 94 of 283 packets of the sound are damaged"):
        transcode(CASES / "sound_damaged_2_to_4s.mp4", JAV, tmp_path)


def leaps(folder: str, kind: str) -> None:
    """Run in a process of its own: print what becomes of a clip whose stamps leap, and the memory it took, MB."""
    place = Path(folder)
    try:
        clip = transcode(next(place.glob("leap.*")), AUDIO if kind == "audio" else JAV, place)
        told = {name: clip.columns[name] for name in ("num_samples", "pad_tail", "audio_repaired_ms")}
    except Rejected as rejected:
        told = {"reason": rejected.reason}
    print(json.dumps({**told, "memory": peak() / 1024}))


@pytest.mark.parametrize("kind", ["audio", "jav"])
def test_leaps_take_no_memory_and_make_no_sound(kind: str, tmp_path: Path) -> None:
    """Of a second to ten hours. In a film the silence up to its end is padding; without a picture nothing comes after."""
    noise = 0.1 * np.random.default_rng(0).standard_normal(2 * 48000).astype(np.float32)
    memory = {}
    for seconds in (0, 1, 1800, 36000):
        write_sound(
            tmp_path / "leap.mkv",
            "matroska",
            "pcm_s16le",
            noise,
            48000,
            lambda time, seconds=seconds: seconds if time >= 1 else 0.0,  # type: ignore[misc]
            pictures="libx264" if kind == "jav" else None,
            late=0.0,
        )
        code = (
            f"import sys; sys.path[:0] = {[str(SUPPORT), str(Path(__file__).parent)]!r}\n"
            f"import test_sound_faults; test_sound_faults.leaps({str(tmp_path)!r}, {kind!r})"
        )
        ran = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=120)
        assert ran.returncode == 0, ran.stderr[-2000:]
        told = json.loads(ran.stdout)
        memory[seconds] = told.pop("memory")
        if kind == "jav":
            assert told["num_samples"] == 32000 and told["pad_tail"] == pytest.approx(16000 if seconds else 0, abs=600)
            assert told["audio_repaired_ms"] == 0
        else:
            expected = {0: (32000, 0), 1: (48000, 1000)}.get(seconds, (16000, 0))
            assert told["num_samples"] == pytest.approx(expected[0], abs=600)
            assert told["audio_repaired_ms"] == pytest.approx(expected[1], abs=60)
    assert max(memory.values()) < memory[0] + 30, memory


def test_a_pause_without_a_picture_is_no_sound(tmp_path: Path) -> None:
    """A long sound that is wanted whole: more than half a minute of nothing has no clock to pause on."""
    noise = 0.1 * np.random.default_rng(0).standard_normal(6 * 16000).astype(np.float32)
    for seconds, allowed in ((20, True), (40, False)):
        source = write_sound(
            tmp_path / "a.mkv",
            "matroska",
            "pcm_s16le",
            noise,
            16000,
            lambda time, seconds=seconds: seconds if time >= 2 else 0.0,  # type: ignore[misc]
        )
        if allowed:
            clip = transcode(source, AUDIO.replace(max_seconds=100.0), tmp_path)
            assert clip.columns["audio_repaired_ms"] == pytest.approx(20_000, abs=2)
        else:
            with pytest.raises(Rejected, match="timestamps: the sound's time stamps leap: sound at 2"):
                transcode(source, AUDIO.replace(max_seconds=100.0), tmp_path)


@pytest.mark.parametrize(("container", "codec"), [("matroska", "aac"), ("matroska", "flac")])
@pytest.mark.parametrize("share", [0.05, 0.3])
def test_damaged_sound_counts(container: str, codec: str, share: float, tmp_path: Path) -> None:
    """Packets of garbage: told up to a tenth, refused above; what lies outside the window does not count."""
    import av

    rate, seconds = 48000, 6
    dice = np.random.default_rng(0)
    whole = write_sound(
        tmp_path / "whole",
        container,
        codec,
        0.2 * dice.standard_normal(seconds * rate).astype(np.float32),
        rate,
        lambda _: 0.0,
        late=0.0,
        pictures="libvpx" if container == "webm" else "libx264",
    )
    broken = tmp_path / "broken"
    with av.open(str(whole)) as source, av.open(str(broken), "w", format=container) as out:
        tracks = {stream.index: out.add_stream_from_template(stream) for stream in source.streams}
        for packet in source.demux():
            if not packet.size:
                continue
            into = tracks[packet.stream.index]
            if packet.stream.type == "audio" and 2 <= float(packet.pts * packet.time_base) < 2 + share * seconds:
                junk = av.Packet(b"\xff" * max(packet.size, 100))
                junk.pts, junk.dts, junk.time_base, junk.duration = (
                    packet.pts,
                    packet.dts,
                    packet.time_base,
                    packet.duration,
                )
                packet = junk
            packet.stream = into
            out.mux(packet)
    if share > 0.1:
        with pytest.raises(Rejected, match=r"corrupt: \d+ of \d+ packets of the sound are damaged"):
            transcode(broken, JAV, tmp_path)
    else:
        clip = transcode(broken, JAV, tmp_path)
        assert clip.columns["damaged_sound"] == pytest.approx(share, abs=0.02)
        assert float(str(clip.columns["audio_repaired_ms"])) == pytest.approx(share * seconds * 1000, abs=120)
    calm = transcode(broken, JAV, tmp_path, window=(0.3, 1.6))
    assert calm.columns["damaged_sound"] == 0


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_a_missing_tail_is_told(suffix: str, tmp_path: Path) -> None:
    """A download that broke off: told up to a half, refused above; a part that is there is whole."""
    options = (("movflags", "faststart"),) if suffix == "mp4" else ()
    whole = write(Spec("mp4" if suffix == "mp4" else "matroska", format_options=options), tmp_path / f"whole.{suffix}")
    assert transcode(whole, JAV, tmp_path).columns["missing_tail"] == 0
    content = whole.read_bytes()
    head = content.index(b"mdat") if suffix == "mp4" else 0
    cut = tmp_path / f"cut.{suffix}"
    cut.write_bytes(content[: head + (len(content) - head) * 7 // 10])
    clip = transcode(cut, JAV, tmp_path)
    assert clip.columns["missing_tail"] == pytest.approx(1 - float(str(clip.columns["duration"])) / 3.5, abs=0.05)
    assert float(str(clip.columns["missing_tail"])) > 0.15
    assert transcode(cut, JAV, tmp_path, window=(0, 1)).columns["missing_tail"] == 0
    cut.write_bytes(content[: head + (len(content) - head) * 4 // 10])
    with pytest.raises(Rejected, match=r"corrupt: \d+% of the 3\.\d+ s that the header declares are missing"):
        transcode(cut, JAV, tmp_path)


@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_a_sound_that_breaks_off_is_told(suffix: str, tmp_path: Path) -> None:
    whole = tmp_path / f"whole.{suffix}"
    soundfile.write(whole, 0.2 * np.random.default_rng(0).standard_normal(5 * 16000), 16000)
    assert transcode(whole, AUDIO, tmp_path).columns["missing_tail"] == 0
    cut = tmp_path / f"cut.{suffix}"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size * 7 // 10])
    assert transcode(cut, AUDIO, tmp_path).columns["missing_tail"] == pytest.approx(0.3, abs=0.05)


def inverted(rate: int, right: float) -> NDArray[np.float32]:
    """Noise and beeps on the left, the same times `right` on the right."""
    left = sound(rate, 3.5) + 0.05 * np.random.default_rng(0).standard_normal(round(3.5 * rate)).astype(np.float32)
    return np.stack([left, np.float32(right) * left])


@pytest.mark.parametrize("right", [-1.0, -0.8])
@pytest.mark.parametrize(("container", "codec"), [("matroska", "pcm_s16le"), ("mpegts", "aac")])
def test_an_inverted_channel_is_no_silence(container: str, codec: str, right: float, tmp_path: Path) -> None:
    """The mix would be empty: the louder channel is taken alone, and the row says so."""
    source = tmp_path / "source"
    write_sound(source, container, codec, inverted(48000, right), 48000, lambda _: 0.0, pictures="libx264", late=0.0)
    write_sound(tmp_path / "left", container, codec, inverted(48000, right)[0], 48000, lambda _: 0.0, late=0.0)
    alone, _ = heard(transcode(tmp_path / "left", AUDIO, tmp_path))
    for recipe in (JAV, AUDIO):
        clip = transcode(source, recipe, tmp_path)
        out, rate = heard(clip)
        assert clip.columns["source_inverted"] is True and clip.columns["silent"] is False
        assert np.abs(np.subtract(beep_times(out, rate, list(BEATS)), BEATS)).max() < 0.03
        assert out.std() == pytest.approx(alone.std(), rel=0.1)
    both = transcode(source, AUDIO.replace(channels=2), tmp_path)
    assert both.columns["source_inverted"] is False
    out, _ = heard(both)
    assert np.corrcoef(out.T)[0, 1] < -0.85


def test_other_stereo_is_mixed(tmp_path: Path) -> None:
    """Unrelated channels, one that is silent, and two that agree are mixed as ever."""
    dice = np.random.default_rng(0)
    one, two = 0.1 * dice.standard_normal((2, 32000))
    for right in (two, np.zeros(32000), one, 0.7 * one - 0.7 * two):
        source = tmp_path / "a.wav"
        soundfile.write(source, np.stack([one, right]).T, 16000, "FLOAT")
        clip = transcode(source, AUDIO, tmp_path)
        assert clip.columns["source_inverted"] is False
        assert np.abs(heard(clip)[0] - (one + right) / 2).max() < 1e-4
