"""How the models call every op: shapes, strides and options of the recipes. Ahead-of-time compilation and benchmarks run these.

Video buckets of the joint DiT are named by short side, frames and clips per device: B clips, T latent frames, S patches a frame.
Queries, keys and values are views of one projection, gains and modulations of the compute precision, as there
(`trainer/forecast/variants.py` finds the recipes' own launches; a test holds these to them).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Inputs = dict[str, Any]
C, H, D = 1152, 16, 72


@dataclass(frozen=True)
class Sizes:
    """What the calls are made for: buckets of video and of audio (B, T, S), text tokens a clip, audio tokens of the
    bidirectional attention, (clips, keys) of the selector, channels and heads of the joint DiT."""

    video: Mapping[str, Mapping[str, int]]
    audio: Mapping[str, Mapping[str, int]]
    text: int = 300
    both: tuple[int, ...] = (208, 1696)
    selector: tuple[tuple[int, int], ...] = ((10, 784), (2, 3136), (2, 9408))
    heads: int = H
    channels: int = C


#: The recipes' own; the audio is ten seconds.
MODELS = Sizes(
    {
        "144p 51 frames, 16 clips": {"B": 16, "T": 15, "S": 144},
        "240p 51 frames, 10 clips": {"B": 10, "T": 15, "S": 405},
        "360p 51 frames, 4 clips": {"B": 4, "T": 15, "S": 920},
        "720p 51 frames, 1 clip": {"B": 1, "T": 15, "S": 3600},
        "144p 408 frames, 3 clips": {"B": 3, "T": 120, "S": 144},
        "480p 102 frames, 1 clip": {"B": 1, "T": 30, "S": 1590},
        "720p 204 frames, 1 clip": {"B": 1, "T": 60, "S": 3600},
    },
    {"audio, 16 clips": {"B": 16, "T": 106, "S": 16}, "short audio, 2 clips": {"B": 2, "T": 14, "S": 16}},
)
#: Small ones that launch every variant that the models launch: what a gate can compare with float64 in seconds on a device.
GATE = Sizes(
    {
        "short": {"B": 16, "T": 15, "S": 144},
        "long": {"B": 1, "T": 15, "S": 601},
        "30 frames": {"B": 1, "T": 30, "S": 5},
        "60 frames": {"B": 2, "T": 60, "S": 9},
        "120 frames": {"B": 1, "T": 120, "S": 3},
    },
    {"audio": {"B": 2, "T": 106, "S": 16}, "short audio": {"B": 2, "T": 14, "S": 16}},
    heads=H,
)
#: Tiny ones for the interpreter: every op and every stage, in seconds on one core.
TINY = Sizes({"tiny": {"B": 1, "T": 2, "S": 3}}, {}, text=5, both=(4,), selector=((1, 20),), heads=1, channels=D)


@dataclass(frozen=True)
class Call:
    """One op at one shape. make: device, dtype → its inputs by name, those that learn require gradients. function and definition
    are called with them; `options` beside them."""

    op: str
    shape: str
    function: Callable[..., Any]
    definition: Callable[..., Any]
    make: Callable[[torch.device, torch.dtype], Inputs]
    options: Inputs = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.op}, {self.shape}"

    def ours(self, **inputs: Any) -> Any:
        """The call, on the Triton kernels."""
        return self.function(**inputs, **self.options, backend="triton")

    def run(self, device: torch.device, dtype: torch.dtype = torch.bfloat16) -> list[Tensor]:
        """Forward and backward once; returns outputs and gradients."""
        inputs = self.make(device, dtype)
        out = self.ours(**inputs)
        outs = list(out) if isinstance(out, tuple) else [out]
        leaves = [x for x in inputs.values() if isinstance(x, Tensor) and x.requires_grad]
        return outs + list(torch.autograd.grad(outs, leaves, [torch.empty_like(o) for o in outs]))


def draw(device: torch.device, dtype: torch.dtype, *shape: int) -> Tensor:
    """A standard normal leaf that learns."""
    return torch.randn(shape, device=device, dtype=dtype).requires_grad_()


def _views(device: torch.device, dtype: torch.dtype, axis: int, names: str, *shape: int) -> Inputs:
    """The slices of one projection along an axis, each a leaf of its own with the projection's strides."""
    return {n: x.detach().requires_grad_() for n, x in zip(names, draw(device, dtype, *shape).unbind(axis))}


def _gains(d: torch.device, t: torch.dtype) -> Inputs:
    return {n: (1 + 0.1 * torch.randn(D, device=d)).to(t).requires_grad_() for n in ("q_weight", "k_weight")}


def _spatial(d: torch.device, t: torch.dtype, s: Sizes, B: int, T: int, S: int) -> Inputs:
    return _views(d, t, 2, "qkv", B * T, S, 3, s.heads, D) | _gains(d, t)


