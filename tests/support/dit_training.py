"""A tiny joint DiT trained by the loop with the flow loss, on latents that are a function of a sample's number."""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from javisc.trainer.data.sources.numbered import Many, NumberedSource
from javisc.trainer.engine.config import Recipe, load_recipe
from javisc.trainer.engine.distributed import bare, clean, spread, world
from javisc.trainer.engine.loop import train
from javisc.trainer.engine.optim import EMA, Stepper
from javisc.trainer.models.dit import PRESETS, VASTDiT3
from javisc.trainer.models.dit.stages import freeze, initialise
from javisc.trainer.objectives.flow import FlowConfig, flow_loss
from javisc.trainer.task import key_random

RECIPE = """
task: dit
seed: 11
run: {steps: 2, checkpoint_every: 1, keep_checkpoints: 9, log_every: 1, tensorboard: false}
schedule: {warmup_steps: 0}
optimizer: {name: adamw, lr: 0.001, scale_lr_by_world: false, eps: 1.0e-6}
ema: {decay: 0.9}
"""
ROWS = 4


@dataclass
class DitRecipe(Recipe):
    preset: str = "VASTDiT3-tiny"
    frozen: bool = True
    batch_size: int = ROWS
    samples: int = 3 * ROWS


class DitTask:
    """All randomness is the sample's own: a step is the same on however many processes."""

    def __init__(self, recipe: DitRecipe) -> None:
        self.recipe = recipe

    def build(self) -> VASTDiT3:
        model = self.model()
        initialise(model)
        with torch.no_grad():
            for p in model.parameters():
                if not p.any():  # what starts silent would hide the gradients behind it
                    p.normal_(std=0.02)
        return model

    def model(self) -> VASTDiT3:
        config = dataclasses.replace(
            PRESETS[self.recipe.preset], depth=1, class_dropout_prob=0.0, prior_attention="sample"
        )
        model = VASTDiT3(config)
        if self.recipe.frozen:
            freeze(model)
        return model

    def carry_over(self, model: nn.Module) -> None:
        return None

    def blocks(self, model: nn.Module) -> list[nn.Module]:
        assert isinstance(model, VASTDiT3)
        return [blocks[index] for blocks, index in model.blocks()]

    def make(self, number: int, seed: int) -> dict[str, Tensor]:
        g = torch.Generator().manual_seed(seed)
        c = PRESETS[self.recipe.preset]
        frames, patches = torch.rand(3, generator=g) < 0.7, torch.rand(2, generator=g) < 0.7
        frames[0] = patches[0] = True
        return {
            "video": torch.randn(4, 3, 6, 6, generator=g),
            "audio": torch.randn(8, 8, 4, generator=g),
            "video_noise": torch.randn(4, 3, 6, 6, generator=g),
            "audio_noise": torch.randn(8, 8, 4, generator=g),
            "t": torch.rand((), generator=g) * 1000,
            "y": torch.randn(1, c.model_max_length, c.caption_channels, generator=g),
            "mask": torch.arange(c.model_max_length) < 1 + number % 7,
            "spatial_prior": torch.randn(c.spatial_prior_len, c.st_prior_channel, generator=g),
            "temporal_prior": torch.randn(c.temporal_prior_len, c.st_prior_channel, generator=g),
            "video_frames": frames,
            "audio_frames": patches.repeat_interleave(4),
        }

    def source(self, rank: int, world: int) -> NumberedSource[dict[str, Tensor]]:
        recipe = self.recipe
        return NumberedSource(recipe.samples, self.make, recipe.batch_size, seed=recipe.seed, rank=rank, world=world)

    def size(self, batch: Many[Any]) -> int:
        return len(batch.samples)

    def tokens(self, batch: Many[Any]) -> int:
        return sum(1 + int(sample["mask"].sum()) for sample in batch.samples)

    def keys(self, batch: Many[Any]) -> list[str]:
        return batch.keys

    def flops(self, batch: Many[Any]) -> float:
        return 0.0

    def loss(self, model: nn.Module, batch: Many[Any], device: torch.device) -> Tensor:
        x = {name: torch.stack([s[name] for s in batch.samples]).to(device) for name in batch.samples[0]}
        rows = len(batch.samples)

        def velocity(noised: dict[str, Tensor], t: Tensor, masks: dict[str, Tensor]) -> dict[str, Tensor]:
            out: dict[str, Tensor] = model(
                noised["video"],
                noised["audio"],
                t,
                x["y"],
                x["mask"],
                fps=torch.full((rows,), 24.0),
                height=48.0,
                width=48.0,
                x_mask=masks["video"],
                ax_mask=masks["audio"],
                spatial_prior=x["spatial_prior"],
                temporal_prior=x["temporal_prior"],
            )
            return out

        noise = {name: x[f"{name}_noise"] for name in ("video", "audio")}
        masks = {name: x[f"{name}_frames"] for name in ("video", "audio")}
        return flow_loss(velocity, {n: x[n] for n in noise}, noise, x["t"], FlowConfig(), masks).loss.sum()

    def validate(self, model: nn.Module, rank: int, world: int, device: torch.device) -> dict[str, float]:
        return {}


