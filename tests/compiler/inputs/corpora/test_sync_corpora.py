"""LRS3 and VGGSound as SparseSync uses them: its published lists, its filters, its twelve classes."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import polars as pl
import pytest

from javisc.compiler.inputs.corpora import of_kind
from javisc.compiler.inputs.corpora.vggsound_sync import SPARSE
from javisc.compiler.inputs.sync_lists import SyncCorpus
from support.corpora import ANNOTATIONS, Annotations, annotations
from support.shared import need


def corpus(name: str) -> SyncCorpus:
    found = of_kind("sync")[name]
    assert isinstance(found, SyncCorpus)
    return found


def counts(found: Annotations) -> dict[str, int]:
    return dict(found.frame["split"].value_counts().iter_rows())


@pytest.fixture(scope="module")
def vggsound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SparseSync's lists beside a table of the form of vggsound.csv."""
    root = tmp_path_factory.mktemp("vggsound")
    shutil.copytree(need(ANNOTATIONS / "VGGSound"), root, dirs_exist_ok=True)
    shutil.copy(root / "vggsound_derived.csv", root / "vggsound.csv")
    return root


def test_lrs3_published_lists() -> None:
    found = annotations(corpus("lrs3"), need(ANNOTATIONS / "LRS3"))
    assert counts(found) == {"train": 46387, "val": 5631, "test": 5966}
    assert found.excluded.height == 59447 and found.problems.count == 0


def test_lrs3_without_lists_is_split_by_the_rule(tmp_path: Path) -> None:
    files = [f"pretrain/video{video:02d}/{clip:05d}.mp4" for video in range(20) for clip in range(3)]
    (tmp_path / "filtered_examples_lrs").mkdir()
    (tmp_path / "filtered_examples_lrs/less_than_9s.txt").write_text(
        "/pretrain/video00/00000.mp4\npretrain/video00/00001\n"
    )
    found = annotations(corpus("lrs3"), tmp_path, files)
    videos = found.frame.with_columns(pl.col("identity").str.split("/").list.get(1).alias("video"))
    assert found.frame.height == 58
    assert {split: videos.filter(split=split)["video"].n_unique() for split in ("train", "val", "test")} == {
        "train": 16,
        "val": 2,
        "test": 2,
    }
    assert dict(found.excluded.iter_rows())["pretrain/video00/00000"] == "is left out by less_than_9s.txt"


@pytest.mark.parametrize(
    ("relpath", "identity"),
    [
        ("pretrain/-MTRxRO5SRA/00002.mp4", "pretrain/-MTRxRO5SRA/00002"),
        ("h264_uncropped_25fps_256side_16000hz_aac/pretrain/-MTRxRO5SRA/00002.mp4", "pretrain/-MTRxRO5SRA/00002"),
        ("-MTRxRO5SRA/00002.mp4", "pretrain/-MTRxRO5SRA/00002"),
        ("trainval/-MTRxRO5SRA/00002.mp4", None),
        ("00002.mp4", None),
    ],
)
def test_lrs3_clips_are_known_by_video_and_number(relpath: str, identity: str | None) -> None:
    assert corpus("lrs3").identity(relpath) == identity


def test_vggsound_published_lists_less_the_filters(vggsound: Path) -> None:
    found = annotations(corpus("vggsound"), vggsound)
    assert counts(found) == {"train": 154078, "val": 18371, "test": 14022}
    assert found.excluded.height == 3605 and found.problems.count == 0


def test_the_lists_may_lie_elsewhere(vggsound: Path, tmp_path: Path) -> None:
    """The first lines of each of the published lists."""
    for name, lines in {"train": 50, "valid": 30, "test": 20}.items():
        with (vggsound / f"vggsound_{name}.txt").open() as file:
            (tmp_path / "lists").mkdir(exist_ok=True)
            (tmp_path / f"lists/vggsound_{name}.txt").write_text("".join(next(file) for _ in range(lines)))
    (tmp_path / "vggsound.csv").write_text("---g-f_I2yQ,1,people marching,test\n")
    found = annotations(corpus("vggsound").with_lists(tmp_path / "lists"), tmp_path)
    assert counts(found) == {"train": 50, "val": 30, "test": 20}


