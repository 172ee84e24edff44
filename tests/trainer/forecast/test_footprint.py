"""The dry run's prediction against what a real step keeps and calls; and that it allocates nothing."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing

from javisc.kernels import dispatch
from javisc.trainer.engine.config import Recipe
from javisc.trainer.engine.distributed import ParallelConfig
from javisc.trainer.forecast.dry_run import dry_run, told
from javisc.trainer.forecast.footprint import footprint
from javisc.trainer.models.dit import PRESETS, VASTDiT3, VASTDiT3Config
from javisc.trainer.models.dit.stages import freeze


class DiTTask:
    """The joint DiT on latents that lie in memory."""

    def __init__(self, config: VASTDiT3Config, video: tuple[int, ...], audio: tuple[int, ...]) -> None:
        self.config, rows = config, video[0]
        mask = torch.ones(rows, config.model_max_length)
        mask[0, 5:] = 0
        self.batch = SimpleNamespace(
            video=torch.randn(video),
            audio=torch.randn(audio),
            y=torch.randn(rows, 1, config.model_max_length, config.caption_channels),
            mask=mask,
            prior=torch.randn(rows, config.spatial_prior_len, config.st_prior_channel),
        )

    def model(self) -> VASTDiT3:
        model = VASTDiT3(self.config)
        freeze(model)
        return model

    def blocks(self, model: nn.Module) -> list[nn.Module]:
        assert isinstance(model, VASTDiT3)
        return [modules[index] for modules, index in model.blocks()]

    def loss(self, model: nn.Module, batch: Any, device: torch.device) -> Tensor:
        rows = len(batch.video)
        out = model(
            batch.video.to(device), batch.audio.to(device), torch.full((rows,), 500.0, device=device), batch.y.to(device),
            batch.mask.to(device), fps=torch.full((rows,), 24.0, device=device), height=64.0, width=64.0,
            spatial_prior=batch.prior.to(device), temporal_prior=batch.prior.to(device),
        )  # fmt: skip
        return F.mse_loss(out["video"][:, :4], batch.video.to(device)) + out["audio"].square().mean()

    def source(self, rank: int, world: int) -> Any:
        def once() -> Iterator[Any]:
            yield self.batch

        class One:
            def __iter__(self) -> Iterator[Any]:
                return once()

            def __len__(self) -> int:
                return 7

            def close(self) -> None:
                pass

        return One()

    def size(self, batch: Any) -> int:
        return len(batch.video)

    def tokens(self, batch: Any) -> int:
        return int(batch.video[0, 0].numel() // 4 * len(batch.video))

    def flops(self, batch: Any) -> float:
        return 0.0


def kept_for_real(task: DiTTask, checkpointing: bool) -> tuple[int, list[tuple[dispatch.Request, str]]]:
    """Bytes that autograd holds after a real forward pass, and the kernels it called."""
    model = task.model().train()
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    if checkpointing:
        chosen = {id(block) for block in task.blocks(model)}
        apply_activation_checkpointing(model, check_fn=lambda module: id(module) in chosen)
    kept: dict[int, int] = {}
    alive = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), dispatch.recording() as calls:
        loss = task.loss(model, task.batch, torch.device("cpu"))
    del loss
    return sum(kept.values()), calls


def small(depth: int = 2) -> DiTTask:
    torch.manual_seed(1)
    return DiTTask(replace(PRESETS["VASTDiT3-tiny"], depth=depth), (2, 4, 3, 8, 8), (2, 8, 16, 4))


def test_activations_and_kernels_are_those_of_a_real_step() -> None:
    task = small()
    task.batch.mask[:] = 1  # the prediction knows no text lengths and takes all tokens as real
    seen = footprint(task, task.batch, ParallelConfig(), torch.device("cpu"))  # type: ignore[arg-type]
    kept, calls = kept_for_real(task, False)
    assert seen.activations == pytest.approx(kept, rel=0.01)
    assert sum(seen.kernels.values()) == len(calls)
    assert {(op, backend) for op, backend, *_ in seen.kernels} == {(request.op, name) for request, name in calls}
    outside, _ = kept_for_real(task, True)
    assert outside < seen.checkpointed < seen.activations / 2


def test_lower_precision_keeps_less() -> None:
    task, cpu = small(1), torch.device("cpu")
    full, autocast, gathered = (
        footprint(task, task.batch, ParallelConfig(strategy=strategy, precision=precision), cpu)  # type: ignore[arg-type]
        for strategy, precision in (("ddp", "fp32"), ("ddp", "bf16"), ("fsdp2", "bf16"))
    )
    # At this width autocast's copies of the weights weigh more than what it saves; FSDP2 gathers them in bf16 as they are.
    assert gathered.activations < 0.7 * full.activations and gathered.activations < autocast.activations
    assert {call[2] for call in gathered.kernels} == {"bfloat16"}


def test_a_large_model_is_planned_and_not_allocated() -> None:
    """XL/2's width with 4 of its 28 blocks, which are alike; the whole one's parameters are counted in tests/parity."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    config = replace(PRESETS["VASTDiT3-XL/2"], depth=4)
    with torch.device("meta"):
        meant = VASTDiT3(config)
    freeze(meant)
    trained = sum(p.numel() for p in meant.parameters() if p.requires_grad)
    task = DiTTask(config, (1, 4, 15, 30, 54), (1, 8, 56, 16))
    recipe = Recipe(task="jav", parallel=ParallelConfig(strategy="fsdp2", precision="bf16", checkpoint_blocks=True))
    report = dry_run(recipe, task)  # type: ignore[arg-type]
    # kB; the weights alone are more than 2 GB
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000
    assert report["parameters_trained"] == trained > 150_000_000
    assert report["memory"]["weights"] == 4 * trained
    assert 4 * report["parameters_frozen"] > 1_200_000_000
    assert report["memory"]["frozen"] == pytest.approx(2 * report["parameters_frozen"], rel=0.05)  # and the buffers
    assert report["memory"]["optimizer"] == pytest.approx(8 * trained, rel=1e-4)
    assert {row["gpus"] for row in report["plan"]} == {8, 16, 32, 64, 128, 256, 512}
    assert [row["strategy"] for row in report["plan"][:3]] == ["ddp", "fsdp2", "hybrid"]
    # 16 blocks of 4 kinds, of which the largest is computed again beside the inputs of all.
    assert report["activations_checkpointed"] < report["activations_plain"] / 4
    assert 40 / 7 < report["step_tflop"] < 80 / 7
    text = told(report)
    assert f"{trained:,} trained" in text and "  512  ddp " in text and "hybrid" in text
