"""Corpora whose file names or folders say all there is: GTZAN, Landscape, AIST."""

from __future__ import annotations

from pathlib import Path

from javisc.compiler.inputs.corpora import of_kind
from support.corpora import annotations, row


def test_gtzan_takes_the_genre_from_the_folder(tmp_path: Path) -> None:
    corpus = of_kind("audio")["gtzan"]
    assert corpus.missing(tmp_path) == ["data/genres_original is not there"]
    (tmp_path / "data/genres_original/hiphop").mkdir(parents=True)
    found = annotations(corpus, tmp_path, ["data/genres_original/hiphop/hiphop.00001.wav", "data/other/x.wav"])
    assert found.frame.height == 1 and row(found, "hiphop/hiphop.00001")["audio_text"] == "music hiphop"


def test_landscape_takes_the_class_from_name_or_folder(tmp_path: Path) -> None:
    names = ["train/fire_crackling_136_6_34.mp4", "test/wind_noise_1.mp4", "thunder/abc.mp4", "train/holiday.mp4"]
    found = annotations(of_kind("video")["landscape"], tmp_path, names)
    assert found.frame.select("text", "split").rows() == [
        ("fire crackling", "train"),
        ("wind noise", "test"),
        ("thunder", None),
    ]
    assert found.frame["audio_text"].to_list() == found.frame["text"].to_list()


def test_aist_takes_the_genre_from_the_name_and_the_split_from_aistplusplus(tmp_path: Path) -> None:
    (tmp_path / "splits").mkdir()
    (tmp_path / "splits/crossmodal_val.txt").write_text("gMH_sBM_cAll_d22_mMH0_ch08\n")
    names = [
        "v/gMH_sBM_c01_d22_mMH0_ch08.mp4",
        "gBR_sGR_c02_d01_d02_d03_mBR3_ch04.mp4",
        "sSH_c01_v0.mp4",
        "gXX_sBM_c01_d22_mXX0_ch08.mp4",
    ]
    found = annotations(of_kind("video")["aist"], tmp_path, names)
    assert found.frame.select("text", "split").rows() == [("middle hip-hop dance", "val"), ("break dance", None)]
    assert found.frame["audio_text"].to_list() == [None, None]
