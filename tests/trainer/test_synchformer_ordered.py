"""The start from which Synchformer's joining transformer reads lags, on features whose lag is known."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from javisc.manifests.errors import UserError
from javisc.trainer.models.synchformer.config import AudioConfig, JoinConfig, SynchformerConfig, VisualConfig
from javisc.trainer.models.synchformer.model import Synchformer


def model_of(initial: str, segments: int, steps: int = 1, **join: int) -> Synchformer:
    visual = VisualConfig(16, 1, 2, 32, 8, 4, 4 // steps, 0.0, "mean")
    audio = AudioConfig(16, 1, 2, 32, 46, 17, "mean")
    sizes = {"n_layer": 2, "n_head": 4, "width": 96, **join}
    transformer = JoinConfig(rows=2 + segments * (steps + 1), classes=15, **sizes)
    return Synchformer(SynchformerConfig(visual, audio, transformer, initial=initial)).eval()


def lags_read(model: Synchformer, segments: int, steps: int, channels: slice) -> tuple[torch.Tensor, torch.Tensor]:
    """(true lags, lags told by the codes that OFF holds), in segments' steps, of features that match at one lag alone."""
    most, pairs = segments // 2, 256
    true = torch.randint(-most, most + 1, (pairs,))
    moments = torch.randn(pairs, 2 * segments, 1, 16)
    seen = moments[:, most : most + segments].expand(-1, -1, steps, -1)
    heard = torch.stack([row[most + lag :][:segments] for row, lag in zip(moments, true.tolist(), strict=True)])
    transformer, hidden = model.transformer, []
    transformer.ln_f.register_forward_hook(lambda _, inputs, output: hidden.append(inputs[0][:, 0]))
    with torch.no_grad():
        model.join(seen, heard)
    codes = hidden[0][:, channels].unflatten(1, (2, -1))
    cycles = math.pi * torch.arange(1, codes.shape[2] + 1) / (segments + 1)
    every = torch.arange(-most, most + 1)[:, None] * cycles
    # A sound that starts later matches pictures that are further on.
    scores = codes[:, 0] @ every.cos().T + codes[:, 1] @ every.sin().T
    return true, (scores - scores.mean(0)).argmax(1) - most


@pytest.mark.parametrize(("segments", "steps"), [(9, 1), (13, 1)])
def test_off_holds_the_lag_before_anything_is_learnt(segments: int, steps: int) -> None:
    torch.manual_seed(0)
    frequencies = (96 - 16 - 2) // 6
    channels = slice(16 + 4 * frequencies, 16 + 6 * frequencies)
    told = {}
    for initial in ("ordered", "wide"):
        true, read = lags_read(model_of(initial, segments, steps), segments, steps, channels)
        told[initial] = float((true == read).float().mean())
    chance = 1 / (2 * (segments // 2) + 1)
    assert told["ordered"] > 2 * chance and told["wide"] < 1.6 * chance, told


def test_only_values_differ() -> None:
    """Names, shapes and what is learnt are those of any other start, and a step moves every weight of the joining part."""
    torch.manual_seed(0)
    ordered, wide = model_of("ordered", 9, 2), model_of("wide", 9, 2)
    shapes = [{name: value.shape for name, value in model.state_dict().items()} for model in (ordered, wide)]
    assert shapes[0] == shapes[1]
    learnt = [{name for name, p in model.named_parameters() if p.requires_grad} for model in (ordered, wide)]
    assert learnt[0] == learnt[1]
    loss = F.cross_entropy(ordered.join(torch.randn(4, 9, 2, 16), torch.randn(4, 9, 1, 16)), torch.arange(4))
    loss.backward()  # type: ignore[no-untyped-call]
    still = [name for name, p in ordered.named_parameters() if p.requires_grad and not p.grad.abs().max() > 0]  # type: ignore[union-attr]
    assert not [name for name in still if not name.endswith("key.bias")], still


@pytest.mark.parametrize("join", [{"width": 16}, {"n_layer": 1}, {"n_head": 1}])
def test_what_is_too_small_is_told(join: dict[str, int]) -> None:
    with pytest.raises(UserError, match=r"model.initial=ordered needs model.transformer.width >= 30, n_layer >= 2"):
        model_of("ordered", 9, **join)
