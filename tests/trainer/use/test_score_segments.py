"""Synchformer in `javisc score`: windows by definition against what the workers make, the clock's correction. Kills are in
test_kept_features."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from javisc.cli import cli
from javisc.manifests.errors import UserError
from javisc.manifests.io import Dataset
from javisc.trainer.data.bytes.reader import Reader
from javisc.trainer.models.synchformer.config import AudioConfig, JoinConfig, SynchformerConfig, VisualConfig
from javisc.trainer.models.synchformer.export import write_published
from javisc.trainer.models.synchformer.model import Synchformer
from javisc.trainer.transforms.segment_chain import SegmentTransforms
from javisc.trainer.transforms.sync_chain import FixedOffset, plan
from javisc.trainer.transforms.sync_window import Lengths
from javisc.trainer.use.rate_segments import Rater
from javisc.trainer.use.score import ScoreOptions
from javisc.trainer.use.score_clip import NEEDED, CropOptions, NoScore, stretches
from javisc.trainer.use.score_forecast import forecast
from javisc.trainer.use.score_worker import WorkerOptions, score_rows
from javisc.trainer.use.selector import load_selector, predict
from support import compiled

#: A published model's geometry but for the pictures' size: 25 fps, 14 segments of 0.64 s, 198 rows; one narrow block each.
CONFIG = SynchformerConfig(
    VisualConfig(24, 1, 2, image=32, patch=16),
    AudioConfig(24, 1, 2, intermediate=48),
    JoinConfig(1, 2, width=16),
    initial="wide",
)
TRANSFORMS = SegmentTransforms(input_size=32)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Random weights in the published layout, under the name of a published experiment."""
    torch.manual_seed(0)
    model = Synchformer(CONFIG)
    with torch.no_grad():
        model.transformer.get_submodule("off_head").weight *= 30  # type: ignore[operator]
    path = tmp_path_factory.mktemp("published") / "24-01-04T16-39-21.pt"
    write_published(model, TRANSFORMS, path, "training")
    return str(path)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled.write(
        tmp_path_factory.mktemp("segments") / "ds", [150, 119, 122, 275, 121], fps=25, size=(32, 40), hiss=True
    )


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return Dataset.open(folder).located().select(NEEDED).collect().to_dicts()


def test_a_clip_is_its_windows(dataset: Path, checkpoint: str, tmp_path: Path) -> None:
    """Each window by itself through the whole model, against segments that are seen once and joined."""
    model, transforms = load_selector(checkpoint)
    assert isinstance(model, Synchformer) and isinstance(transforms, SegmentTransforms)
    assert transforms.audio_advance_sec == 0.064
    settings = WorkerOptions(checkpoint, "cpu", 3, 1, "fp32", 3, 25, 32, 0.064, "")
    told = score_rows(rows_of(dataset), asdict(settings))
    grid = transforms.crop_rule(train=False).grid.values
    # What the advance leaves of 150, 122 and 275 frames is 17, 14 and 33 segments; of 119 and 121, too few for a window.
    expected = {0: (148, 3), 2: (120, 0), 3: (273, 19)}
    for number, row in enumerate(rows_of(dataset)):
        if number not in expected:
            assert told[number]["reason"] == "too short" and told[number]["desync"] is None
            continue
        starts = Rater(model, transforms, CropOptions(3, 25, 32)).plan(expected[number][0])
        firsts = [window[0] for window in starts]
        assert firsts[0] == 0 and firsts[-1] == expected[number][1]
        parts = stretches(row, Reader(), transforms, CropOptions(3, 25, 32), [8 * first for first in firsts], 120)
        chances = []
        for part in parts:
            window = replace(transforms, half=True)
            vis = torch.stack([window.scaled(part.video[8 * k : 8 * k + 16]) for k in range(14)])
            aud = torch.stack([window.spectrogram(part.wave[None, 5120 * k :][:, :10240], 16000)[0] for k in range(14)])
            with torch.no_grad():
                chances.append(model(vis[None], aud[None])[1][0].double().softmax(0))
        ends = [abs(float(grid[int(one.argmax())])) for one in (chances[0], chances[-1])]
        assert told[number]["desync"] == pytest.approx(sum(ends) / 2, abs=1e-6)
        mean = sum(chances[1:], chances[0]) / len(chances)
        assert told[number]["sync_confidence"] == pytest.approx(float(mean.max()), abs=1e-4)
        assert told[number]["crops"] == len(firsts) and told[number]["audio_advance_sec"] == 0.064


