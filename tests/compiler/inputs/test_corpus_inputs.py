"""Finding corpora below a folder, however it is named, and the input table they make."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import polars as pl
import pytest

from javisc.compiler.inputs.known import find_corpora, from_corpora
from javisc.compiler.inputs.local import AUDIO_SUFFIXES, VIDEO_SUFFIXES
from javisc.compiler.inputs.table import BESIDE, INPUT_SCHEMA
from javisc.manifests.errors import UserError
from support.corpora import ANNOTATIONS
from support.shared import need


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """ESC-50 and UrbanSound8K as they are, Clotho without sounds, MACS without its second file."""
    for folder in ("ESC50", "UrbanSound8K"):
        shutil.copytree(need(ANNOTATIONS / folder), tmp_path / "raw" / folder)
    (tmp_path / "raw/MACS").mkdir()
    (tmp_path / "raw/MACS/MACS.yaml").write_text("files: []\n")
    (tmp_path / "raw/else").mkdir()
    return tmp_path / "raw"


def inputs(raw: str, *specs: str, out: Path, splits: tuple[str, ...] = ()) -> tuple[pl.DataFrame, list[str]]:
    said: list[str] = []
    make = from_corpora(specs, [raw], "audio", AUDIO_SUFFIXES, out=str(out), splits=splits, say=said.append)
    return make(out.parent).collect(), said


def test_all_takes_what_is_there_and_says_what_is_missing(raw: Path, tmp_path: Path) -> None:
    table, said = inputs(str(raw), "all", out=tmp_path / "ds")
    assert table.schema == INPUT_SCHEMA and set(table["corpus"]) == {"esc50", "urbansound8k"}
    assert any(
        "left out: corpus macs: MACS_competence.csv (columns annotator_id, competence) is not there" in line
        for line in said
    )
    real = len(list((raw / "ESC50/audio").iterdir()))
    assert f"esc50: {real} of {real} files go in; left out: {2000 - real} annotations without a file" in said
    listed = pl.read_parquet(tmp_path / BESIDE / "unmatched.parquet")
    assert listed.filter(corpus="esc50").height == 2000 - real
    row = table.row(by_predicate=pl.col("id") == "4-181999-A-36", named=True)
    assert (row["relpath"], row["audio_text"], row["split"]) == (
        "ESC50/audio/4-181999-A-36.wav",
        "vacuum cleaner",
        "fold4",
    )


def test_however_the_folder_is_named_the_samples_are_the_same(raw: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(raw)
    ways = [
        (str(raw), "esc50"),
        (f"{raw}/", "ESC-50"),
        (f"{raw}/else/..", "esc50"),
        (str(tmp_path / "link"), "esc50"),
        (str(raw / "ESC50"), "esc50"),
        (str(raw / "else"), f"esc50={raw}/else/../ESC50"),
        (str(raw), "esc50=ESC50/"),
        (os.path.relpath(raw), "esc50"),
    ]
    tables = [inputs(where, spec, out=tmp_path / "ds")[0].sort("relpath") for where, spec in ways]
    same = ["relpath", "id", "text", "audio_text", "label", "split", "corpus", "refused"]
    assert all(table.select(same).equals(tables[0].select(same)) for table in tables)


def test_a_link_to_a_sound_elsewhere_counts_as_the_sound(raw: Path, tmp_path: Path) -> None:
    sound = next((raw / "ESC50/audio").iterdir())
    shutil.move(sound, tmp_path / "elsewhere.wav")
    sound.symlink_to(tmp_path / "elsewhere.wav")
    table, _ = inputs(str(raw), "esc50", out=tmp_path / "ds")
    row = table.row(by_predicate=pl.col("id") == sound.stem, named=True)
    assert row["refused"] is None and row["text"]


def test_other_splits_are_refused_not_lost(raw: Path, tmp_path: Path) -> None:
    table, _ = inputs(str(raw), "esc50", out=tmp_path / "ds", splits=("fold4",))
    kept, left = table.filter(pl.col("refused").is_null()), table.filter(pl.col("refused") == "filtered")
    assert set(kept["split"]) == {"fold4"} and left.height == table.height - kept.height > 0
    assert "--corpus-split" in left["refused_message"][0]


@pytest.mark.parametrize(
    ("where", "spec", "message"),
    [
        ("", "nothing", "--corpus nothing: no such corpus; known for this build: audiocaps,"),
        ("", "clotho", "corpus clotho: none of clotho_captions_development.csv,"),
        ("", "esc50=nowhere", "nowhere is no folder"),
        ("", "esc50=UrbanSound8K", r"meta/esc50\.csv \(columns filename, fold, category\) is not there"),
        ("", "all=ESC50", "give NAME=ROOT per corpus"),
        ("else", "all", "holds no corpus known here"),
        ("nowhere", "all", "is no folder"),
        ("ESC50/meta/esc50.csv", "esc50", "is no folder"),
        ("", "tavgbench", "no such corpus"),
    ],
)
def test_mistakes_are_told_in_one_line(raw: Path, where: str, spec: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        find_corpora([spec], str(raw / where), "audio", lambda line: None)


def test_a_url_needs_the_annotations_at_hand(raw: Path) -> None:
    with pytest.raises(UserError, match="for a URL give esc50=ROOT"):
        find_corpora(["esc50"], "s3://bucket/ESC50", "audio", lambda line: None)
    found = find_corpora([f"esc50={raw}/ESC50"], "s3://bucket/ESC50", "audio", lambda line: None)
    assert found[0].media == "s3://bucket/ESC50" and found[0].root == raw / "ESC50"


def test_annotations_without_media(raw: Path, tmp_path: Path) -> None:
    shutil.rmtree(raw / "ESC50/audio")
    with pytest.raises(UserError, match="has annotations but no media"):
        inputs(str(raw), "esc50", out=tmp_path / "ds")


def test_all_goes_on_without_a_corpus_that_has_no_media(raw: Path, tmp_path: Path) -> None:
    shutil.rmtree(raw / "ESC50/audio")
    table, said = inputs(str(raw), "all", out=tmp_path / "ds")
    assert set(table["corpus"]) == {"urbansound8k"}
    assert any(line.startswith("left out: corpus esc50 at") for line in said)
    shutil.rmtree(raw / "UrbanSound8K/audio")
    with pytest.raises(UserError, match="no corpus below .* has files that can be used"):
        inputs(str(raw), "all", out=tmp_path / "ds")


def test_a_split_that_is_not_there_names_those_that_are(raw: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="splits for --corpus-split: fold1, fold2, fold3, fold4, fold5"):
        inputs(str(raw), "esc50", out=tmp_path / "ds", splits=("tset",))


def test_the_same_corpus_twice_is_one(raw: Path, tmp_path: Path) -> None:
    table, _ = inputs(str(raw), "esc50", "all", out=tmp_path / "ds")
    assert table["relpath"].is_unique().all()


def test_a_video_corpus(tmp_path: Path) -> None:
    root = tmp_path / "TAVGBench"
    (root / "videos/a").mkdir(parents=True)
    (root / "videos/a/---ISVHfTDo_0_10000.mp4").write_bytes(b"x")
    (root / "videos/a/---ISVHfTDo_9_10000.mp4").write_bytes(b"x")
    (root / "release_captions.txt").write_text("---ISVHfTDo_0_10000.mp4 A man plays.\nAAAISVHfTDo_0_10000.mp4 Rain.\n")
    make = from_corpora(["tavgbench"], [str(tmp_path)], "video", VIDEO_SUFFIXES, out=str(tmp_path / "ds"))
    table = make(tmp_path).collect().sort("relpath")
    assert table.select("text", "audio_text", "refused").rows() == [
        ("A man plays.", None, None),
        (None, None, "no_caption"),
    ]
    assert pl.read_parquet(tmp_path / BESIDE / "unmatched.parquet")["identity"].to_list() == ["AAAISVHfTDo_0_10000"]
