"""Broken, hostile and mislabelled files end in `Rejected` or in a sound clip: never in a crash, a hang or another exception."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from av.video.frame import VideoFrame

from javisc.compiler.media.open import probe
from javisc.compiler.media.transcode import transcode
from javisc.compiler.reasons import REASONS, Rejected
from javisc.compiler.recipe import PRESETS, Recipe
from support.media import Spec, decode_pictures, ffmpeg, write

FAST = PRESETS["jav"].replace(encoder_preset="ultrafast")
SOURCES = {
    "mp4": Spec(seconds=1.5, video_options=(("bf", "2"), ("g", "12"))),
    "mkv": Spec("matroska", audio="libopus", rate=48000, seconds=1.5, video_options=(("bf", "2"), ("g", "12"))),
    "ts": Spec("mpegts", "mpeg2video", "mp2", rate=48000, seconds=1.5),
    "avi": Spec("avi", "mpeg4", "libmp3lame", seconds=1.5),
    "m4v": Spec(seconds=1.5, format_options=(("movflags", "frag_keyframe+empty_moov"),), video_options=(("g", "6"),)),
    "webm": Spec(
        "webm",
        "libvpx-vp9",
        "libopus",
        rate=48000,
        seconds=1.5,
        video_options=(("deadline", "realtime"), ("cpu-used", "8")),
    ),
}


def outcome(source: Path, scratch: Path, recipe: Recipe = FAST) -> str:
    """ "ok" or the reason; every file that comes out must be whole."""
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    try:
        clip = transcode(source, recipe, scratch)
    except Rejected as rejected:
        assert rejected.reason in REASONS and rejected.message
        return rejected.reason
    assert clip.mp4 is not None and clip.flac is not None
    assert len(decode_pictures(clip.mp4).numbers) == clip.columns["num_frames"]
    assert soundfile.info(clip.flac).frames == clip.columns["num_samples"]
    return "ok"


def storm(folder: str) -> None:
    """Run in a process of its own: damage each source in many ways; print the counts of the outcomes."""
    chance = random.Random(20)
    place = Path(folder)
    counts: dict[str, int] = {}
    for source in sorted(place.glob("whole.*")):
        content = source.read_bytes()
        victims = [content[: len(content) * part // 12] for part in range(1, 12)] + [
            content[:n] for n in (1, 7, 64, 1000)
        ]
        for flips in (1, 8, 64, 512):
            for _ in range(4):
                damaged = bytearray(content)
                for _ in range(flips):
                    damaged[chance.randrange(len(damaged))] ^= 1 << chance.randrange(8)
                victims.append(bytes(damaged))
        hole = bytearray(content)
        hole[len(hole) // 3 : len(hole) // 2] = bytes(len(hole) // 2 - len(hole) // 3)
        victims.append(bytes(hole))
        for number, victim in enumerate(victims):
            path = place / f"victim{source.suffix}"
            path.write_bytes(victim)
            started = time.monotonic()
            result = outcome(path, place / "scratch")
            counts[result] = counts.get(result, 0) + 1
            assert time.monotonic() - started < 30, f"{source.name} victim {number} took too long"
    print(json.dumps(counts))


def test_damage_of_every_kind(tmp_path: Path) -> None:
    for name, spec in SOURCES.items():
        write(spec, tmp_path / f"whole.{name}")
    places = [str(Path(__file__).parents[2]), str(Path(__file__).parent)]
    code = f"import sys; sys.path[:0] = {places!r}\nimport test_broken; test_broken.storm({str(tmp_path)!r})"
    ran = subprocess.run(
        [sys.executable, "-P", "-X", "faulthandler", "-c", code], capture_output=True, text=True, timeout=300
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    counts = json.loads(ran.stdout)
    assert counts["ok"] > 20 and sum(counts.values()) == 32 * len(SOURCES)
    assert set(counts) <= {
        "ok",
        "corrupt",
        "not_media",
        "too_short",
        "no_audio",
        "no_video",
        "timestamps",
        "unsupported",
    }, counts


def test_names_and_things_that_are_no_media(tmp_path: Path) -> None:
    text, empty, dangling, fifo = (
        tmp_path / "text.mp4",
        tmp_path / "empty.mp4",
        tmp_path / "dangling.mp4",
        tmp_path / "pipe.mp4",
    )
    text.write_text("not a film, whatever its name says\n" * 100)
    empty.touch()
    dangling.symlink_to(tmp_path / "nowhere")
    os.mkfifo(fifo)
    (tmp_path / "folder.mp4").mkdir()
    scratch = tmp_path / "scratch"
    assert outcome(text, scratch) == "not_media"
    assert outcome(empty, scratch) == "empty"
    assert outcome(dangling, scratch) == "unreadable"
    assert outcome(fifo, scratch) == "unreadable"
    assert outcome(tmp_path / "folder.mp4", scratch) == "unreadable"
    assert outcome(tmp_path / "absent.mp4", scratch) == "vanished"
    noise = tmp_path / "noise.mp4"
    noise.write_bytes(random.Random(1).randbytes(100_000))
    assert outcome(noise, scratch) in ("not_media", "corrupt")


@pytest.mark.parametrize(
    "name",
    [
        "with space.mp4",
        "quo'te\".mp4",
        "new\nline.mp4",
        "日本語 – Ünïcode.mp4",
        "http:x.mp4",
        "concat:a|b.mp4",
        "-dash.mp4",
        "%03d.mp4",
    ],
)
def test_any_name_is_only_a_name(tmp_path: Path, name: str) -> None:
    source = write(Spec(seconds=0.8), tmp_path / "plain.mp4").rename(tmp_path / f"{name}.mp4")
    assert outcome(source, tmp_path / "scratch") == "ok"


def test_playlists_open_no_other_file(tmp_path: Path) -> None:
    """A playlist named like a video must not make the decoder read what it names."""
    secret = write(Spec(seconds=1.0), tmp_path / "secret.mp4")
    for name, content in {
        "hls.mp4": f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{secret}\n#EXT-X-ENDLIST\n",
        "concat.mp4": f"ffconcat version 1.0\nfile {secret}\n",
        "dash.mp4": f'<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><BaseURL>{secret}</BaseURL></MPD>',
        "sdp.mp4": "v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n",
    }.items():
        path = tmp_path / name
        path.write_text(content)
        assert outcome(path, tmp_path / "scratch") == "not_media", name


def test_bytes_cannot_be_read(tmp_path: Path) -> None:
    source = write(Spec(seconds=0.8), tmp_path / "source.mp4")
    source.chmod(0)
    if os.access(source, os.R_OK):
        pytest.skip("this user may read everything")
    assert outcome(source, tmp_path / "scratch") == "unreadable"


def test_missing_streams(tmp_path: Path) -> None:
    silent = write(Spec(audio=None, seconds=0.8), tmp_path / "silent.mp4")
    assert outcome(silent, tmp_path / "s") == "no_audio"
    assert probe(silent).health == "no_audio"
    clip = transcode(silent, FAST.replace(allow_silent=True), tmp_path)
    assert clip.flac is None and clip.columns["channels"] == 0 and clip.columns["silent"] is True
    sound = tmp_path / "sound.m4a"
    ffmpeg("-f", "lavfi", "-i", "sine=duration=2", "-c:a", "aac", sound)
    assert outcome(sound, tmp_path / "s") == "no_video"
    assert probe(sound).health == "no_video"


def test_cover_art_is_no_video(tmp_path: Path) -> None:
    cover, song = tmp_path / "cover.png", tmp_path / "song.mp3"
    av.VideoFrame(64, 64, "rgb24").save(cover)
    ffmpeg(
        "-f",
        "lavfi",
        "-i",
        "sine=duration=2",
        "-i",
        cover,
        "-map",
        "0",
        "-map",
        "1",
        "-disposition:v",
        "attached_pic",
        song,
    )
    assert outcome(song, tmp_path / "s") == "no_video"
    film = tmp_path / "film.mp4"
    write(Spec(seconds=1.0), tmp_path / "plain.mp4")
    art = ["-map", "0", "-map", "1", "-c", "copy", "-disposition:v:0", "attached_pic"]
    ffmpeg("-i", cover, "-i", tmp_path / "plain.mp4", *art, film)
    assert outcome(film, tmp_path / "s") == "ok"


def test_too_short(tmp_path: Path) -> None:
    assert outcome(write(Spec(seconds=0.3), tmp_path / "short.mp4"), tmp_path / "s") == "too_short"


def test_sound_that_misses_the_picture(tmp_path: Path) -> None:
    source = write(Spec("matroska", picture_seconds=1.0, seconds=1.0, audio_late=5.0), tmp_path / "source.mkv")
    assert outcome(source, tmp_path / "s") == "no_audio"


def test_a_clock_that_leaps(tmp_path: Path) -> None:
    times = tuple(sorted({*Spec(seconds=1.0).frame_times, *(time + 500 for time in Spec(seconds=1.0).frame_times)}))
    source = write(Spec("matroska", times=times, seconds=1.0), tmp_path / "source.mkv")
    assert outcome(source, tmp_path / "s") == "timestamps"


def test_headers_that_lie(tmp_path: Path) -> None:
    """Duration, frame count and rate in the header of a truncated file do not matter: what decodes counts."""
    source = write(Spec("matroska", seconds=3.5), tmp_path / "source.mkv")
    content = source.read_bytes()
    source.write_bytes(content[: len(content) * 2 // 3])
    clip = transcode(source, FAST, tmp_path)
    assert clip.columns["source_declared_seconds"] == pytest.approx(3.5, abs=0.1)
    frames = clip.columns["num_frames"]
    assert isinstance(frames, int) and 30 < frames < 75
    liar = write(Spec("avi", "mpeg4", "pcm_s16le"), tmp_path / "liar.avi")
    content = bytearray(liar.read_bytes())
    at = content.index(b"avih") + 8
    content[at + 16 : at + 20] = (9999).to_bytes(4, "little")
    at = content.index(b"strh") + 8
    content[at + 32 : at + 36] = (9999).to_bytes(4, "little")
    liar.write_bytes(content)
    clip = transcode(liar, FAST, tmp_path)
    assert clip.columns["source_decoded_frames"] == 88 and clip.columns["num_frames"] == 85


def test_longer_than_wanted(tmp_path: Path) -> None:
    source = write(Spec(), tmp_path / "source.mp4")
    clip = transcode(source, FAST.replace(max_seconds=1.0), tmp_path)
    assert clip.columns["num_frames"] == 24 and clip.columns["num_samples"] == 16000


@pytest.mark.parametrize("bad", [0, 1, 3])
def test_the_share_of_pictures_that_do_not_decode(bad: int, tmp_path: Path) -> None:
    """Each of forty counts once."""
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as file:
        stream = file.add_stream("mjpeg", rate=24)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        for number in range(40):
            frame = VideoFrame.from_ndarray(np.full((48, 64, 3), number, np.uint8), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 24)
            for packet in stream.encode(frame):
                if number in (9, 20, 30)[:bad]:
                    packet.update(bytes(packet.size))
                file.mux(packet)
    clip = transcode(path, FAST.replace(allow_silent=True), tmp_path)
    assert clip.columns["damaged_pictures"] == pytest.approx(bad / 40) and clip.columns["num_frames"] == 40
