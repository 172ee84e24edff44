"""`javisc build prior masklets --text`: objects of any video, found by words, by SAM 3 or by Grounding DINO and a follower."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from javisc.manifests.errors import UserError
from javisc.manifests.io import Dataset
from javisc.trainer.use.prior import queried
from javisc.trainer.use.prior.masklets import Masklets
from javisc.trainer.use.prior.objects import rle
from javisc.trainer.use.prior.queried import Queried, in_size
from javisc.trainer.use.prior.run import RunOptions, run
from javisc.trainer.use.prior.segmenters import Segmenter
from support import tiny_vision
from support.annotated import moving, write


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("vision")
    return {"sam3": tiny_vision.sam3(root / "sam3"), "dino": tiny_vision.grounding_dino(root / "dino")}


def pictures(frames: int = 4) -> np.ndarray:
    out = np.full((frames, 120, 160, 3), 40, np.uint8)
    out[moving(1, frames)] = 220
    return out


def same(one: list[tuple[str, dict[int, Any]]], other: list[tuple[str, dict[int, Any]]]) -> bool:
    return [text for text, _ in one] == [text for text, _ in other] and all(
        a.keys() == b.keys() and all(np.array_equal(a[at], b[at]) for at in a)
        for (_, a), (_, b) in zip(one, other, strict=True)
    )


def test_sam3_finds_texts_by_itself_and_a_window_is_made_again_alone(found: dict[str, Path]) -> None:
    finder = Queried(Segmenter(str(found["sam3"])), ["a dog", "a car", "a  dog"], "", None)
    loaded = finder.load("cpu")
    objects = finder.objects(loaded, pictures())
    assert {text for text, _ in objects} <= {"a dog", "a car"} and 1 <= len(objects) <= 3
    assert all(mask.shape == (120, 160) and at < 4 for _, masks in objects for at, mask in masks.items())
    assert same(objects, finder.objects(loaded, pictures()))
    assert finder.header()["text"] == ["a dog", "a car"] and finder.paths == [found["sam3"]]
    strict = Queried(Segmenter(str(found["sam3"])), ["a dog"], "", 1.0)
    assert strict.objects(strict.load("cpu"), pictures()) == [], "--score is the least that a find must score"


@pytest.mark.parametrize("follower", ["segmenter", "edgetam"])
def test_what_the_detector_finds_is_followed_to_both_ends(
    found: dict[str, Path], networks: dict[str, Path], tmp_path: Path, follower: str
) -> None:
    path = tiny_vision.edgetam(tmp_path / "edgetam") if follower == "edgetam" else networks[follower]
    finder = Queried(Segmenter(str(path)), ["a dog", "a car"], str(found["dino"]), 0.0)
    loaded = finder.load("cpu")
    shown = finder.boxes(loaded[1], pictures()[1], "cpu")
    objects = finder.objects(loaded, pictures())
    assert [text for text, _ in objects] == [text for text, _ in shown] and 1 <= len(objects) <= 8
    assert all(masks.keys() == {0, 1, 2, 3} for _, masks in objects)
    for _, (left, top, right, bottom) in shown:
        assert 0 <= left < right <= 159 and 0 <= top < bottom <= 119
    assert same(objects, finder.objects(loaded, pictures()))
    # One text's finds do not depend on the other's.
    alone = Queried(Segmenter(str(path)), ["a car"], str(found["dino"]), 0.0)
    assert {str(box) for text, box in shown if text == "a car"} <= {
        str(box) for _, box in alone.boxes(loaded[1], pictures()[1], "cpu")
    }
    none = Queried(Segmenter(str(path)), ["a car"], str(found["dino"]), 1.0)
    assert none.objects(loaded, pictures()) == []


def test_any_video_becomes_masklets_window_by_window(
    found: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Odd sizes, another rate, no annotation beside it; masks are in the source's own pixels, and each window stands alone."""
    write(tmp_path / "raw/v.mp4", [moving(1, 20, 242, 318, side=60)], fps=30).with_name("v_manual.json").unlink()
    (tmp_path / "raw/no film.mp4").write_text("none")
    truth = [moving(1, 16, 242, 318, side=60), moving(3, 16, 242, 318, side=50), moving(4, 16, 242, 318, side=9)]

    def objects(self: Queried, model: Any, seen: np.ndarray) -> list[tuple[str, dict[int, Any]]]:
        texts = ("a ball", "a disc", "a dot")
        return [(text, dict(enumerate(masks[: len(seen)]))) for text, masks in zip(texts, truth, strict=True)]

    monkeypatch.setattr(Queried, "objects", objects)
    monkeypatch.setattr(queried, "WINDOW", 8)
    stage = Masklets([str(tmp_path / "raw")], segmenter=str(found["sam3"]), text=["a ball"])
    from javisc.trainer.use.prior.stage import Part

    items = list(stage.items(tmp_path))
    (tmp_path / "work").mkdir()
    made = stage.work(Part(0, items, {}), None, tmp_path / "work")
    assert [row["text"] for row, _ in made.samples] == ["a ball", "a disc"] * 2, "the dot is smaller than a third"
    assert [round(row["clip_start"] * 24) for row, _ in made.samples] == [0, 0, 8, 8]
    assert [row["reason"] for row in made.rejects] == ["not_media"]
    for row, _ in made.samples:
        told = row["masks"]
        assert told["annotated"] == [] and told["size"] == [242, 318] and row["num_frames"] == 8
        which = truth[0] if row["text"] == "a ball" else truth[1]
        assert all(
            np.array_equal(rle.decode({"size": told["size"], "counts": counts}), which[at])
            for at, counts in enumerate(told["counts"])
        )


