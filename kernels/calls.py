"""How the models call every op: shapes, strides and options of the recipes. Ahead-of-time compilation and benchmarks run these.

Video buckets of the joint DiT are named by short side, frames and clips per device: B clips, T latent frames, S patches a frame.
Queries, keys and values are views of one projection, as there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

VIDEO = {
    "144p 51 frames, 16 clips": {"B": 16, "T": 15, "S": 144},
    "144p 408 frames, 3 clips": {"B": 3, "T": 120, "S": 144},
    "240p 51 frames, 10 clips": {"B": 10, "T": 15, "S": 405},
    "360p 51 frames, 4 clips": {"B": 4, "T": 15, "S": 920},
    "480p 102 frames, 1 clip": {"B": 1, "T": 30, "S": 1590},
    "720p 51 frames, 1 clip": {"B": 1, "T": 15, "S": 3600},
    "720p 204 frames, 1 clip": {"B": 1, "T": 60, "S": 3600},
}
#: Latent rows and columns of ten seconds of audio, per clip.
AUDIO = {"audio, 16 clips": {"B": 16, "T": 106, "S": 16}}
C, H, D = 1152, 16, 72
TEXT = 300
BF16 = torch.bfloat16


@dataclass(frozen=True)
class Call:
    """One op at one shape. make: device → its inputs by name, those that learn require gradients; function: called with them."""

    name: str
    function: Callable[..., Any]
    make: Callable[[torch.device], dict[str, Any]]

    def run(self, device: torch.device) -> list[Tensor]:
        """Forward and backward once; returns outputs and gradients."""
        inputs = self.make(device)
        out = self.function(**inputs)
        outs = list(out) if isinstance(out, tuple) else [out]
        leaves = [x for x in inputs.values() if isinstance(x, Tensor) and x.requires_grad]
        return outs + list(torch.autograd.grad(outs, leaves, [torch.empty_like(o) for o in outs]))


def _draw(device: torch.device, dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.randn(shape, device=device, dtype=dtype)


def _views(device: torch.device, dtype: torch.dtype, axis: int, names: str, *shape: int) -> dict[str, Tensor]:
    """The slices of one projection along an axis, each a leaf of its own with the projection's strides."""
    parts = _draw(device, dtype, *shape).unbind(axis)
    return {name: part.detach().requires_grad_() for name, part in zip(names, parts)}


def _gains(device: torch.device, width: int) -> dict[str, Tensor]:
    return {name: (1 + 0.1 * _draw(device, torch.float32, width)).requires_grad_() for name in ("q_weight", "k_weight")}


def _turns(device: torch.device, length: int, width: int) -> dict[str, Tensor]:
    angles = torch.arange(length, device=device, dtype=torch.float32)[:, None] * torch.ones(width // 2, device=device)
    return {"cos": angles.cos(), "sin": angles.sin()}


def calls(dtype: torch.dtype = BF16) -> Iterator[Call]:
    """The calls of every recipe, every op at the shapes that lead to different code or different grids."""
    from javisc.kernels.attention import attention
    from javisc.kernels.bidirectional_attention import bidirectional_attention
    from javisc.kernels.modulated_norm import gated_residual, gated_residual_layer_norm, modulated_layer_norm
    from javisc.kernels.prior_attention import prior_attention
    from javisc.kernels.selector_attention import selector_attention
    from javisc.kernels.temporal_attention import temporal_attention

    def spatial(d: torch.device, B: int, T: int, S: int) -> dict[str, Any]:
        return _views(d, dtype, 2, "qkv", B * T, S, 3, H, D) | _gains(d, D)

    def text(d: torch.device, B: int, T: int, S: int) -> dict[str, Any]:
        q = _draw(d, dtype, B, T * S, H, D).requires_grad_()
        bounds = torch.arange(0, B + 1, device=d, dtype=torch.int32) * TEXT
        return {"q": q, **_views(d, dtype, 1, "kv", B * TEXT, 2, H, D), "cu_seqlens_k": bounds, "max_seqlen_k": TEXT}

    def temporal(d: torch.device, B: int, T: int, S: int) -> dict[str, Any]:
        return {"qkv": _draw(d, dtype, B, T, S, 3, H, D).requires_grad_(), **_gains(d, D), **_turns(d, T, D)}

    def prior(d: torch.device, B: int, T: int, S: int, scope: str) -> dict[str, Any]:
        q = _draw(d, dtype, B, T * S, H, D).requires_grad_()
        return {"q": q, **_views(d, dtype, 2, "kv", B, 32, 2, H, D), "scope": scope}

    def both(d: torch.device, B: int, T: int, S: int, audio: int) -> dict[str, Any]:
        lengths = {"q": T * S, "k": audio, "v_row": audio, "v_col": T * S}
        return {name: _draw(d, dtype, B, n, 8, D).requires_grad_() for name, n in lengths.items()}

    def norm(d: torch.device, B: int, T: int, S: int, names: str, rows: str, masked: bool) -> dict[str, Any]:
        table = _draw(d, torch.float32, 6, B, C)
        inputs: dict[str, Any] = {name: _draw(d, dtype, B, T, S, C).requires_grad_() for name in rows}
        inputs |= {name: table[i].detach().requires_grad_() for i, name in enumerate(names.split())}
        if masked:
            inputs |= {f"{name}0": table[i + 3].detach().requires_grad_() for i, name in enumerate(names.split())}
            inputs["mask"] = torch.ones((B, T), dtype=torch.bool, device=d)
        return inputs

    def bind(make: Callable[..., dict[str, Any]], *args: Any, **sizes: Any) -> Callable[[torch.device], dict[str, Any]]:
        return lambda device: make(device, *args, **sizes)

    def forced(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda **inputs: function(**inputs, backend="triton")

    for name, v in (VIDEO | AUDIO).items():
        yield Call(f"attention, spatial, {name}", forced(attention), bind(spatial, **v))
        yield Call(f"attention, text, {name}", forced(attention), bind(text, **v))
        yield Call(f"temporal_attention, {name}", forced(temporal_attention), bind(temporal, **v))
        for scope in ("batch", "sample"):
            yield Call(f"prior_attention, {scope}, {name}", forced(prior_attention), bind(prior, scope=scope, **v))
        for masked in (False, True):
            for function, names, rows in (
                (modulated_layer_norm, "shift scale", "x"),
                (gated_residual, "gate", "xy"),
                (gated_residual_layer_norm, "gate shift scale", "xy"),
            ):
                label = f"{function.__name__}, {'frame mask, ' if masked else ''}{name}"
                yield Call(label, forced(function), bind(norm, names=names, rows=rows, masked=masked, **v))
    for name, v in VIDEO.items():
        for audio in (208, 1696):
            yield Call(
                f"bidirectional_attention, {audio} audio, {name}",
                forced(bidirectional_attention),
                bind(both, audio=audio, **v),
            )
    for clips, keys in ((10, 784), (2, 3136), (2, 9408)):

        def select(d: torch.device, clips: int = clips, keys: int = keys) -> dict[str, Any]:
            shapes = {"q": 16, "k": keys, "v": keys}
            return {name: _draw(d, dtype, clips, n, 8, 64).requires_grad_() for name, n in shapes.items()}

        yield Call(f"selector_attention, {clips} clips, {keys} keys", forced(selector_attention), select)
