"""`javisc build jav RAW --captions … --split …`, the README's own command: what stands in the cells afterwards."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import polars as pl
import pytest
from command.test_build import SMALL, run

from javisc.manifests.absent import found
from support.raw import write_clip

NAMES = ("a.mp4", "b.mp4", "sub/c.mp4", "sub/d.mp4", "e.mp4", "f.mp4")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("captions")
    for seed, name in enumerate(NAMES):
        write_clip(root / "raw" / name, seed=seed)
    pl.DataFrame(
        {"path": [str(root / "raw" / name) for name in NAMES[:5]], "text": [f"text of {name}" for name in NAMES[:5]]}
    ).write_csv(root / "captions.csv")
    arguments = ("--captions", root / "captions.csv", "--split", "train=0.5,val=0.5", *SMALL)
    done = run("build", "jav", root / "raw", "--out", root / "ds", *arguments)
    assert done.returncode == 0, done.stderr
    return root / "ds"


def test_captioned_rows_have_a_split_and_no_word_for_nothing(built: Path) -> None:
    rows = pl.read_parquet(built / "manifest.parquet").sort("relpath")
    assert found(rows) == []
    assert rows["text"].to_list() == [f"text of {name}" if name != "f.mp4" else None for name in rows["relpath"]]
    assert rows["texts"].to_list() == [None if text is None else [text] for text in rows["text"]]
    for name in ("audio_text", "unpaired_audio_path", "label", "corpus", "lang", "offset_sec", "vstart_sec"):
        assert rows[name].to_list() == [None] * 6, name
    assert set(rows["split"]) == {"train", "val"}
    kept = run("filter", built, "split == 'train'")
    assert f"{(rows['split'] == 'train').sum()} of 6 kept" in kept.stdout


def test_the_words_in_the_shards_are_the_manifests(built: Path) -> None:
    rows = {row["key"]: row for row in pl.read_parquet(built / "manifest.parquet").iter_rows(named=True)}
    with tarfile.open(built / "shards" / "000000.tar") as tar:
        for member in tar.getmembers():
            if member.name.endswith(".json"):
                said = json.load(tar.extractfile(member))  # type: ignore[arg-type]
                row = rows[member.name.removesuffix(".json")]
                assert {name: said.get(name) for name in ("text", "split", "label", "lang")} == {
                    name: row[name] for name in ("text", "split", "label", "lang")
                }
    assert run("verify", built).returncode == 0


def test_verify_names_a_dataset_of_before_the_fix(built: Path, tmp_path: Path) -> None:
    old = tmp_path / "old"
    old.mkdir()
    for path in built.iterdir():
        if path.name != "manifest.parquet" and not path.name.startswith("."):
            (old / path.name).symlink_to(path)
    lost = pl.col("text").is_not_null()
    rows = pl.read_parquet(built / "manifest.parquet")
    rows.with_columns(
        pl.when(lost).then(pl.lit("None")).otherwise(name).alias(name) for name in ("split", "label")
    ).write_parquet(old / "manifest.parquet")
    done = run("verify", old)
    assert done.returncode == 1
    assert "5 rows hold the text 'None' as split, where nothing is known" in done.stdout
    assert f"`javisc repair {old}` mends it" in done.stdout