@pytest.mark.usefixtures("here")
def test_the_command_makes_a_pool_by_text(
    found: dict[str, Path], networks: dict[str, Path], demo: Path, tmp_path: Path
) -> None:
    folders = {"segmenter": str(networks["segmenter"]), "detector": str(found["dino"])}
    settings = {"raw": [str(demo / "raw/bounce_000.mp4")], **folders, "text": ["a ball"], "score": 0.0}
    done = run("masklets", settings, str(tmp_path / "pool"), RunOptions(workers=1))
    header = json.loads((tmp_path / "pool/dataset.json").read_text())["prior"]
    assert header["detector"] == "GroundingDinoForObjectDetection" and header["text"] == ["a ball"]
    assert header["segmenter"] == "Sam2VideoModel" and len(header["weights"]) == 64
    rows = pl.read_parquet(tmp_path / "pool/manifest.parquet")
    assert done.samples == rows.height > 0 and set(rows["text"]) == {"a ball"}
    told = json.loads(Dataset.open(tmp_path / "pool").read(rows["key"][0])["json"])
    assert told["text"] == "a ball" and told["masks"]["size"] == [240, 320]


def test_masks_in_another_size_are_the_nearest_pixels() -> None:
    mask = np.zeros((4, 6), bool)
    mask[1:3, 2:4] = True
    assert np.array_equal(in_size(mask, (8, 12)), mask.repeat(2, 0).repeat(2, 1))
    assert np.array_equal(in_size(in_size(mask, (9, 13)), (4, 6)), mask) and in_size(mask, (4, 6)) is mask


def test_folders_that_do_not_fit_are_told(found: dict[str, Path], networks: dict[str, Path]) -> None:
    sam2, sam3, dino = str(networks["segmenter"]), str(found["sam3"]), str(found["dino"])
    for more, said in (
        ({"segmenter": sam3}, "Sam3VideoModel finds objects by text: give --text"),
        ({"segmenter": sam3, "text": ["x"], "detector": dino}, "finds texts itself, leave it out"),
        ({"segmenter": sam2, "text": ["x"]}, "Sam2VideoModel finds no texts: give --detector PATH, a GroundingDino"),
        ({"segmenter": sam2, "text": ["x"], "detector": sam3}, "known are GroundingDinoForObjectDetection"),
        ({"segmenter": sam3, "text": [" "]}, "--text: give some words"),
        ({"segmenter": sam3, "text": ["x"], "score": 2.0}, "--score 2.0: 0 to 1 is allowed"),
        ({"text": ["x"]}, "--text goes with --segmenter"),
    ):
        with pytest.raises(UserError, match=said):
            Masklets(["raw"], **more)  # type: ignore[arg-type]
    long = Queried(Segmenter(sam3), ["a very long description of a dog that barks"], "", None)
    with pytest.raises(UserError, match="takes 32 tokens at most"):
        long.load("cpu")
