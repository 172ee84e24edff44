"""DeSync against both published evaluators: which windows, and what follows from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from javisc.trainer.engine.weights import load_strictly
from javisc.trainer.models.synchformer.model import Synchformer
from javisc.trainer.transforms.segment_chain import SegmentTransforms
from javisc.trainer.transforms.segments import SegmentRule
from javisc.trainer.transforms.sync_window import InfeasibleCrop, Lengths
from javisc.trainer.use.desync import windows
from javisc.trainer.use.rating import rating
from javisc.trainer.use.score_clip import NoScore
from support.sync_parity import SYNCHFORMER, rel, with_tables
from support.synchformer_parity import Upper


@pytest.fixture(params=with_tables(SYNCHFORMER), ids=lambda folder: folder.name, scope="module")
def folder(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.fixture(scope="module")
def table(tables: dict[str, Any]) -> dict[str, Any]:
    return tables["desync"]


def test_windows(table: dict[str, Any]) -> None:
    for preset, key in (("av-benchmark", "av_benchmark"), ("javisbench", "javisbench")):
        for case in table[key]:
            if "error" in case:
                with pytest.raises(NoScore, match="segments, a window has 14"):
                    windows(preset, case["segments"])
            else:
                assert windows(preset, case["segments"]) == case["windows"], (preset, case["segments"])


def test_segments_of_seconds(table: dict[str, Any]) -> None:
    rule = SegmentRule(count=None)
    for seconds, seen, heard in table["segments_of_seconds"]:
        frames, samples = round(seconds * 25), round(seconds * 16000)
        plenty = 10**7
        for clip, want in ((Lengths(frames, plenty, 25, 16000), seen), (Lengths(plenty, samples, 25, 16000), heard)):
            assert len(rule.cut(clip, None).v_starts) == want, seconds
    with pytest.raises(InfeasibleCrop):
        rule.cut(Lengths(15, 16000, 25, 16000), None)


def test_scores(tensors: dict[str, Tensor], table: dict[str, Any]) -> None:
    state = {key.removeprefix("desync/sd:"): value for key, value in tensors.items() if key.startswith("desync/sd:")}
    told = table["scores"]
    module = Upper(state, told["heads"], told["depth"]).eval()
    load_strictly(module, state, "desync")
    transforms = SegmentTransforms()
    for number, case in enumerate(told["cases"]):
        seen, heard = (tensors[f"desync/{number}/{key}"] for key in "va")
        with torch.no_grad():
            first, last = (
                Synchformer.join(module, seen[:, part], heard[:, part])  # type: ignore[arg-type]
                for part in (slice(0, 14), slice(-14, None))
            )
        assert rel(first, tensors[f"desync/{number}/logits_first"]) <= 1e-5
        assert rel(last, tensors[f"desync/{number}/logits_last"]) <= 1e-5
        chances = [logits.double().softmax(1) for logits in (first, last)]
        got = [rating([chances[0][clip], chances[1][clip]], transforms)["desync"] for clip in range(len(seen))]
        clips = len(seen)
        want = [(case["all"][clip] + case["all"][clips + clip]) / 2 for clip in range(clips)]
        assert got == pytest.approx(want, abs=1e-6)
        assert sum(got) / clips == pytest.approx(case["mean"], abs=1e-6)
