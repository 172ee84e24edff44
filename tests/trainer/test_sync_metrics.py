"""Metrics by their definitions, on random scores and on the awkward ones."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from javisc.manifests.errors import UserError
from javisc.trainer.engine.schedule import EarlyStop, ScheduleConfig, rate_factor
from javisc.trainer.models.sync.metrics import sync_metrics


def auc_by_pairs(scores: list[float], positive: list[bool]) -> float:
    """The share of (positive, negative) pairs ranked rightly, ties half."""
    pairs = [(p, n) for p, yes in zip(scores, positive) if yes for n, no in zip(scores, positive) if not no]
    return sum((p > n) + 0.5 * (p == n) for p, n in pairs) / len(pairs)


@settings(max_examples=40, deadline=None)
@given(st.integers(3, 6), st.integers(0, 10**6), st.booleans())
def test_roc_area_is_the_share_of_ordered_pairs(classes: int, seed: int, ties: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(30, classes, generator=generator)
    if ties:
        logits = logits.round()
    targets = torch.cat((torch.arange(classes), torch.randint(classes, (30 - classes,), generator=generator)))
    scores = logits.softmax(1)
    areas = [auc_by_pairs(scores[:, c].tolist(), (targets == c).tolist()) for c in range(classes)]
    got = sync_metrics(logits, targets)
    assert got["mROCAUC"] == pytest.approx(math.fsum(areas) / classes, abs=1e-6)
    # Equal logits rank by one rule in the one figure and by another in the other, as in the reference.
    assert ties or 0 <= got["accuracy_1"] <= got["accuracy_1_tol1"] <= 1


def test_a_perfect_ranking() -> None:
    logits = torch.eye(21) * 9
    got = sync_metrics(logits, torch.arange(21))
    assert [got[k] for k in ("accuracy_1", "accuracy_5", "mAP", "mROCAUC")] == [1, 1, 1, 1]
    assert got["dprime"] > 10 and math.isfinite(got["dprime"])
    assert set(sync_metrics(torch.eye(3), torch.arange(3))) >= {"accuracy_1", "accuracy_3", "accuracy_3_tol1"}


def test_neighbours_count_with_tolerance_and_do_not_wrap() -> None:
    logits = torch.zeros(2, 21)
    logits[0, 20] = logits[1, 5] = 1
    got = sync_metrics(logits, torch.tensor([0, 6]), ks=(1,))
    assert (got["accuracy_1"], got["accuracy_1_tol1"]) == (0, 0.5)


def test_a_diverged_model_scores_chance(caplog: pytest.LogCaptureFixture) -> None:
    logits = torch.eye(21).repeat(20, 1) * 9
    logits[3, 3] = float("nan")
    got = sync_metrics(logits, torch.arange(21).repeat(20))
    assert got["accuracy_1"] < 0.2 and "random guesses" in caplog.text


def test_early_stop_resumes_from_its_state() -> None:
    values = [0.1, 0.3, 0.2, 0.3, 0.1, 0.4]
    whole, first = EarlyStop(3), EarlyStop(3)
    marks = [(whole.update(v), whole.triggered) for v in values]
    got = [(first.update(v), first.triggered) for v in values[:3]]
    second = EarlyStop(3)
    second.load_state_dict(first.state_dict())
    got += [(second.update(v), second.triggered) for v in values[3:]]
    assert got == marks and marks[4] == (False, True)


def test_no_warm_up_means_the_full_rate_at_once() -> None:
    assert rate_factor(ScheduleConfig(warmup_steps=0), 0) == 1
    assert rate_factor(ScheduleConfig(warmup_steps=10), 10**9) == 1


def test_a_cosine_falls_from_the_full_rate_to_its_end_at_the_last_step() -> None:
    config = ScheduleConfig(kind="cosine", warmup_steps=10, end_factor=0.2)
    at = [rate_factor(config, step, 110) for step in range(120)]
    assert at[:10] == [rate_factor(ScheduleConfig(warmup_steps=10), step) for step in range(10)]
    assert at[10] == 1 and at[60] == pytest.approx(0.6) and at[110] == pytest.approx(0.2) and at[119] == at[110]
    assert all(a > b for a, b in itertools.pairwise(at[10:111]))
    with pytest.raises(UserError, match="constant, cosine"):
        rate_factor(ScheduleConfig(kind="linear"), 0)


def test_rates_are_their_formulas() -> None:
    config = ScheduleConfig(warmup_steps=4, start_factor=0.2)
    assert [rate_factor(config, step) for step in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1])
    config = ScheduleConfig(kind="openclip", warmup_steps=4, end_factor=0.0)
    assert [rate_factor(config, step, 8) for step in range(4)] == pytest.approx([0.25, 0.5, 0.75, 1])
    assert rate_factor(config, 6, 8) == pytest.approx(0.5) and rate_factor(config, 8, 8) == pytest.approx(0)


def test_early_stop_follows_what_is_better() -> None:
    for to_max, values in ((True, [1.0, 2.0, 2.0, 1.5]), (False, [2.0, 1.0, 1.0, 1.5])):
        early = EarlyStop(2, to_max)
        assert not early.update(math.nan) and early.best is None  # what is no number is never the best
        early = EarlyStop(2, to_max)
        assert [early.update(value) for value in values] == [True, True, False, False]
        assert early.triggered and early.best == values[1]
