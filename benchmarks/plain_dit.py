"""The joint DiT's forward pass with the arithmetic of the JavisDiT reference, in plain torch: what javisc is measured beside.

As specs/javisdit.md tells: the prior's keys are repeated for every frame (spatial) or patch (temporal) and all rows attend to
all of them; with frame masks, which are always given, every norm and modulation is computed for both times and then selected;
attention over time transposes the tokens and stores its probabilities. Longer sequences and prior keys take PyTorch's fused
attention, as the reference takes xformers' and flash attention. Parameters, embeddings and patches are the javisc model's own.

Letters: B rows, T frames, S patches per frame, N = T*S, H heads, D head width, C width, P prior tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from javisc.trainer.models.dit.embeddings import keep_real_tokens, position_code_1d, video_position_code
from javisc.trainer.models.dit.model import VASTDiT3


@dataclass(frozen=True)
class Times:
    """What the timestep says, at the drawn time and at time 0; the frame mask (B, T), true where a frame is generated."""

    t: Tensor
    t0: Tensor
    mask: Tensor

    def rows(self, table: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """table (k, C) + t as k tensors (B, 1, C); the same with t0."""
        now, zero = (table[None] + t.view(len(t), len(table), -1) for t in (self.t, self.t0))
        return now.chunk(len(table), 1), zero.chunk(len(table), 1)

    def select(self, generated: Tensor, given: Tensor) -> Tensor:
        """(B, N, C) twice → the one or the other, by frame."""
        rows, tokens, width = generated.shape
        frames = self.mask.shape[1]
        picked = torch.where(
            self.mask[:, :, None, None],
            generated.view(rows, frames, -1, width),
            given.view(rows, frames, -1, width),
        )
        return picked.view(rows, tokens, width)


def norm(x: Tensor, times: Times, now: tuple[Tensor, ...], zero: tuple[Tensor, ...], first: int) -> Tensor:
    """LayerNorm and modulation for both times, then the selection."""

    def one(rows: tuple[Tensor, ...]) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + rows[first + 1]) + rows[first]

    return times.select(one(now), one(zero))


def gate(x: Tensor, update: Tensor, times: Times, now: Tensor, zero: Tensor) -> Tensor:
    return x + times.select(now * update, zero * update)


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6)).to(x.dtype) * weight


def rotate(x: Tensor, freqs: Tensor) -> Tensor:
    """x (B, H, N, D), interleaved pairs turned by position."""
    angles = torch.arange(x.shape[2], device=x.device, dtype=freqs.dtype)[:, None] * freqs
    angles = angles.repeat_interleave(2, -1)
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    return (x * angles.cos() + torch.stack((-b, a), -1).flatten(-2) * angles.sin()).to(x.dtype)


def self_attention(attn: Any, x: Tensor, freqs: Tensor | None) -> Tensor:
    """x (rows, N, C), every row a sequence."""
    rows, length, width = x.shape
    qkv = attn.qkv(x).view(rows, length, 3, attn.heads, -1).permute(2, 0, 3, 1, 4)
    q, k, v = (part.contiguous() for part in qkv.unbind(0))
    q, k = rms_norm(q, attn.q_norm.weight), rms_norm(k, attn.k_norm.weight)
    if freqs is not None:
        q, k = rotate(q, freqs), rotate(k, freqs)
    if length > rows:  # the reference's rule for its fused kernel
        out = F.scaled_dot_product_attention(q, k, v)
    else:
        logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        out = logits.float().softmax(-1).to(v.dtype) @ v
    return attn.proj(out.transpose(1, 2).reshape(rows, length, width))


def cross_attention(attn: Any, x: Tensor, context: Tensor, lengths: list[int] | None) -> Tensor:
    """x (B, N, C) over packed context (n, C), row by row; without lengths all tokens of all rows are one sequence."""
    rows, tokens, width = x.shape
    q = attn.q_linear(x).view(1, rows * tokens, attn.heads, -1).transpose(1, 2)
    k, v = attn.kv_linear(context).view(1, -1, 2, attn.heads, width // attn.heads).permute(2, 0, 3, 1, 4)
    if lengths is None:
        out = F.scaled_dot_product_attention(q, k, v)
    else:
        own = zip(q.split(tokens, 2), k.split(lengths, 2), v.split(lengths, 2), strict=True)
        out = torch.cat([F.scaled_dot_product_attention(*parts) for parts in own], 2)
    return attn.proj(out.transpose(1, 2).reshape(rows, tokens, width))


def st_block(block: Any, x: Tensor, times: Times, text: Tensor, lengths: list[int], freqs: Tensor) -> Tensor:
    now, zero = times.rows(block.scale_shift_table)
    rows, _, width = x.shape
    frames = times.mask.shape[1]
    m = norm(x, times, now, zero, 0).view(rows, frames, -1, width)
    if block.temporal:
        m = self_attention(block.attn, m.transpose(1, 2).reshape(-1, frames, width), freqs)
        m = m.view(rows, -1, frames, width).transpose(1, 2).reshape(x.shape)
    else:
        m = self_attention(block.attn, m.flatten(0, 1), None).view(x.shape)
    x = gate(x, m, times, now[2], zero[2])
    x = x + cross_attention(block.cross_attn, x, text, lengths)
    return gate(x, block.mlp(norm(x, times, now, zero, 3)), times, now[5], zero[5])


def prior_block(block: Any, x: Tensor, times: Times, spatial: Tensor, temporal: Tensor) -> Tensor:
    now, zero = times.rows(block.scale_shift_table)
    rows, tokens, width = x.shape
    frames = times.mask.shape[1]
    patches = tokens // frames
    m = norm(x, times, now, zero, 0).view(rows * frames, patches, width)
    keys = spatial.repeat_interleave(frames, 0).flatten(0, 1)
    m = cross_attention(block.spatial_cross_attn, m, keys, None).view(x.shape)
    x = gate(x, m, times, now[2], zero[2])
    m = norm(x, times, now, zero, 3).view(rows, frames, patches, width).transpose(1, 2)
    keys = temporal.repeat_interleave(patches, 0).flatten(0, 1)
    m = cross_attention(block.temporal_cross_attn, m.reshape(rows * patches, frames, width), keys, None)
    x = gate(x, m.view(rows, patches, frames, width).transpose(1, 2).reshape(x.shape), times, now[5], zero[5])
    return gate(x, block.mlp(norm(x, times, now, zero, 6)), times, now[8], zero[8])


def va_block(block: Any, v: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    attn = block.cross_attn
    u, w = (F.layer_norm(x, x.shape[-1:], eps=1e-6) for x in (v, a))

    def heads(layer: nn.Module, x: Tensor) -> Tensor:
        return layer(x).unflatten(-1, (attn.heads, -1)).transpose(1, 2)

    q, k = heads(attn.m1_proj, u), heads(attn.m2_proj, w)
    to_v = F.scaled_dot_product_attention(q, k, heads(attn.values_m2_proj, w)).transpose(1, 2).flatten(2)
    to_a = F.scaled_dot_product_attention(k, q, heads(attn.values_m1_proj, u)).transpose(1, 2).flatten(2)
    return v + block.gamma_m1 * attn.out_m1_proj(to_v), a + block.gamma_m2 * attn.out_m2_proj(to_a)


def final(layer: Any, x: Tensor, times: Times) -> Tensor:
    table = layer.scale_shift_table[None]

    def one(y: Tensor, t: Tensor) -> Tensor:
        shift, scale = (table + t[:, None]).chunk(2, 1)
        return F.layer_norm(y, y.shape[-1:], eps=1e-6) * (1 + scale) + shift

    m = one(x, times.t)
    return layer.linear(times.select(m, one(m, times.t0)))


class PlainDiT:
    """The reference's forward pass over a javisc model's parameters; `compiled`: every kind of block through torch.compile."""

    def __init__(self, model: VASTDiT3, *, compiled: bool = False, recompute: bool = False) -> None:
        def made(function: Callable[..., Any]) -> Callable[..., Any]:
            function = torch.compile(function) if compiled else function
            if not recompute:
                return function
            return lambda *arguments: checkpoint(function, *arguments, use_reentrant=False)

        self.model = model
        self.st, self.prior, self.va = made(st_block), made(prior_block), made(va_block)

    def __call__(
        self, video: Tensor, audio: Tensor, timestep: Tensor, y: Tensor, mask: Tensor, *, fps: Tensor, height: float,
        width: float, spatial_prior: Tensor, temporal_prior: Tensor, x_mask: Tensor, ax_mask: Tensor,
    ) -> dict[str, Tensor]:  # fmt: skip
        model, channels = self.model, self.model.config.hidden_size
        kind = {"device": video.device, "dtype": model.dtype}
        fps_code = model.fps_embedder(fps, len(fps))
        t, t0 = (model.t_embedder(time) + fps_code for time in (timestep, torch.zeros_like(timestep)))
        a_mask = ax_mask[:, :: model.config.audio_patch_size[0]]
        masks = (x_mask, a_mask)
        raw = [Times(t, t0, m) for m in masks]
        mlp = [Times(model.t_block(t), model.t_block(t0), m) for m in masks]
        st = [Times(model.st_t_block(t), model.st_t_block(t0), m) for m in masks]
        texts = [
            keep_real_tokens(embedder(y).squeeze(1), mask) for embedder in (model.y_embedder, model.audio_y_embedder)
        ]
        prior = model.st_prior_embedder(torch.cat((spatial_prior, temporal_prior), 1))
        spatial, temporal = prior.split((spatial_prior.shape[1], temporal_prior.shape[1]), 1)
        frames = x_mask.shape[1]
        counts = [-(-size // patch) for size, patch in zip(video.shape[3:], model.config.patch_size[1:], strict=True)]
        code = video_position_code(*counts, channels, height, width, model.config.input_sq_size, **kind)
        v = model.x_embedder(video) + code.repeat(1, frames, 1)
        a = model.ax_embedder(audio)
        a = a + position_code_1d(a.shape[1] // a_mask.shape[1], channels, **kind).repeat(1, a_mask.shape[1], 1)
        freqs = model.rope.freqs.detach()
        for layer in range(model.config.depth):
            for name in ("spatial_blocks", "temporal_blocks"):
                v = self.st(getattr(model, name)[layer], v, mlp[0], *texts[0], freqs)
            for name in ("audio_spatial_blocks", "audio_temporal_blocks"):
                a = self.st(getattr(model, name)[layer], a, mlp[1], *texts[1], freqs)
            v = self.prior(model.video_st_prior_blocks[layer], v, st[0], spatial, temporal)
            a = self.prior(model.audio_st_prior_blocks[layer], a, st[1], spatial, temporal)
            v, a = self.va(model.va_cross_blocks[layer], v, a)
        return {
            "video": model.video_latent(final(model.final_layer, v, raw[0]), video.shape),
            "audio": model.audio_latent(final(model.audio_final_layer, a, raw[1]), audio.shape),
        }
