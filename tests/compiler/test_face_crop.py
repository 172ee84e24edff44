"""The face crop follows its boxes, frame by frame, and takes its time from the meta text."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from javisc.compiler.lrs3 import face_crop, read_meta
from javisc.compiler.reasons import Rejected
from javisc.compiler.recipe import PRESETS
from javisc.compiler.transcode import transcode

WIDTH, HEIGHT, SIDE = 320, 240, 60
RECIPE = PRESETS["sync"].replace(short_side=224, min_frames=1, crf=10.0)


def level(frame: int) -> int:
    return 60 + 2 * frame


def corner(frame: int) -> tuple[int, int]:
    """Left and top of the face in a frame."""
    return 20 + 3 * frame, 10 + 2 * frame


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty frames of a grey square that moves over black and grows lighter, with a tone."""
    path = tmp_path_factory.mktemp("face") / "C8zY0oAdQrs.mkv"
    with av.open(str(path), "w") as out:
        picture = out.add_stream("ffv1", rate=25)
        picture.width, picture.height, picture.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        sound = out.add_stream("pcm_s16le", rate=16000, layout="mono")
        for number in range(60):
            luma = np.full((HEIGHT * 3 // 2, WIDTH), 128, np.uint8)
            luma[:HEIGHT] = 16
            left, top = corner(number)
            luma[top : top + SIDE, left : left + SIDE] = level(number)
            frame = av.VideoFrame.from_ndarray(luma, "yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            out.mux(picture.encode(frame))
        tone = (8000 * np.sin(np.arange(38400) * 0.2)).astype(np.int16)[None]
        audio = av.AudioFrame.from_ndarray(tone, "s16", "mono")
        audio.sample_rate, audio.pts, audio.time_base = 16000, 0, Fraction(1, 16000)
        out.mux(sound.encode(audio))
        out.mux(picture.encode(None))
        out.mux(sound.encode(None))
    return path


def meta(folder: Path, first: int, last: int, side: int = SIDE) -> Path:
    rows = "".join(
        f"{n:06d} \t{corner(n)[0] / WIDTH:.6f} \t{corner(n)[1] / HEIGHT:.6f} \t{side / WIDTH:.6f} \t{side / HEIGHT:.6f}\n"
        for n in range(first, last + 1)
    )
    path = folder / f"{first:05d}.txt"
    path.write_text(f"Text:  A\nConf:  3\nRef:   C8zY0oAdQrs\n\nFRAME \tX \tY \tW \tH\n{rows}\n")
    return path


def test_every_frame_is_the_face_of_its_own_time(video: Path, tmp_path: Path) -> None:
    text = meta(tmp_path, 20, 49, SIDE + 1)
    scratch = tmp_path / "clip"
    scratch.mkdir()
    clip = transcode(video, RECIPE, scratch, window=read_meta(text).window, crop=face_crop(text))
    columns = clip.columns
    assert (columns["num_frames"], columns["height"], columns["width"], columns["num_samples"]) == (
        30,
        224,
        224,
        30 * 640,
    )
    assert clip.mp4 is not None
    with av.open(str(clip.mp4)) as made:
        pictures = [frame.to_ndarray(format="gray") for frame in made.decode(video=0)]
    assert len(pictures) == 30
    for number, picture in enumerate(pictures, 20):
        # The crop may hold a rim of black, of the pixel that rounding adds; the middle is the face.
        assert abs(float(picture[20:200, 20:200].mean()) - (level(number) - 16) * 255 / 219) < 3, number


def test_a_box_that_is_no_face_refuses_the_clip(video: Path, tmp_path: Path) -> None:
    text = meta(tmp_path, 20, 30, WIDTH)
    scratch = tmp_path / "clip"
    scratch.mkdir()
    with pytest.raises(Rejected, match=r"00020\.txt: frame 20: a face of 320x"):
        transcode(video, RECIPE, scratch, window=read_meta(text).window, crop=face_crop(text))
    with pytest.raises(Rejected, match="names no YouTube id"):
        (tmp_path / "other.txt").write_text("hello")
        face_crop(tmp_path / "other.txt")


def test_a_frame_without_a_box_takes_the_nearest(tmp_path: Path) -> None:
    crop = face_crop(meta(tmp_path, 20, 30))
    assert crop(3, WIDTH, HEIGHT) == crop(20, WIDTH, HEIGHT) and crop(90, WIDTH, HEIGHT) == crop(30, WIDTH, HEIGHT)
