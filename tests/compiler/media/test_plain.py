"""Plain sounds are read by libsndfile, and come out as FFmpeg would have read them."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile

from javisc.compiler.media import sound_only
from javisc.compiler.media.plain import NotPlain, open_plain
from javisc.compiler.media.transcode import transcode
from javisc.compiler.recipe import PRESETS

AUDIO = PRESETS["audio"]
KINDS = [
    ("wav", "PCM_U8"),
    ("wav", "PCM_16"),
    ("wav", "PCM_24"),
    ("wav", "PCM_32"),
    ("wav", "FLOAT"),
    ("wav", "DOUBLE"),
    ("flac", "PCM_S8"),
    ("flac", "PCM_16"),
    ("flac", "PCM_24"),
]


def noise(seconds: float, rate: int, channels: int) -> np.ndarray:
    return np.clip(0.4 * np.random.default_rng(0).standard_normal((round(seconds * rate), channels)), -1, 1)


@pytest.mark.parametrize(
    ("kind", "rate", "channels"),
    [*((kind, 44100, 2) for kind in KINDS), (("wav", "PCM_16"), 16000, 1), (("flac", "PCM_24"), 22050, 1)],
    ids=lambda one: "-".join(one) if isinstance(one, tuple) else str(one),
)
def test_the_bytes_are_those_of_ffmpeg(
    kind: tuple[str, str], rate: int, channels: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And so is every column that the reader has a say in."""
    source = tmp_path / f"a.{kind[0]}"
    soundfile.write(source, noise(3.3, rate, channels), rate, kind[1])
    for window in (None, (0.7, 2.05)):
        with open_plain(source) as opened:
            assert opened.seconds == pytest.approx(3.3)
        plain = transcode(source, AUDIO, tmp_path, window=window)
        assert plain.flac is not None
        content = plain.flac.read_bytes()

        def refuse(path: Path) -> None:
            raise NotPlain(str(path))

        with monkeypatch.context() as patch:
            patch.setattr(sound_only, "open_plain", refuse)
            other = transcode(source, AUDIO, tmp_path, window=window)
        assert other.flac is not None and other.flac.read_bytes() == content
        for name, value in plain.columns.items():
            if name == "clipping_ratio" and window is not None:
                continue  # of what was decoded, which ends a block behind the window: blocks are not packets
            there = other.columns[name]
            assert there == (pytest.approx(value) if isinstance(value, float) else value), name


def test_what_is_unusual_is_left_to_ffmpeg(tmp_path: Path) -> None:
    """Other codings, more channels, a cut file, DTS in disguise, two channels that are not left and right, no length, no file."""
    wide, adpcm, cut = tmp_path / "wide.wav", tmp_path / "adpcm.wav", tmp_path / "cut.wav"
    disguised, odd, stream, text = (tmp_path / f"{name}.wav" for name in ("dts", "odd", "stream", "text"))
    soundfile.write(wide, noise(1, 16000, 4), 16000)
    soundfile.write(adpcm, noise(1, 16000, 1), 16000, "IMA_ADPCM")
    soundfile.write(cut, noise(1, 16000, 1), 16000)
    content = cut.read_bytes()
    cut.write_bytes(content[:20000])
    disguised.write_bytes(content[:2000] + b"\xfe\x7f\x01\x80" + content[2004:])
    stream.write_bytes(content[:40] + struct.pack("<I", 0xFFFFFFFF) + content[44:])
    soundfile.write(odd, noise(1, 16000, 2), 16000, format="WAVEX")
    content = bytearray(odd.read_bytes())
    mask = content.index(b"fmt ") + 8 + 20
    content[mask : mask + 4] = struct.pack("<I", 0x204)
    odd.write_bytes(content)
    text.write_text("RIFF and nothing else")
    for path in (wide, adpcm, cut, disguised, odd, stream, text, tmp_path / "absent.wav"):
        with pytest.raises(NotPlain), open_plain(path):
            raise AssertionError(path)


def test_a_damaged_flac_is_read_by_what_counts_damage(tmp_path: Path) -> None:
    """libsndfile ends where a frame is broken; FFmpeg goes on behind it."""
    source = tmp_path / "a.flac"
    soundfile.write(source, noise(6, 16000, 1), 16000)
    content = bytearray(source.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 300] = bytes(300)
    source.write_bytes(content)
    clip = transcode(source, AUDIO, tmp_path)
    assert float(str(clip.columns["duration"])) == pytest.approx(6, abs=0.01)