def _text(d: torch.device, t: torch.dtype, s: Sizes, B: int, T: int, S: int) -> Inputs:
    bounds = torch.arange(0, B + 1, device=d, dtype=torch.int32) * s.text
    return {
        "q": draw(d, t, B, T * S, s.heads, D),
        **_views(d, t, 1, "kv", B * s.text, 2, s.heads, D),
        "cu_seqlens_k": bounds,
    }


def _temporal(d: torch.device, t: torch.dtype, s: Sizes, B: int, T: int, S: int) -> Inputs:
    angles = torch.arange(T, device=d, dtype=torch.float32)[:, None] / 1e4 ** (torch.arange(0, D, 2, device=d) / D)
    return {
        "qkv": draw(d, t, B, T, S, 3, s.heads, D),
        **_gains(d, t),
        "cos": angles.cos().to(t),
        "sin": angles.sin().to(t),
    }


def _prior(d: torch.device, t: torch.dtype, s: Sizes, B: int, T: int, S: int) -> Inputs:
    return {"q": draw(d, t, B, T * S, s.heads, D), **_views(d, t, 2, "kv", B, 32, 2, s.heads, D)}


def _both(d: torch.device, t: torch.dtype, s: Sizes, audio: int, B: int, T: int, S: int) -> Inputs:
    lengths = {"q": T * S, "k": audio, "v_row": audio, "v_col": T * S}
    return {name: draw(d, t, B, n, max(s.heads // 2, 1), D) for name, n in lengths.items()}


def _norm(
    d: torch.device, t: torch.dtype, s: Sizes, names: tuple[str, ...], rows: str, masked: bool, B: int, T: int, S: int
) -> Inputs:
    inputs: Inputs = {name: draw(d, t, B, T, S, s.channels) for name in rows}
    for zero in ("", "0") if masked else ("",):
        table = torch.randn(len(names), B, s.channels, device=d, dtype=t)
        inputs |= {f"{name}{zero}": row.detach().requires_grad_() for name, row in zip(names, table)}
    if masked:
        inputs["mask"] = (torch.arange(B * T, device=d) % 3 > 0).view(B, T)
    return inputs


def _select(d: torch.device, t: torch.dtype, s: Sizes, clips: int, keys: int) -> Inputs:
    return {name: draw(d, t, clips, n, max(s.heads // 2, 1), 64) for name, n in {"q": 16, "k": keys, "v": keys}.items()}


def calls(sizes: Sizes = MODELS) -> Iterator[Call]:
    """The calls of every recipe, every op at the shapes that lead to different code or different grids."""
    from javisc.kernels.attention.reference import attention_reference
    from javisc.kernels.bidirectional_attention.reference import bidirectional_attention_reference
    from javisc.kernels.modulated_norm.reference import definition as norm
    from javisc.kernels.prior_attention import reference as prior
    from javisc.kernels.temporal_attention.reference import temporal_attention_reference

    def call(
        op: str, shape: str, definition: Callable[..., Any], make: Callable[..., Inputs], axes: Mapping[str, Any], **options: Any
    ) -> Call:  # fmt: skip
        package = "modulated_norm" if op in names else op
        function = getattr(importlib.import_module(f"javisc.kernels.{package}"), op)
        return Call(op, shape, function, definition, lambda device, dtype: make(device, dtype, sizes, **axes), options)

    names = {"modulated_layer_norm": ("shift", "scale"), "gated_residual": ("gate",)}
    names["gated_residual_layer_norm"] = ("gate", "shift", "scale")
    for name, v in {**sizes.video, **sizes.audio}.items():
        yield call("attention", f"spatial, {name}", attention_reference, _spatial, v)
        yield call("attention", f"text, {name}", attention_reference, _text, v, max_seqlen_k=sizes.text)
        yield call("temporal_attention", name, temporal_attention_reference, _temporal, v)
        for scope in ("batch", "sample"):
            yield call("prior_attention", f"{scope}, {name}", prior.prior_attention, _prior, v, scope=scope)
        for masked in (False, True):
            for op, modulations in names.items():
                rows = "x" if op == "modulated_layer_norm" else "xy"
                axes = {"names": modulations, "rows": rows, "masked": masked, **v}
                yield call(op, f"{'frame mask, ' if masked else ''}{name}", norm, _norm, axes)
    for name, v in sizes.video.items():
        for audio in sizes.both:
            shape, axes = f"{audio} audio, {name}", {"audio": audio, **v}
            yield call("bidirectional_attention", shape, bidirectional_attention_reference, _both, axes)
    for clips, keys in sizes.selector:
        axes = {"clips": clips, "keys": keys}
        yield call("selector_attention", f"{clips} clips, {keys} keys", attention_reference, _select, axes)
