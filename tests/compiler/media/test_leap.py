"""Windows far into a sound: a leap gives to the bit what decoding from the start gives, and where it would not, that is done."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from javisc.compiler.media import leap, plain, sound_only
from javisc.compiler.media.sound import SoundTrack
from javisc.compiler.media.transcode import transcode
from javisc.compiler.recipe import PRESETS
from support.media import Spec, write

SECONDS = 40
#: Name: encoder, its settings, share of noise, channels, and whether a leap is exact.
SOUNDS = {
    "tones.m4a": ("aac", {"b": "96000"}, 0.0, 2, True),
    "noise.m4a": ("aac", {"b": "32000"}, 0.1, 1, False),  # the codec draws its noise from the file's beginning on
    "sound.mkv": ("aac", {"b": "96000"}, 0.0, 1, True),
    "vbr.mp3": ("libmp3lame", {"q": "4"}, 0.03, 1, True),
    "sound.opus": ("libopus", {"b": "32000"}, 0.03, 1, True),
    "lossless.m4a": ("alac", {}, 0.03, 1, True),
    "sound.ac3": ("ac3", {"b": "96000"}, 0.03, 1, False),  # draws noise, too
}
TYPES = {"fltp": np.float32, "flt": np.float32, "s16": np.int16, "s16p": np.int16, "s32p": np.int32}


def encode(path: Path, codec: str, settings: dict[str, str], noise: float, channels: int) -> Path:
    rate = 48000 if codec in ("libopus", "ac3") else 44100 if noise == 0.1 else 24000
    t = np.arange(rate * SECONDS) / rate
    draws = np.random.default_rng(5).standard_normal((channels, len(t)))
    sound = 0.2 * np.sin(2 * np.pi * 440 * t) * (0.6 + 0.4 * np.sin(3 * t)) + noise * draws
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options=settings)
        stream.layout = "mono" if channels == 1 else "stereo"
        kind = stream.codec_context.format.name
        if TYPES[kind] is not np.float32:
            sound = sound * (np.iinfo(TYPES[kind]).max // 2)
        samples = sound.astype(TYPES[kind])
        laid = samples if kind.endswith("p") else samples.T.reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(laid), kind, stream.layout.name)
        frame.rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    return path


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sounds")
    for name, (codec, settings, noise, channels, _) in SOUNDS.items():
        encode(folder / name, codec, settings, noise, channels)
    return folder


class Counted:
    """How many packets were decoded, and how many leaps stayed exact to the end."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.decoded = 0
        decode = SoundTrack.decode

        def counting(track: SoundTrack, packet: av.Packet) -> None:
            self.decoded += 1
            decode(track, packet)

        monkeypatch.setattr(SoundTrack, "decode", counting)


def cut(path: Path, folder: Path, window: tuple[float, float], kind: str = "audio") -> tuple[bytes, dict[str, object]]:
    folder.mkdir()
    clip = transcode(path, PRESETS[kind], folder, window=window)
    assert clip.flac is not None
    return clip.flac.read_bytes(), clip.columns


def from_start(
    path: Path, folder: Path, window: tuple[float, float], patch: pytest.MonkeyPatch
) -> tuple[bytes, dict[str, object]]:
    with patch.context() as slow:
        slow.setattr(leap, "WORTH", 10**9)
        return cut(path, folder, window)


@pytest.mark.parametrize("name", SOUNDS)
def test_a_leap_gives_what_decoding_from_the_start_gives(
    sounds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for number, window in enumerate([(24.237, 26.0), (35.0, 37.5)]):
        expected = from_start(sounds / name, tmp_path / f"slow{number}", window, monkeypatch)
        counted = Counted(monkeypatch)
        assert cut(sounds / name, tmp_path / f"fast{number}", window) == expected
        monkeypatch.undo()
        # A packet is 2.5 to 43 ms here: the window and what leads to it, or all from the start.
        assert (counted.decoded < 400) == SOUNDS[name][-1], counted.decoded


def test_what_a_window_costs_does_not_grow_with_its_place(
    sounds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Counted(monkeypatch)
    costs = []
    for number, start in enumerate((22.0, 36.0)):
        counted.decoded = 0
        cut(sounds / "tones.m4a", tmp_path / str(number), (start, start + 2))
        costs.append(counted.decoded)
    assert abs(costs[0] - costs[1]) < 16, costs


@pytest.mark.parametrize(("share", "what"), [(0.3, "before the window"), (0.87, "in the window")])
def test_a_damaged_packet_changes_nothing_of_it(
    sounds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float, what: str
) -> None:
    content = bytearray((sounds / "tones.m4a").read_bytes())
    begin = int(content.index(b"mdat") + share * len(content))
    content[begin : begin + 600] = np.random.default_rng(3).bytes(600)
    (tmp_path / "damaged.m4a").write_bytes(content)
    window = (33.0, 37.0)
    expected = from_start(tmp_path / "damaged.m4a", tmp_path / "slow", window, monkeypatch)
    assert cut(tmp_path / "damaged.m4a", tmp_path / "fast", window)[0] == expected[0], what


def test_a_table_of_times_that_lies_changes_nothing(
    sounds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The header says a pace that the packets do not keep: what was read so far does not count."""
    content = (sounds / "tones.m4a").read_bytes()
    at = content.index(b"stts") + 8
    first = int.from_bytes(content[at + 4 : at + 8], "big")
    lying = (600).to_bytes(4, "big") + content[at + 8 : at + 12] + (first - 600).to_bytes(4, "big") + b"\0\0\x04\x1a"
    (tmp_path / "lying.m4a").write_bytes(content[: at + 4] + lying + content[at + 20 :])
    window = (33.0, 37.0)
    expected = from_start(tmp_path / "lying.m4a", tmp_path / "slow", window, monkeypatch)
    assert cut(tmp_path / "lying.m4a", tmp_path / "fast", window) == expected


@pytest.mark.parametrize("ending", ["wav", "flac"])
def test_a_plain_sound_is_sought(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str) -> None:
    rate, path = 24000, tmp_path / f"sound.{ending}"
    soundfile.write(path, 0.3 * np.random.default_rng(0).standard_normal((rate * SECONDS, 2)), rate)
    added: list[Fraction] = []
    add = SoundTrack.add
    monkeypatch.setattr(SoundTrack, "add", lambda *given: (added.append(given[-1]), add(*given))[1])
    content, columns = cut(path, tmp_path / "far", (34.5, 38.25))
    assert added[:2] == [0, Fraction(3 * plain.BLOCK, rate)] and columns["source_audio_start"] == 0.0
    monkeypatch.setattr(sound_only, "open_plain", _never)
    assert cut(path, tmp_path / "ffmpeg", (34.5, 38.25))[0] == content
    assert columns["num_samples"] == 3.75 * 16000


def _never(path: Path) -> object:
    raise plain.NotPlain("as if it were none")


def test_the_sound_beside_a_picture_leaps_too(sounds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = write(Spec(fps="4", audio=None, seconds=SECONDS, size=(64, 48)), tmp_path / "picture.mp4")
    made = []
    for worth in (10**9, leap.WORTH):
        monkeypatch.setattr(leap, "WORTH", worth)
        folder = tmp_path / str(worth)
        folder.mkdir()
        clip = transcode(picture, PRESETS["jav"], folder, window=(30.0, 31.0), sound=sounds / "tones.m4a")
        assert clip.flac is not None and clip.mp4 is not None
        made.append((clip.flac.read_bytes(), clip.mp4.read_bytes(), clip.columns))
    assert made[0] == made[1]
