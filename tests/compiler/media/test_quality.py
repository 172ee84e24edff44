"""Quality columns against independent definitions."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from javisc.compiler.media.loudness import Meter, k_weighting
from javisc.compiler.media.quality import Clipping, sound_columns
from javisc.compiler.media.transcode import transcode
from javisc.compiler.recipe import PRESETS
from javisc.manifests.schema import MANIFEST_SCHEMA, QUALITY, SOURCE

SILENT_TOO = PRESETS["jav"].replace(allow_silent=True, encoder_preset="ultrafast")


def pieces(sound: NDArray[np.float32], size: int) -> list[NDArray[np.float32]]:
    return [sound[start : start + size] for start in range(0, len(sound), size)]


@pytest.mark.parametrize("seed", range(12))
def test_loudness_agrees_with_pyloudnorm(seed: int) -> None:
    """Whole tenths of a second: pyloudnorm counts a last block that the sound does not fill, the standard does not."""
    pyloudnorm = pytest.importorskip("pyloudnorm", reason="pyloudnorm is not installed")
    rng = np.random.default_rng(seed)
    tenths, channels, size = int(rng.integers(5, 60)), int(rng.integers(1, 3)), int(rng.choice([777, 16000, 65536]))
    sound = rng.standard_normal((tenths * 1600, channels)) * 10 ** rng.uniform(-2, -0.7)
    sound *= np.repeat(10 ** rng.uniform(-3, 0, 8), -(-len(sound) // 8))[
        : len(sound), None
    ]  # loud and soft parts, for the gates
    sound = sound.astype(np.float32)
    meter = Meter(16000)
    for piece in pieces(sound, size):
        meter.push(piece)
    judge = pyloudnorm.Meter(16000).integrated_loudness(sound.astype(np.float64))
    ours = meter.integrated()
    if judge == -np.inf:
        assert ours is None
    else:
        assert ours == pytest.approx(judge, abs=0.15)


@pytest.mark.parametrize(
    ("rate", "channels", "size"), [(16000, 1, 63), (16000, 2, 65536), (44100, 1, 4410), (8000, 1, 100)]
)
def test_the_meter_is_the_recursion_itself(rate: int, channels: int, size: int) -> None:
    """The filter by its difference equation in float64, sample after sample, and the gates over all blocks at once.

    Single precision is least exact where nearly all is below what the filter lets through, as in a random walk.
    """
    rng = np.random.default_rng(rate + channels)
    sound = rng.standard_normal((rate * 2 + 77, channels))
    sound = np.cumsum(sound, axis=0) if size == 63 else sound
    sound = (
        sound / np.abs(sound).max() * np.repeat([1.0, 0.001, 0.3, 0.0, 0.5], -(-len(sound) // 5))[: len(sound), None]
    )
    sound = sound.astype(np.float32)
    meter = Meter(rate)
    for piece in pieces(sound, size):
        meter.push(piece)
    filtered = sound.astype(np.float64)
    for b0, b1, b2, a1, a2 in k_weighting(rate):
        out = np.zeros_like(filtered)
        for n in range(len(filtered)):
            x1, y1 = (filtered[n - 1], out[n - 1]) if n > 0 else (0.0, 0.0)
            x2, y2 = (filtered[n - 2], out[n - 2]) if n > 1 else (0.0, 0.0)
            out[n] = b0 * filtered[n] + b1 * x1 + b2 * x2 - a1 * y1 - a2 * y2
        filtered = out
    step = rate // 10
    steps = (filtered**2).sum(axis=1)[: len(sound) // step * step].reshape(-1, step).mean(axis=1)
    blocks = np.convolve(steps, np.full(4, 0.25), "valid")
    loud = blocks[-0.691 + 10 * np.log10(np.maximum(blocks, 1e-20)) > -70]
    loud = loud[10 * np.log10(loud) > 10 * np.log10(loud.mean()) - 10]
    assert meter.integrated() == pytest.approx(-0.691 + 10 * np.log10(loud.mean()), abs=1e-4 if size == 63 else 2e-6)


def test_the_filter_is_the_standards_at_48_khz() -> None:
    """Tables 1 and 2 of ITU-R BS.1770-4."""
    shelf, high_pass = k_weighting(48000)
    assert shelf == pytest.approx(
        (1.53512485958697, -2.69169618940638, 1.19839281085285, -1.69065929318241, 0.73248077421585), abs=1e-10
    )
    assert high_pass == pytest.approx((1.0, -2.0, 1.0, -1.99004745483398, 0.99007225036621), abs=1e-10)


def test_a_full_scale_sine_is_at_minus_three() -> None:
    """BS.1770-4 names it as the check of a meter: 997 Hz at 0 dBFS in one channel reads -3.01 LKFS."""
    meter = Meter(48000)
    meter.push(np.sin(2 * np.pi * 997 * np.arange(96000) / 48000).astype(np.float32)[:, None])
    assert meter.integrated() == pytest.approx(-3.01, abs=0.02)


def columns(sound: NDArray[np.float64], size: int = 5000) -> dict[str, object]:
    """Columns of mono sound at 16 kHz."""
    clipping = Clipping()
    clipping.push(sound[None].astype(np.float32))
    samples = np.clip(np.rint(sound * 32768), -32768, 32767).astype(np.int16)[:, None]
    return sound_columns([samples[start : start + size] for start in range(0, len(samples), size)], 16000, clipping)


def test_silence() -> None:
    noise = np.random.default_rng(0).standard_normal(16000) * 0.1
    assert columns(np.zeros(16000)) == {
        "loudness": None,
        "silence_ratio": 1.0,
        "clipping_ratio": 0.0,
        "bandwidth": None,
        "silent": True,
    }
    half = columns(np.concatenate([noise, np.zeros(16000)]))
    assert half["silence_ratio"] == 0.5 and half["silent"] is False
    assert columns(noise * 10 ** (-45 / 20))["silence_ratio"] == 1.0


def test_clipping_counts_runs_at_full_scale() -> None:
    clipping = Clipping()
    clipping.push(np.array([[0, 1, 1, 0, 1, 0, -1, -1, -1, 0.5]], np.float32))
    assert clipping.ratio == 0.5
    wave = 1.5 * np.sin(2 * np.pi * 100 * np.arange(16000) / 16000)
    expected = (np.abs(wave) >= 1).mean()
    assert columns(np.clip(wave, -1, 1))["clipping_ratio"] == pytest.approx(expected, abs=0.01)
    assert columns(wave * 0.6)["clipping_ratio"] == 0


@pytest.mark.parametrize("edge", [1000, 2500, 4000, 7000])
def test_bandwidth(edge: int) -> None:
    rng = np.random.default_rng(edge)
    spectrum = np.fft.rfft(rng.standard_normal(64000))
    spectrum[np.fft.rfftfreq(64000, 1 / 16000) > edge] = 0
    measured = columns(np.fft.irfft(spectrum) * 0.1)["bandwidth"]
    assert measured == pytest.approx(edge * 0.99, abs=25)


def film(path: Path, images: list[NDArray[np.uint8]], fps: int = 24) -> Path:
    with av.open(str(path), "w", format="matroska") as out:
        stream = out.add_stream("libx264", rate=fps, options={"crf": "18", "preset": "veryfast"})
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for number, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), "rgb24")
            frame.pts, frame.time_base = number, Fraction(1, fps)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def scene(seed: int) -> NDArray[np.uint8]:
    """Blurry coloured noise of 128 x 96, a different one for each seed."""
    rng = np.random.default_rng(seed)
    return np.kron(rng.integers(30, 220, (6, 8, 3)), np.ones((16, 16, 1))).astype(np.uint8)


def test_still_moving_black_and_cut(tmp_path: Path) -> None:
    def of(images: list[NDArray[np.uint8]], fps: int = 24) -> dict[str, object]:
        return transcode(film(tmp_path / "film.mkv", images, fps), SILENT_TOO, tmp_path).columns

    still = of([scene(1)] * 30)
    assert still["still"] is True and still["still_ratio"] == 1.0 and still["scene_cuts"] == 0
    assert float(str(still["motion"])) < 0.003 and still["black_ratio"] == 0
    moving = of([np.roll(scene(1), 4 * n, axis=1) for n in range(30)])
    assert moving["still_ratio"] == 0.0 and moving["still"] is False and float(str(moving["motion"])) > 0.02
    assert moving["scene_cuts"] == 0
    cuts = of([scene(n // 10) for n in range(40)])
    assert cuts["scene_cuts"] == 3
    assert cuts["still_ratio"] == pytest.approx(36 / 39, abs=0.03)
    black = of([np.full((96, 128, 3), 5, np.uint8)] * 12 + [scene(3)] * 12)
    assert black["black_ratio"] == 0.5
    doubled = of([scene(n // 2) for n in range(60)], fps=48)
    assert doubled["still_ratio"] == pytest.approx(30 / 59, abs=0.03), (
        "of the source's frames, not of the compiled ones"
    )
    small = [scene(1).copy() for _ in range(30)]
    for number, image in enumerate(small):
        image[40:50, 60:70] = 255 if number % 2 else 0
    talking = of(small)
    assert talking["still_ratio"] == 0.0, "a small part that moves is no still picture"


def test_columns_are_the_schemas(tmp_path: Path) -> None:
    result = transcode(film(tmp_path / "film.mkv", [scene(1)] * 30), SILENT_TOO, tmp_path).columns
    # what the build knows of the input
    built = {"source_sha256", "source_bytes", "audio_sha256", "clip_start", "clip_end"}
    assert {column.name for column in SOURCE + QUALITY} - built <= set(result)
    assert set(result) <= set(MANIFEST_SCHEMA)


@pytest.mark.parametrize(("level", "heard"), [(-40.0, True), (-58.0, True), (-62.0, False)])
def test_soft_speech_is_no_silence(level: float, heard: bool) -> None:
    """Syllables of noise, a quarter of a second each with a pause as long: at -40 dB half is silence, below -60 dB all."""
    noise = np.random.default_rng(0).standard_normal((8, 4000))
    syllables = noise / np.sqrt((noise**2).mean(axis=1, keepdims=True)) * 10 ** (level / 20)
    wave = np.concatenate([np.concatenate([one, np.zeros(4000)]) for one in syllables])
    told = sound_columns([np.round(wave * 32767).astype(np.int16)[:, None]], 16000, Clipping())
    assert told["silent"] is not heard and told["silence_ratio"] == pytest.approx(0.5 if heard else 1.0, abs=0.02)