def test_sparse_takes_the_picked_classes_alone(vggsound: Path) -> None:
    found = annotations(corpus("vggsound-sparse"), vggsound)
    assert set(found.frame["label"]) == SPARSE and len(SPARSE) == 12
    with (vggsound / "picked_sparse_classes.csv").open(newline="") as file:
        assert {row["class"] for row in csv.DictReader(file, delimiter="\t") if row["is_sparse"] == "y"} == SPARSE
    assert "which is not among the 12 picked" in dict(found.excluded.iter_rows())["---g-f_I2yQ_1000_11000"]


def test_vggsound_without_lists_is_split_by_the_rule(tmp_path: Path) -> None:
    shutil.copy(need(ANNOTATIONS / "VGGSound/vggsound_derived.csv"), tmp_path / "vggsound.csv")
    found = annotations(corpus("vggsound"), tmp_path)
    assert found.frame.height == 135942 and counts(found)["test"] == 15446
    videos = found.frame.with_columns(pl.col("identity").str.head(11).alias("video"))
    counted = videos.group_by("label", "split").agg(pl.col("video").n_unique())
    of = {(label, split): count for label, split, count in counted.iter_rows()}
    for label in found.frame["label"].unique():
        train, val, test = (of.get((label, split), 0) for split in ("train", "val", "test"))
        assert val >= min(test, train + val), label


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    message = "vggsound.csv (columns id, start, label, split) is not there"
    assert corpus("vggsound").missing(tmp_path) == corpus("vggsound-sparse").missing(tmp_path) == [message]
    for name in ("lrs3", "vggsound", "vggsound-sparse", "vggsound-sparse-clean", "audioset"):
        assert corpus(name).missing(tmp_path / "nowhere") == [f"{tmp_path / 'nowhere'} is no folder"], name
    (clean,) = corpus("vggsound-sparse-clean").missing(tmp_path)
    assert clean == "vggsound_sparse_clean_fixed_offsets.csv (columns video_id, is_sync) is not there"


CLIPS = ["unbalanced_train_segments/--aaaaaaaaa_0_10000", "balanced_train_segments/bbbbbbbbbbb_30000_40000",
         "eval_segments/ccccccccccc_5000_15000", "eval_segments/ddddddddddd_0_10000"]  # fmt: skip


@pytest.mark.parametrize("listed", [True, False])
def test_audioset_of_synchformer_is_split_by_its_folders(tmp_path: Path, listed: bool) -> None:
    """With or without its list; a list of clips to leave out counts either way, and names are those of the lists of offsets."""
    lists = tmp_path / "data"
    (lists / "filtered_examples_audioset").mkdir(parents=True)
    (lists / "filtered_examples_audioset/less_than_9s.txt").write_text("eval_segments/ddddddddddd_0_10000.mp4\n")
    if listed:
        rows = [f'{clip}.mp4,0,10,"/m/1,/m/2",x\n' for clip in CLIPS]
        (lists / "audioset.csv").write_text("path,start,end,labels,phase\n" + "".join(rows[1:]) + "nonsense,0,10,,x\n")
    found = annotations(corpus("audioset").with_lists(lists), tmp_path, [f"{clip}.mp4" for clip in CLIPS])
    wanted = {"balanced/bbbbbbbbbbb_30000_40000": "val", "eval/ccccccccccc_5000_15000": "test"}
    assert dict(found.frame.select("identity", "split").iter_rows()) == (
        wanted if listed else {"unbalanced/--aaaaaaaaa_0_10000": "train", **wanted}
    )
    assert found.excluded["identity"].to_list() == ["eval/ddddddddddd_0_10000"]
    assert found.problems.count == int(listed)
    assert corpus("audioset").film("eval/ccccccccccc_5000_15000") == "youtube/ccccccccccc"
