"""`parallel.keep_attention`: attentions of checkpointed blocks run once, no bit changes, and the forecast counts what is kept."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from javisc.kernels import dispatch
from javisc.kernels.attention import attention
from javisc.kernels.prior_attention import prior_attention
from javisc.manifests.errors import UserError
from javisc.trainer.engine.distributed import ParallelConfig, check, spread, world
from javisc.trainer.engine.recompute import attention_results
from javisc.trainer.forecast.footprint import footprint

B, L, H, D = 1, 6, 2, 16  # Triton's interpreter is slow


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out, self.norm = nn.Linear(H * D, 3 * H * D), nn.Linear(H * D, H * D), nn.BatchNorm1d(H * D)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).view(B, L, 3, H, D).unbind(2)
        both = attention(q, k, v) + prior_attention(q, k[:, :4], v[:, :4], scope="sample")
        return x + self.norm(self.out(both.flatten(2)).flatten(0, 1)).view(x.shape)


class Calls(TorchDispatchMode):
    """Counts the operators of attention, forward."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += op in attention_results()
        return op(*args, **(kwargs or {}))


class Task:
    """As much of a task as a forecast asks."""

    def model(self) -> nn.Module:
        return nn.Sequential(Block(), Block())

    def blocks(self, model: nn.Module) -> list[nn.Module]:
        return list(model.children())

    def loss(self, model: nn.Module, batch: Tensor, device: torch.device) -> Tensor:
        out: Tensor = model(batch)
        return out.square().mean()


def step(config: ParallelConfig) -> tuple[dict[str, Tensor], int]:
    torch.manual_seed(0)
    task, x = Task(), torch.randn(B, L, H * D)
    with world() as here:
        model = task.model()
        run = spread(model, task.blocks(model), config, here)
        with Calls() as calls:
            task.loss(run, x, here.device).backward()  # type: ignore[no-untyped-call]
    state = {n: p.grad for n, p in model.named_parameters() if p.grad is not None} | dict(model.named_buffers())
    return {n.replace("_checkpoint_wrapped_module.", ""): x for n, x in state.items()}, calls.count


@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_attentions_run_once_and_no_bit_changes(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(dispatch.VARIABLE, backend)
    plain, once = step(ParallelConfig())
    again, twice = step(ParallelConfig(checkpoint_blocks=True))
    kept, kept_once = step(ParallelConfig(checkpoint_blocks=True, keep_attention=True))
    assert (once, twice, kept_once) == (4, 8, 4)
    for other in (again, kept):
        assert other.keys() == plain.keys() and all(torch.equal(other[name], plain[name]) for name in plain)


def test_the_forecast_counts_what_is_kept() -> None:
    device, batch = torch.device("cpu"), torch.randn(B, L, H * D)
    less, more = (
        footprint(Task(), batch, ParallelConfig(checkpoint_blocks=True, keep_attention=keep), device).checkpointed  # type: ignore[arg-type]
        for keep in (False, True)
    )
    # The block that is computed again holds its own results already: those of the other come on top.
    one = 2 * (B * L * H * D + B * H * L) * 4
    assert more - less == one


@pytest.mark.parametrize(
    "given, message",
    [
        ({"keep_attention": True}, "without parallel.checkpoint_blocks=true"),
        ({"keep_attention": True, "checkpoint_blocks": True, "compile": True}, "not with parallel.compile=true"),
    ],
)
def test_what_keeps_nothing_is_refused(given: dict[str, bool], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check(ParallelConfig(**given))
