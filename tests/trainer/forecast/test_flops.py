"""FLOPs: passes without memory against real ones, against formulas by definition, against published tables; devices' peaks."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from javisc.kernels import dispatch
from javisc.trainer.data.sources.sync import SyncBatch
from javisc.trainer.engine.peaks import named_peak, peak_flops
from javisc.trainer.forecast.flops import META, Work, by_depth, counted, hollow
from javisc.trainer.models.dit import PRESETS, VASTDiT3
from javisc.trainer.models.dit.stages import freeze
from javisc.trainer.models.sync.model import AVSync
from javisc.trainer.models.synchformer.config import JoinConfig
from javisc.trainer.models.synchformer.model import JoinTransformer
from javisc.trainer.tasks.dit import DiTTask, Example
from javisc.trainer.tasks.registry import load
from support import selector


def for_real(outputs: Any) -> tuple[float, float]:
    """FLOPs of real passes: `outputs()`, then backward through the sum of what it gave."""
    # Plain attention: the backward of the fused one computes its logits again.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as inside:
        given = outputs()
        forward = inside.get_total_flops()
        sum(output.sum() for output in given).backward()
        return forward, inside.get_total_flops() - forward


@pytest.mark.parametrize(("rows", "inputs"), [(3, True), (5, False)])
def test_by_definition(rows: int, inputs: bool) -> None:
    """2 per multiply-add: of a weight over every token; of its gradient as many; of the inputs' gradient, where there is one."""
    layers = nn.Sequential(nn.Linear(7, 11), nn.GELU(), nn.Linear(11, 13)).to(META)
    layers[0].requires_grad_(inputs)
    first, second = 2.0 * rows * 7 * 11, 2.0 * rows * 11 * 13
    work = counted(lambda: layers(torch.empty(rows, 7, device=META)))
    assert work == Work(first + second, (first + second if inputs else 0) + second)
    assert counted(lambda: layers(torch.empty(rows, 7, device=META)), backward=False) == Work(first + second, 0)


def test_a_transformer_by_definition() -> None:
    """A layer is four projections, two products of attention, and the MLP; all gradients exist but none of anything twice."""
    config = JoinConfig(3, 2, width=24)
    with META:
        join = JoinTransformer(config)
    seen, heard = (torch.empty(2, n, 24, device=META, requires_grad=True) for n in (config.rows - 9, 7))
    tokens, width = config.rows, 24
    layer = 2 * (2.0 * tokens * (4 * width**2 + 8 * width**2) + 4.0 * tokens**2 * width)
    head = 2 * 2.0 * width * config.classes
    work = counted(lambda: join(seen, heard))
    assert work == Work(3 * layer + head, 2 * (3 * layer + head))


def test_a_copy_without_memory_leaves_the_model_as_it_is() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).requires_grad_(False)
    model[0].weight.requires_grad_(True)
    empty = hollow(model)
    assert all(x.is_meta for x in (*empty.parameters(), *empty.buffers()))
    assert not any(x.is_meta for x in (*model.parameters(), *model.buffers()))
    assert [p.requires_grad for p in empty.parameters()] == [p.requires_grad for p in model.parameters()]


@pytest.mark.parametrize("more", [[], ["alignment_weight=0.5"], ["data.offsets_per_clip=2", "channels_last=false"]])
def test_sync(more: list[str]) -> None:
    """A step of the selector, its alignment among it."""
    recipe, task = load("sync-demo", ["data.paths=[x]", *selector.TINY, *more])
    sounds = recipe.data.offsets_per_clip
    size = recipe.transforms.input_size
    batch = SyncBatch(
        torch.randn(2, 40, 3, size, size), torch.randn(2 * sounds, 1, 257, 201),
        torch.zeros(2 * sounds, dtype=torch.long), torch.zeros(2 * sounds), ["a", "b"],
    )  # fmt: skip
    model = task.model().train()
    expected = for_real(lambda: [task.loss(model, batch, torch.device("cpu"))["loss"]])  # type: ignore[call-overload]
    assert task.flops(batch) == sum(expected)
    seen, heard = model.vfeat_extractor(batch.vis), model.afeat_extractor(batch.aud)  # type: ignore[operator]
    assert task.tokens(batch) == seen[:, :, 0].numel() + heard[:, 0].numel()