def test_sound_is_taken_later_by_the_checkpoints_own_zero(dataset: Path, checkpoint: str) -> None:
    """0.064 s are 1,024 samples, in the windows of evaluation and prediction and in those of scoring alike."""
    (row, *_) = rows_of(dataset)
    plain, moved = (replace(TRANSFORMS, audio_advance_sec=seconds) for seconds in (0.0, 0.064))
    clip = Lengths(250, 160000, 25.0, 16000)
    fixed = FixedOffset(0.4, 1.0)
    windows = [plan(one, clip, None, train=False, fixed=fixed) for one in (plain, moved)]  # type: ignore[arg-type]
    assert windows[1].a_first - windows[0].a_first == 1024 and windows[1].v_first == windows[0].v_first
    a, b = (stretches(row, Reader(), one, CropOptions(1, 25, 32), [0], 120)[0].wave for one in (plain, moved))
    assert torch.equal(a[1024:], b[:-1024]) and not torch.equal(a, b)


def test_presets_are_the_evaluators_and_short_clips_are_told(dataset: Path, checkpoint: str) -> None:
    model, transforms = load_selector(checkpoint)
    assert isinstance(model, Synchformer) and isinstance(transforms, SegmentTransforms)
    mmaudio, javis = (Rater(model, transforms, CropOptions(3, 25, 32, name)) for name in ("av-benchmark", "javisbench"))
    assert [window[0] for window in mmaudio.plan(275)] == [0, 19]
    assert [window[0] for window in javis.plan(275)] == [0, 14, 19]
    assert javis.plan(100) == [[*range(11), 0, 1, 2]]
    for rater in (mmaudio, Rater(model, transforms, CropOptions(3, 25, 32))):
        with pytest.raises(NoScore):
            rater.plan(100)
    cut = javis.cut(rows_of(dataset)[1], Reader())
    # 119 frames are 13 segments: the fourteenth is the first again.
    assert len(cut.pieces) == 13 and list(cut.windows[0]) == [*range(13), 0]
    (told,) = [javis.to(torch.device("cpu")).conclude(list(javis.see(*zip(*cut.pieces, strict=True))), cut.windows)]
    assert 0 <= told["desync"] <= 2
    with pytest.raises(UserError, match="--fps 24: the model's segments are of 25"):
        Rater(model, transforms, CropOptions(3, 24, 32))


def test_the_cost_is_told_before(dataset: Path, checkpoint: str) -> None:
    told = forecast(str(dataset), checkpoint, ScoreOptions(short_side=32))
    assert (told.clips, told.pieces, told.windows) == (3, 17 + 14 + 33, 3 + 1 + 3)
    assert dict(told.reasons) == {"too short": 2}
    model, transforms = load_selector(checkpoint)
    assert isinstance(model, Synchformer) and isinstance(transforms, SegmentTransforms)
    seen, heard = torch.zeros(1, 1, 16, 3, 32, 32), torch.zeros(1, 1, 1, 128, 66)
    # With gradients: without, PyTorch takes a fused encoder layer that its counter does not know.
    model.requires_grad_(True)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        features = model.vfeat_extractor(seen), model.afeat_extractor(heard)
        segment = counter.get_total_flops()
        model.join(*(x.repeat(1, 14, 1, 1) for x in features))
        window = counter.get_total_flops() - segment
    assert told.flop == told.pieces * segment + told.windows * window
    with torch.device("meta"):
        full = Rater(Synchformer(), SegmentTransforms(), CropOptions(1, 25, 256)).cost(125)
    assert full == (14, 1, pytest.approx(5711e9, rel=0.003))
    shown = CliRunner().invoke(
        cli, ["score", str(dataset), "--checkpoint", checkpoint, "--short-side", "32", "--dry-run"]
    )
    assert f"3 clips, {told.pieces} crops or segments, {told.windows} windows" in shown.output


def test_predict_is_the_middle_of_the_crop(checkpoint: str) -> None:
    """On a real clip: the printed words, the advance told, another advance another answer."""
    from support.shared import SHARED, need

    video = need(SHARED / "media" / "sparsesync" / "lrs3_C8zY0oAdQrs_00018.mp4")
    model, transforms = load_selector(checkpoint)
    found = predict(model, transforms, video, offset_sec=0.2)
    assert found.truth.offset_sec == pytest.approx(0.2) and len(found.ranked) == 21
    assert sum(guess.probability for guess in found.ranked) == pytest.approx(1, abs=1e-5)
    told = CliRunner().invoke(cli, ["predict", str(video), "--checkpoint", checkpoint], catch_exceptions=False)
    assert "Sound taken 0.064 s later, as these weights want (--audio-advance-sec)" in told.output
    exact = CliRunner().invoke(cli, ["predict", str(video), "--checkpoint", checkpoint, "--audio-advance-sec", "0"])
    assert "Sound taken" not in exact.output and exact.output != told.output
