"""`javisc build` on containers of every kind that is scanned, and `build audio --from-video`."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
from click.testing import CliRunner

from javisc.cli import cli
from javisc.manifests.errors import UserError
from support.media import Spec, write

#: Suffix → how such a file is written.
KINDS = {
    "flv": Spec("flv", "flv", "libmp3lame", seconds=1.0),
    "3gp": Spec("3gp", "mpeg4", "aac", seconds=1.0),
    "wmv": Spec("asf", "wmv2", "libmp3lame", seconds=1.0),
    "mts": Spec("mpegts", "libx264", "ac3", rate=48000, seconds=1.0),
    "ogv": Spec("ogg", "libvpx", "libopus", rate=48000, seconds=1.0),
    "264": Spec("h264", "libx264", None, fps="30", seconds=1.0),
    "h265": Spec("hevc", "libx265", None, fps="30", seconds=1.0, video_options=(("x265-params", "log-level=none"),)),
}


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kinds")
    for suffix, spec in KINDS.items():
        write(spec, folder / f"clip.{suffix}")
    (folder / "notes.docx").write_text("no media")
    return folder


def javisc(*arguments: object) -> str:
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


def test_every_kind_becomes_a_clip(raw: Path, tmp_path: Path) -> None:
    said = javisc("build", "jav", raw, "--out", tmp_path / "DS", "--allow-silent", "--encoder-preset", "ultrafast")
    assert "1 files of other kinds were passed over: .docx 1" in said
    rows = pl.read_parquet(tmp_path / "DS" / "manifest.parquet")
    assert sorted(rows["relpath"]) == sorted(f"clip.{suffix}" for suffix in KINDS)
    silent = set(rows.filter(pl.col("silent"))["relpath"])
    assert silent == {"clip.264", "clip.h265"}
    assert rows["num_frames"].is_between(24, 25).all()


def test_sound_of_videos(raw: Path, tmp_path: Path) -> None:
    said = CliRunner().invoke(cli, ["build", "audio", str(raw), "--out", str(tmp_path / "none")])
    assert isinstance(said.exception, UserError) and "passed over" in said.output
    javisc("build", "audio", raw, "--from-video", "--out", tmp_path / "DS")
    rows = pl.read_parquet(tmp_path / "DS" / "manifest.parquet")
    assert sorted(rows["relpath"]) == sorted(f"clip.{suffix}" for suffix in KINDS if suffix not in ("264", "h265"))
    assert rows["duration"].is_between(0.9, 1.1).all() and rows["mp4_size"].null_count() == rows.height
    refused = pl.read_parquet(tmp_path / "DS" / "rejected.parquet")
    assert refused["reason"].to_list() == ["no_audio"] * 2