STAGES = {
    "masked": ("jav-tiny", ["model.options.prior_attention=sample"]),
    "all": (
        "jav-tiny",
        [f"model.options.freeze_{part}=false" for part in ("video_branch", "audio_branch", "y_embedder")],
    ),
    "modulate": ("jav-tiny", ["model.options.st_prior_utilize=modulate", "model.options.train_va_cross_attn=false"]),
    "stage1": ("audio-tiny", []),
}


@pytest.mark.parametrize("stage", STAGES)
def test_dit(stage: str) -> None:
    """Layers that are counted once for many, on tensors without values, against a real pass through all of them."""
    name, more = STAGES[stage]
    task = load(name, ["data.paths=[x]", "start.fresh=true", "model.options.depth=4", *more])[1]
    assert isinstance(task, DiTTask)
    example = next(iter(task.examples()))
    torch.manual_seed(0)
    model, step = task.model().train(), real(task, example)
    assert task.flops(example) == sum(for_real(lambda: [task.flow(model, step).mean()]))


def real(task: DiTTask, example: Example) -> Any:
    """The task's own inputs without values, given values: captions as long as they are assumed to be."""
    words = min(60, task.config.model_max_length)
    step = task._fake(example, torch.device("cpu"), words)
    step.latents.mask[:] = 0
    step.latents.mask[:, :words] = 1
    for mask in (step.masks or {}).values():
        mask[:] = True
        mask[:, 0] = False
    for x in (step.latents.audio, step.latents.video, step.latents.text, *step.noise.values(), *(step.priors or ())):
        if x is not None:
            x.normal_()
    step.t.fill_(500.0)
    for drop in (step.drops or {}).values():
        drop[:] = False
    return step


def test_what_runs_a_kernel_elsewhere_is_counted_as_its_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    task = load("audio-tiny", ["data.paths=[x]", "start.fresh=true", "model.options.depth=1"])[1]
    example = next(iter(task.examples()))  # type: ignore[attr-defined]
    plain = task.flops(example)
    monkeypatch.setenv(dispatch.VARIABLE, "triton")
    again = load("audio-tiny", ["data.paths=[x]", "start.fresh=true", "model.options.depth=1"])[1]
    assert again.flops(example) == plain > 0


@pytest.mark.parametrize(
    ("frames", "latent", "audio", "tera"),
    [(15, (30, 54), 56, 40), (30, (90, 160), 112, 790)],
)
def test_the_published_cost_of_the_joint_dit(frames: int, latent: tuple[int, int], audio: int, tera: float) -> None:
    """The table of two rows with 60 words each, in TFLOP."""
    config = PRESETS["VASTDiT3-XL/2"]

    def count(depth: int) -> float:
        with META:
            model = VASTDiT3(dataclasses.replace(config, depth=depth))
            freeze(model)
            y, t = torch.empty(2, 1, config.model_max_length, config.caption_channels), torch.empty(2)
            prior = {
                f"{name}_prior": torch.empty(2, length, config.st_prior_channel)
                for name, length in (("spatial", config.spatial_prior_len), ("temporal", config.temporal_prior_len))
            }
            inputs = torch.empty(2, 4, frames, *latent), torch.empty(2, 8, audio, 16)
        run = lambda: model(*inputs, t, y, fps=t, height=8.0, width=8.0, lengths=[60, 60], **prior)  # noqa: E731
        return counted(run, backward=False).forward

    assert by_depth(count, config.depth) / 1e12 == pytest.approx(tera, rel=0.02)


def test_the_published_cost_of_the_selector() -> None:
    with META:
        model, vis, aud = AVSync(), torch.empty(1, 125, 3, 224, 224), torch.empty(1, 1, 257, 626)
    work = counted(lambda: model(vis, aud)[1], backward=False)
    assert work.forward / 1e9 == pytest.approx(283.7 + 11.87 + 0.82 + 4.484, rel=1e-3)


def test_peaks_by_name() -> None:
    assert named_peak("NVIDIA H100 80GB HBM3", "bf16") == 989e12
    assert named_peak("NVIDIA H100 PCIe", "fp16") == 756e12
    assert named_peak("NVIDIA A100-SXM4-80GB", "fp32") == 19.5e12
    assert named_peak("NVIDIA A100-SXM4-80GB", "fp32", tf32=True) == 156e12
    assert named_peak("NVIDIA GH200 480GB", "bf16") == 989e12
    assert named_peak("Tesla K80", "fp32") is None
    assert peak_flops(torch.device("cpu"), "bf16") is None