def _made(folder: Path, overrides: Sequence[str]) -> tuple[DitRecipe, DitTask, int]:
    folder.mkdir(parents=True, exist_ok=True)
    rank = int(os.environ.get("RANK", 0))
    path = folder / f"dit-{rank}.yaml"
    path.write_text(RECIPE)
    recipe = load_recipe(str(path), DitRecipe, overrides)
    return recipe, DitTask(recipe), rank


def run(folder: Path, overrides: Sequence[str] = (), *, resume: bool = False) -> None:
    """One process's part of a run."""
    recipe, task, _ = _made(folder, overrides)
    train(recipe, task, folder, resume=resume)


def held(folder: Path, overrides: Sequence[str] = ()) -> None:
    """Writes to held-RANK what this process holds after a step, by parameter: bytes, and whether it is sharded; and what FSDP2
    sent, by collective and size of the group: [number, bytes]."""
    recipe, task, rank = _made(folder, overrides)
    with world() as here:
        key_random(recipe.seed, "init")
        built = task.build()
        model = spread(built, task.blocks(built), recipe.parallel, here)
        inner = bare(model)
        stepper = Stepper(inner, recipe.optimizer, here.device, None)
        stepper.prepare()
        ema = EMA(inner, recipe.ema)
        with _counted() as sent:
            task.loss(model, next(iter(task.source(here.rank, here.size))), here.device).backward()
        told: dict[str, Any] = {"params": {}, "grads": 0, "sent": sent}
        for name, p in inner.named_parameters():
            told["params"][clean(name)] = {
                "trained": p.requires_grad,
                "sharded": isinstance(p, DTensor),
                "dtype": str(p.dtype),
                "bytes": _bytes(p),
                "storage": _storage(p),
            }
            told["grads"] += 0 if p.grad is None else _bytes(p.grad)
        state = stepper.state_dict()
        told["states"] = sorted(name for name in state if name.startswith("state."))
        told["optimizer"] = sum(_bytes(value) for name, value in state.items() if name.startswith("state."))
        told["average"] = sum(_bytes(value) for value in ema.average)
        told["buffers"] = sum(_bytes(value) for value in inner.buffers())
        (folder / f"held-{rank}").write_text(json.dumps(told))


@contextmanager
def _counted() -> Iterator[dict[str, list[int]]]:
    """Counts the collectives that FSDP2 calls from Python, as a ring would send their bytes."""
    sent: dict[str, list[int]] = {}
    whole = {"all_gather_into_tensor": "output_tensor", "reduce_scatter_tensor": "input", "all_reduce": "tensor"}

    def counting(name: str) -> Callable[..., Any]:
        call = getattr(dist, name)
        signature = inspect.signature(call)

        def counted(*arguments: Any, **options: Any) -> Any:
            tensor = signature.bind(*arguments, **options).arguments[whole[name]]
            size = options["group"].size()
            turns = 2 if name == "all_reduce" else 1
            entry = sent.setdefault(name, [0, 0])
            entry[0] += 1
            entry[1] += turns * tensor.numel() * tensor.element_size() * (size - 1) // size
            return call(*arguments, **options)

        return counted

    with ExitStack() as stack:
        for name in whole:
            stack.enter_context(mock.patch.object(dist, name, counting(name)))
        yield sent


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _bytes(tensor: Tensor) -> int:
    local = _local(tensor)
    return local.numel() * local.element_size()


def _storage(tensor: Tensor) -> int:
    """Bytes of the memory behind it, padding included."""
    return _local(tensor).untyped_storage().nbytes()
