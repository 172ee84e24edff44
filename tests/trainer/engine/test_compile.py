"""torch.compile per block: the same loss curve, no graph breaks, and no new variants once sizes are symbols."""

from __future__ import annotations

import dataclasses
import shutil
from functools import partialmethod
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters
from torch._inductor import config as inductor

from javisc.trainer.engine.distributed import ParallelConfig, spread, world
from javisc.trainer.models.dit import PRESETS, VASTDiT3
from javisc.trainer.models.dit.stages import freeze
from support.toy_training import Ranks, ToyTask, losses, run

COMMON = ["run.steps=3", "run.log_every=1", "run.checkpoint_every=0", "dropout=0"]
#: A block of each kind; a second one of a kind would be traced with the same code.
CONFIG = dataclasses.replace(PRESETS["VASTDiT3-tiny"], depth=1)
needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None and shutil.which("clang++") is None, reason="inductor needs a C++ compiler on the CPU"
)


@pytest.fixture(autouse=True)
def afresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "1")
    torch._dynamo.reset()
    counters.clear()


@needs_compiler
@pytest.mark.slow
def test_one_process_learns_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By inductor, which asks a C++ compiler for each kernel: so one block is compiled, for processors without vectors."""
    monkeypatch.setattr(ToyTask, "blocks", lambda self, model: [*model.transformer.blocks][:1])
    run(tmp_path / "eager", COMMON)
    with inductor.patch("cpp.vec_isa_ok", False):
        run(tmp_path / "compiled", [*COMMON, "parallel.compile=true"])
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "eager"), rel=1e-4)
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]
    assert counters["inductor"]["fxgraph_cache_hit"] + counters["inductor"]["fxgraph_cache_miss"] >= 2, (
        "forward, backward"
    )


@pytest.mark.slow
@pytest.mark.dist
def test_two_processes_learn_the_same(tmp_path: Path) -> None:
    """Traced and differentiated as it is cut by the strategy's hooks; inductor, which comes after that, has one process above."""
    two = [*COMMON, "batch_size=2"]
    assert len(Ranks(tmp_path / "eager", two, world=2).digests()) == 1
    for strategy in ("ddp", "fsdp2"):
        compiled = [*two, "parallel.compile=true", f"parallel.strategy={strategy}"]
        assert len(Ranks(tmp_path / strategy, compiled, world=2, backend="aot_eager").digests()) == 1
        assert losses(tmp_path / strategy) == pytest.approx(losses(tmp_path / "eager"), rel=1e-4), strategy


def step(model: torch.nn.Module, frames: int) -> dict[str, Tensor]:
    """Loss and gradients on a bucket of so many frames."""
    torch.manual_seed(frames)
    config, rows = CONFIG, 2
    given = {"fps": torch.full((rows,), 24.0), "height": 64.0, "width": 96.0}
    prior = torch.randn(rows, config.spatial_prior_len, config.st_prior_channel)
    out = model(
        torch.randn(rows, 4, frames, 8, 2 * frames), torch.randn(rows, 8, 8 * frames, 5), torch.full((rows,), 400.0),
        torch.randn(rows, 1, config.model_max_length, config.caption_channels),
        spatial_prior=prior, temporal_prior=prior, **given,
    )  # fmt: skip
    loss = out["video"].square().mean() + out["audio"].square().mean()
    model.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    return {"loss": loss.detach()} | {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.slow
def test_buckets_of_the_joint_dit_share_their_variants(monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced and differentiated, but not handed to inductor: what breaks or is traced anew does so before it."""
    monkeypatch.setattr(torch.nn.Module, "compile", partialmethod(torch.nn.Module.compile, backend="aot_eager"))
    torch.manual_seed(0)
    eager = VASTDiT3(CONFIG).eval()
    freeze(eager)
    model = VASTDiT3(CONFIG).eval()
    freeze(model)
    model.load_state_dict(eager.state_dict())
    variants = []
    with world() as here:
        spread(model, [modules[index] for modules, index in model.blocks()], ParallelConfig(compile=True), here)
        for frames in (3, 4, 5):
            want, got = step(eager, frames), step(model, frames)
            for name, value in want.items():
                torch.testing.assert_close(got[name], value, rtol=1e-4, atol=1e-6, msg=name)
            variants.append(counters["stats"]["unique_graphs"])
    assert not counters["graph_break"] and variants[-1] == variants[-2] <= 14, variants
