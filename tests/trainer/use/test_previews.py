"""Previews: a page that a person opens while a run learns, and a run that is the same with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import polars as pl
import pytest
import torch
from numpy.typing import NDArray
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from javisc.manifests.errors import UserError
from javisc.trainer.tasks import registry
from javisc.trainer.use.previews import preview_hooks
from javisc.trainer.use.previews.offsets import confusion, picture
from javisc.trainer.use.previews.page import write_page
from support import compiled, selector
from support.browser import Browser
from support.recipe_training import PROGRAM, run
from support.toy_training import Ranks, losses

SMALL = ["run.log_every=1", "run.validate_every=0", "run.checkpoint_every=0", "schedule.warmup_steps=0"]
PROMPTS = '["a dog <script>window.hacked=1</script> {here}", "rain"]'
JAV = ["data.buckets.48x64.17=[1.0,2]", "preview.steps=2", f"preview.prompts={PROMPTS}", *SMALL]
PLAY = """(async () => {
    const video = document.querySelectorAll('video')[%d];
    video.muted = true;
    await video.play();
    // However slow the machine is: until it moves, for 40 s at most.
    for (let n = 0; n < 400 && !video.currentTime; n++) await new Promise(done => setTimeout(done, 100));
    return [video.duration, video.videoWidth, video.error === null, video.currentTime > 0];
})()"""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = compiled.write(tmp_path_factory.mktemp("previews") / "ds", [20, 25, 17, 22, 30, 18])
    path = folder / "manifest.parquet"
    pl.read_parquet(path).with_columns(split=pl.Series(["train"] * 4 + ["val"] * 2)).write_parquet(path)
    return folder


def rows(folder: Path, kind: str) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["kind"] == kind]


@pytest.fixture(scope="module")
def jav(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of jav-tiny with previews at steps 1 and 2."""
    folder = tmp_path_factory.mktemp("runs") / "jav"
    run(folder, [f"data.paths=[{dataset}]", *JAV, "run.steps=2", "run.preview_every=1"], recipe="jav-tiny")
    return folder


def test_a_preview_page_plays_and_shows_text_as_text(jav: Path, tmp_path: Path) -> None:
    with Browser(tmp_path) as browser:
        browser.open((jav / "previews" / "index.html").as_uri())
        assert browser.run("[...document.querySelectorAll('h2')].map(h => h.textContent)") == ["step 2", "step 1"]
        captions = browser.run("[...document.querySelectorAll('figcaption')].map(c => c.textContent)")
        assert captions == [*json.loads(PROMPTS), *json.loads(PROMPTS)] and browser.run("window.hacked") is None
        for number in range(4):
            duration, width, fine, moved = browser.run(PLAY % number)
            assert 0.5 < duration < 1.0 and width == 64 and fine and moved, number
        assert not browser.problems


def test_previews_go_to_tensorboard_and_change_nothing(jav: Path, dataset: Path, tmp_path: Path) -> None:
    board = EventAccumulator(str(jav / "tensorboard"), size_guidance={"images": 0, "audio": 0})
    board.Reload()
    assert [event.step for event in board.Images("preview/0/frames")] == [1, 2]
    assert [event.step for event in board.Audio("preview/1/sound")] == [1, 2]
    assert "buckets" in board.Tensors("recipe/text_summary")[0].tensor_proto.string_val[0].decode()
    run(tmp_path, [f"data.paths=[{dataset}]", *JAV, "run.steps=2", "run.tensorboard=false"], recipe="jav-tiny")
    assert losses(tmp_path) == losses(jav)
    assert (tmp_path / "result-0").read_text() == (jav / "result-0").read_text()
    # Clips are of the weights at hand: another step, another clip, from the same noise.
    first, second = ((jav / "previews" / f"step-0000000{n}" / "00000.mp4").read_bytes() for n in (1, 2))
    assert first != second


