"""The face crop follows its boxes, frame by frame, and takes its time from the meta text."""

from __future__ import annotations

from pathlib import Path

import av
import pytest

from javisc.compiler.media.transcode import transcode
from javisc.compiler.reasons import Rejected
from javisc.compiler.recipe import PRESETS
from javisc.compiler.sparsesync.cuts import face_crop, read_meta
from support.faces import HEIGHT, SIDE, WIDTH, YOUTUBE, level, write_meta, write_video

RECIPE = PRESETS["sync"].replace(short_side=224, min_frames=1, crf=10.0)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("face") / f"{YOUTUBE}.mkv")


def check(video: Path, tmp_path: Path, first: int, last: int) -> None:
    text = write_meta(tmp_path, first, last, SIDE + 1)
    scratch = tmp_path / "clip"
    scratch.mkdir()
    clip = transcode(video, RECIPE, scratch, window=read_meta(text).window, crop=face_crop(text))
    columns, frames = clip.columns, last - first + 1
    size = (columns["num_frames"], columns["height"], columns["width"], columns["num_samples"])
    assert size == (frames, 224, 224, frames * 640)
    assert clip.mp4 is not None
    with av.open(str(clip.mp4)) as made:
        pictures = [frame.to_ndarray(format="gray") for frame in made.decode(video=0)]
    assert len(pictures) == frames
    for number, picture in enumerate(pictures, first):
        # The crop may hold a rim of black, of the pixel that rounding adds; the middle is the face.
        assert abs(float(picture[20:200, 20:200].mean()) - (level(number) - 16) * 255 / 219) < 3, number


def test_every_frame_is_the_face_of_its_own_time(video: Path, tmp_path: Path) -> None:
    check(video, tmp_path, 20, 49)


def test_deep_in_a_long_video_too(tmp_path: Path) -> None:
    video = write_video(tmp_path / f"{YOUTUBE}.mkv", 320, "libx264", crf="8", g="120", preset="ultrafast")
    check(video, tmp_path, 230, 290)


def test_a_box_that_is_no_face_refuses_the_clip(video: Path, tmp_path: Path) -> None:
    text = write_meta(tmp_path, 20, 30, WIDTH)
    scratch = tmp_path / "clip"
    scratch.mkdir()
    with pytest.raises(Rejected, match=r"00020\.txt: frame 20: a face of 320x"):
        transcode(video, RECIPE, scratch, window=read_meta(text).window, crop=face_crop(text))
    with pytest.raises(Rejected, match="names no YouTube id"):
        (tmp_path / "other.txt").write_text("hello")
        face_crop(tmp_path / "other.txt")


def test_a_frame_without_a_box_takes_the_nearest(tmp_path: Path) -> None:
    crop = face_crop(write_meta(tmp_path, 20, 30))
    assert crop(3, WIDTH, HEIGHT) == crop(20, WIDTH, HEIGHT) and crop(90, WIDTH, HEIGHT) == crop(30, WIDTH, HEIGHT)
