"""`javisc build audio` on real ESC-50 sounds: samples, lists of what is missing, and JavisDiT's table."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import polars as pl
import pytest
from click.testing import CliRunner

from javisc.cli import cli
from support.corpora import ANNOTATIONS
from support.shared import need


def run(*arguments: str) -> str:
    result = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six sounds of ESC-50, one more that nobody annotated, and one that is broken."""
    root = tmp_path_factory.mktemp("audio")
    (root / "raw/ESC50/audio").mkdir(parents=True)
    shutil.copytree(need(ANNOTATIONS / "ESC50/meta"), root / "raw/ESC50/meta")
    for sound in sorted((ANNOTATIONS / "ESC50/audio").iterdir())[:6]:
        shutil.copy(sound, root / "raw/ESC50/audio")
    (root / "raw/ESC50/audio/stranger.wav").write_bytes(sound.read_bytes())
    (root / "raw/ESC50/audio/1-100032-A-0.wav").write_bytes(b"RIFF, but nothing after it")
    before = {path: path.stat().st_mtime_ns for path in (root / "raw").rglob("*")}
    options = ["--corpus", "all", "--max-seconds", "3", "--workers", "2", "--out", str(root / "ds")]
    run("build", "audio", str(root / "raw"), *options)
    assert before == {path: path.stat().st_mtime_ns for path in (root / "raw").rglob("*")}, "raw files are only read"
    return root


def test_every_file_ends_in_one_of_the_tables(dataset: Path) -> None:
    manifest = pl.read_parquet(dataset / "ds/manifest.parquet")
    rejected = pl.read_parquet(dataset / "ds/rejected.parquet")
    unmatched = pl.read_parquet(dataset / "ds/unmatched.parquet")
    assert manifest.height == 6 and unmatched.height == 2000 - 7
    assert dict(rejected.select("relpath", "reason").iter_rows()) == {
        "ESC50/audio/stranger.wav": "no_caption",
        "ESC50/audio/1-100032-A-0.wav": "corrupt",
    }
    assert manifest["num_samples"].to_list() == [48000] * 6 and manifest["mp4_size"].null_count() == 6


def test_the_exported_table_is_javisdits(dataset: Path) -> None:
    run("export", str(dataset / "ds"), "--csv", str(dataset / "train_audio.csv"), "--kind", "audio")
    with (dataset / "train_audio.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    labels = {
        row["filename"]: row["category"].replace("_", " ")
        for row in csv.DictReader((dataset / "raw/ESC50/meta/esc50.csv").open(newline=""))
    }
    assert len(rows) == 6
    for row in rows:
        assert row == {
            "path": "placeholder.mp4",
            "id": "placeholder",
            "relpath": row["relpath"],
            "num_frames": "72",
            "height": "720",
            "width": "1280",
            "aspect_ratio": "0.5625",
            "fps": "24",
            "resolution": "921600",
            "audio_path": str(dataset / "raw" / row["relpath"]),
            "audio_fps": "16000",
            "text": "placeholder",
            "audio_text": labels[Path(row["relpath"]).name],
        }


def test_the_list_of_corpora(tmp_path: Path) -> None:
    said = run("build", "audio", "--list-corpora")
    for name in (
        "audiocaps",
        "audioset",
        "clotho",
        "esc50",
        "gtzan",
        "macs",
        "musicinstrument",
        "urbansound8k",
        "vggsound",
        "wavcaps",
    ):
        assert f"\n{name}  (" in "\n" + said
    assert "\ntavgbench  (" in "\n" + run("build", "jav", "--list-corpora")