@pytest.mark.dist
def test_a_sharded_model_is_previewed_too(jav: Path, dataset: Path, tmp_path: Path) -> None:
    """By the first process, with a copy; the others wait. Of one step the clips are those of a run that is not sharded."""
    overrides = [f"data.paths=[{dataset}]", *JAV, "run.steps=1", "run.preview_every=1", "run.tensorboard=false"]
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    overrides += [
        "optimizer.lr=1e-30",
        "optimizer.weight_decay=0",
    ]  # two processes take other steps: none shall be seen
    run(alone, overrides, recipe="jav-tiny")
    ranks = Ranks(shared, [*overrides, "parallel.strategy=fsdp2"], program=PROGRAM, world=2, recipe="jav-tiny")
    assert ranks.wait() == [0, 0], ranks.told()
    first, second = (
        [pictures(folder / "previews" / "step-00000001" / f"0000{n}.mp4") for n in (0, 1)] for folder in (alone, shared)
    )
    assert first[1].shape == (17, 48, 64, 3)
    # Two processes add in another order, and x264 rounds what it gets: pictures of one prompt are alike, of two they are not.
    apart = [float(np.abs(a.astype(float) - b).mean()) for a, b in ((first[1], second[1]), (first[0], first[1]))]
    assert apart[0] < 1.0 and apart[0] < 0.1 * apart[1], apart


def pictures(path: Path) -> NDArray[np.uint8]:
    with av.open(str(path)) as file:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])


def test_the_selector_shows_what_it_takes_for_what(tmp_path: Path) -> None:
    data = compiled.write(tmp_path / "ds", [40, 50, 36, 45], fps=25)
    settings = [*selector.TINY, *SMALL, "data.batch_size=2", "data.iter_times=1", "data.valid_split=null"]
    run(
        tmp_path / "run",
        [f"data.paths=[{data}]", *settings, "data.train_split=null", "run.steps=1", "run.preview_every=1"],
        recipe="sync-demo",
    )
    folder = tmp_path / "run" / "previews"
    lines = [line.split(",") for line in (folder / "step-00000001" / "matrix.csv").read_text().splitlines()]
    assert [line[0] for line in lines[1:]] == lines[0][1:] == ["-0.40", "-0.20", "+0.00", "+0.20", "+0.40"]
    assert sum(int(cell) for line in lines[1:] for cell in line[1:]) == 4
    assert "4 held-out crops" in (folder / "index.html").read_text()
    board = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    board.Reload()
    assert len(board.Images("preview/offsets")) == 1


def test_a_matrix_counts_true_offsets_against_those_ranked_first() -> None:
    logits = torch.eye(3)[[0, 1, 1, 2, 0]]
    found = confusion(logits, torch.tensor([0, 1, 2, 2, -1]), 3)
    assert found.tolist() == [[1, 0, 0], [0, 1, 0], [0, 1, 1]]
    image = picture(np.eye(2))
    assert image.shape == (32, 32, 3) and image[0, 0, 0] == 0 and image[0, -1, 0] == 255


def test_the_prior_is_asked_for_its_own_clips(dataset: Path, tmp_path: Path) -> None:
    settings = [
        f"data.paths=[{dataset}]",
        "data.buckets.48x64.17=[1.0,2]",
        *SMALL,
        "run.steps=1",
        "run.preview_every=1",
    ]
    run(tmp_path, settings, recipe="prior-tiny")
    (row,) = rows(tmp_path, "preview")
    assert row["step"] == 1 and {"spatial_retrieval", "temporal_retrieval"} <= set(row)
    page = (tmp_path / "previews" / "index.html").read_text()
    assert "of 2; chance is 33%" in page and page.count("<tr>") == 6


def test_a_task_without_previews_says_so() -> None:
    recipe, task = registry.load("sync-audio-tiny", ["data.paths=[x]", "run.preview_every=5"])
    with pytest.raises(UserError, match=r"run\.preview_every=5: task sync-audio has no previews"):
        preview_hooks(recipe, task)
    assert preview_hooks(*registry.load("sync-audio-tiny", ["data.paths=[x]"])) == []


def test_a_page_of_no_previews_is_a_page(tmp_path: Path) -> None:
    write_page(tmp_path, "<b>")
    assert "<h1>&lt;b&gt;</h1>" in (tmp_path / "index.html").read_text()
