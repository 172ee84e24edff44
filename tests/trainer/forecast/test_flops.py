"""The FLOP formulas against PyTorch's own counter, the published table, and the peaks of devices."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from javisc.trainer.engine.peaks import named_peak, peak_flops
from javisc.trainer.models.dit import PRESETS, VASTDiT3, VASTDiT3Config
from javisc.trainer.models.dit.flops import dit_flops
from javisc.trainer.models.dit.stages import freeze
from javisc.trainer.models.sync.config import (
    AVSyncConfig,
    FullAttentionConfig,
    FusionConfig,
    SelectorConfig,
    SyncTransformerConfig,
    TrunkConfig,
)
from javisc.trainer.models.sync.flops import sync_flops
from javisc.trainer.models.sync.model import AVSync

SMALL = {"width": 16, "classes": 5, "visual_shape": (10, 8, 8), "audio_shape": (17, 16)}


def counted(outputs: list[torch.Tensor], inside: FlopCounterMode) -> tuple[float, float]:
    """FLOPs so far, and of a backward pass through the outputs."""
    forward = inside.get_total_flops()
    sum(output.sum() for output in outputs).backward()  # type: ignore[union-attr]
    return forward, inside.get_total_flops() - forward


@pytest.mark.parametrize(
    ("size", "kind", "trained"),
    [
        ("full", "transformer", True),
        ("full", "full", False),
        ("small", "transformer", False),
        ("small", "mlp", True),
        ("small", "mlp", False),
        ("small", "full", True),
    ],
)
def test_sync(size: str, kind: str, trained: bool) -> None:
    trunk = TrunkConfig(size=size, trained=trained)
    selector = SelectorConfig(n_layer=2, n_head=2, num_selectors=3, attn_pdrop=0.0)
    fusion = FusionConfig(n_layer=2, n_head=2, attn_pdrop=0.0, kind="mlp" if kind == "mlp" else "transformer")
    config = AVSyncConfig(
        visual_trunk=trunk,
        audio_trunk=trunk,
        audio_bridge="conv",
        transformer=SyncTransformerConfig(visual_selector=selector, audio_selector=selector, fusion=fusion, **SMALL),  # type: ignore[arg-type]
        full_attention=FullAttentionConfig(stack=fusion, **SMALL) if kind == "full" else None,  # type: ignore[arg-type]
    )
    with FakeTensorMode():
        model = AVSync(config)
        vis, aud = torch.randn(2, 17, 3, 48, 40), torch.randn(2, 1, 65, 49)
        # Plain attention: the backward of the fused one computes its logits again.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as inside:
            _, logits = model(vis, aud)
            expected = counted([logits], inside)
    tally = sync_flops(model, vis.shape, aud.shape)
    assert (tally.forward, tally.backward) == expected


def tiny(**options: object) -> VASTDiT3Config:
    return dataclasses.replace(PRESETS["VASTDiT3-tiny"], **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("config", "masked"),
    [
        (tiny(), False),
        (tiny(prior_attention="sample"), True),
        (tiny(freeze_video_branch=False, freeze_audio_branch=False, freeze_y_embedder=False), True),
        (tiny(freeze_video_branch=False), False),
        (tiny(st_prior_utilize="modulate", train_va_cross_attn=False), False),
        (tiny(st_prior_utilize="addition", train_st_prior_attn=False), False),
        (PRESETS["VASTDiT3-tiny-audio"], False),
    ],
    ids=["stage3", "masked", "all", "video", "modulate", "no-prior", "stage1"],
)
def test_dit(config: VASTDiT3Config, masked: bool) -> None:
    torch.manual_seed(0)
    model = VASTDiT3(config)
    freeze(model)
    rows, length = 2, 10  # text of one length: the counter would see padding
    video, audio = torch.randn(rows, 4, 3, 6, 4), torch.randn(rows, 8, 16, 5)
    y, mask = (
        torch.randn(rows, 1, config.model_max_length, config.caption_channels),
        torch.zeros(rows, config.model_max_length),
    )
    mask[:, :length] = 1
    priors = {
        f"{name}_prior": torch.randn(rows, count, config.st_prior_channel)
        for name, count in (("spatial", config.spatial_prior_len), ("temporal", config.temporal_prior_len))
    }
    frames = {"x_mask": torch.tensor([[0, 1, 1]] * rows).bool(), "ax_mask": (torch.arange(16) > 3).expand(rows, -1)}
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as inside:
        out = model(
            None if config.audio_only else video, audio, torch.full((rows,), 500.0), y, mask, fps=torch.full((rows,), 24.0),
            height=48.0, width=32.0, **(priors if config.has_prior else {}), **(frames if masked else {}),
        )  # fmt: skip
        expected = counted(list(out.values()), inside)
    tally = dit_flops(model, None if config.audio_only else video.shape, audio.shape, [length] * rows, masked)
    assert (tally.forward, tally.backward) == expected


@pytest.mark.parametrize(
    ("frames", "latent", "audio", "tera"),
    [(15, (30, 54), 56, 40), (30, (30, 54), 112, 81), (15, (60, 106), 56, 161), (30, (90, 160), 112, 790)],
)
def test_the_published_cost_of_the_joint_dit(frames: int, latent: tuple[int, int], audio: int, tera: float) -> None:
    """The table of two rows with 60 words each, in TFLOP."""
    with torch.device("meta"):
        model: nn.Module = VASTDiT3(PRESETS["VASTDiT3-XL/2"])
    assert isinstance(model, VASTDiT3)
    tally = dit_flops(model, (2, 4, frames, *latent), (2, 8, audio, 16), [60, 60])
    assert tally.forward / 1e12 == pytest.approx(tera, rel=0.02)


def test_the_published_cost_of_the_selector() -> None:
    with torch.device("meta"):
        model = AVSync()
    tally = sync_flops(model, (1, 125, 3, 224, 224), (1, 1, 257, 626))
    assert tally.forward / 1e9 == pytest.approx(283.7 + 11.87 + 0.82 + 4.484, rel=1e-3)


def test_peaks_by_name() -> None:
    assert named_peak("NVIDIA H100 80GB HBM3", "bf16") == 989e12
    assert named_peak("NVIDIA H100 PCIe", "fp16") == 756e12
    assert named_peak("NVIDIA A100-SXM4-80GB", "fp32") == 19.5e12
    assert named_peak("NVIDIA A100-SXM4-80GB", "fp32", tf32=True) == 156e12
    assert named_peak("NVIDIA GH200 480GB", "bf16") == 989e12
    assert named_peak("Tesla K80", "fp32") is None
    assert peak_flops(torch.device("cpu"), "bf16") is None
