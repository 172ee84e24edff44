"""The prior's loss as training uses it: rows stand alone, weights and contrasts do what they say, and every kernel backend gives
the gradients of the torch definitions in float64."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from javisc.kernels import dispatch
from javisc.manifests.errors import UserError
from javisc.trainer.models.prior.config import TINY
from javisc.trainer.models.prior.model import STIBPrior
from javisc.trainer.objectives import contrastive
from javisc.trainer.objectives.contrastive import Negatives, PriorLossConfig, prior_loss
from support.kernels import relative_error

warnings.filterwarnings("ignore", "enable_nested_tensor")
ROWS = 3
Given = dict[str, Tensor]


def model(tokens: int = 8) -> STIBPrior:
    torch.manual_seed(7)
    return STIBPrior(dataclasses.replace(TINY, encode_va=True, spatial_token_num=tokens, temporal_token_num=tokens))


def given(rows: int = ROWS, tokens: int = 8, negatives: int = 2) -> Given:
    """Latents of clips with so many negatives of each sort, hidden states and the prior's noise."""
    generator = torch.Generator().manual_seed(3)
    shapes = {"text": (7, 32), "noise": (2 * tokens, 32), "video": (4, 3, 6, 5), "audio": (8, 4, 16)}
    sorts = [(kind, aspect) for kind in ("video", "audio") for aspect in ("spatial", "temporal")]
    shapes |= {f"{kind}_{aspect}": (negatives, *shapes[kind]) for kind, aspect in sorts}
    return {name: torch.randn(rows, *shape, generator=generator) for name, shape in shapes.items()}


def loss(m: STIBPrior, x: Given, config: PriorLossConfig | None = None) -> tuple[Tensor, dict[str, Tensor]]:
    negatives = {a: Negatives(x[f"video_{a}"], x[f"audio_{a}"]) for a in ("spatial", "temporal")}
    return prior_loss(m, m(x["text"], x["noise"]), x["video"], x["audio"], negatives, 48.0, 40.0, config=config)


@pytest.mark.parametrize("contrast", contrastive.CONTRASTS)
def test_rows_of_a_batch_stand_alone(contrast: str) -> None:
    """So no process needs another's rows: the loss of a batch is the mean of its rows' losses, term by term."""
    m, x, config = model(), given(), PriorLossConfig(contrast=contrast)
    whole, terms = loss(m, x, config)
    alone = [loss(m, {name: value[row : row + 1] for name, value in x.items()}, config) for row in range(ROWS)]
    torch.testing.assert_close(torch.stack([part for part, _ in alone]).mean(), whole, rtol=1e-5, atol=0)
    for name, value in terms.items():
        torch.testing.assert_close(torch.stack([part[name] for _, part in alone]).mean(), value, rtol=1e-5, atol=1e-7)


def test_weights_weigh_and_the_official_ones_are_the_default() -> None:
    m, x = model(), given()
    whole, terms = loss(m, x)
    named = ("token", "disc", "mse", "va")
    own = sum(terms[f"{aspect}_{name}_loss"] for aspect in ("spatial", "temporal") for name in named) + terms["kl_loss"]
    torch.testing.assert_close(whole, own)
    for name in named:
        others = dict.fromkeys(named, 0.0) | {name: 2.0}
        weighed, _ = loss(m, x, PriorLossConfig(kl=0.0, **others))
        torch.testing.assert_close(weighed, 2 * (terms[f"spatial_{name}_loss"] + terms[f"temporal_{name}_loss"]))
    with pytest.raises(UserError, match="objective.contrast='cosine': it may be hinge, info_nce"):
        PriorLossConfig(contrast="cosine")


def _gradients(m: STIBPrior, x: Given) -> dict[str, Tensor]:
    value, _ = loss(m, x)
    value.backward()
    return {"loss": value.detach()} | {n: p.grad for n, p in m.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("backend", dispatch.BACKENDS)
def test_gradients_of_every_backend(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the torch definitions in float64. Every parameter gets a gradient."""
    inputs = given(rows=1, tokens=2, negatives=1)  # Triton's interpreter is slow
    wide = model(2).double()
    monkeypatch.setenv(dispatch.VARIABLE, "torch")
    want = _gradients(wide, {name: value.double() for name, value in inputs.items()})
    assert len(want) == 1 + sum(1 for _ in wide.parameters())

    ops = ("attention", "bidirectional_attention")
    cpu = {op: dispatch.Request(op, torch.device("cpu"), torch.float32, 8, frozenset()) for op in ops}
    refusals = {op: _refusal(request, backend) for op, request in cpu.items()}
    if refusals["attention"]:
        pytest.skip(f"{backend}: {refusals['attention']}")
    # An op without this backend runs its definition.
    monkeypatch.setenv(dispatch.VARIABLE, ",".join(["torch", *(f"{op}={backend}" for op in ops if not refusals[op])]))
    with dispatch.recording() as ran:
        got = _gradients(model(2), inputs)
    assert {name for request, name in ran if request.op == "attention"} == {backend}
    errors = {name: relative_error(got[name], want[name]) for name in want}
    assert got.keys() == want.keys() and max(errors.values()) < 2e-5, errors


def _refusal(request: dispatch.Request, backend: str) -> str | None:
    rows: list[Callable[[dispatch.Request], str | None]] = [
        r.refuse for r in dispatch.TABLE[request.op] if r.name == backend
    ]
    return rows[0](request) if rows else "the op has no such backend"
