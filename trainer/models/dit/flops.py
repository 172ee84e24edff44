"""Floating-point operations of the joint DiT's step.

Letters: B rows, T frames of S patches (audio: R frames of M), L text tokens, P prior tokens per row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from javisc.trainer.forecast.flops import Tally, trains
from javisc.trainer.models.dit.blocks import CrossModalityBiAttentionBlock, CrossSTDiT3Block, PriorResample, STDiT3Block
from javisc.trainer.models.dit.model import VASTDiT3


@dataclass
class _Stream:
    """One modality's tokens: frames of `patches` in each of `rows`, the text they read, and what gradients reach."""

    rows: int
    frames: int
    patches: int
    text: Sequence[int]
    reached: bool = False
    text_reached: bool = False
    mlp_reached: bool = False
    prior_reached: bool = False
    tokens: int = field(init=False)

    def __post_init__(self) -> None:
        self.tokens = self.rows * self.frames * self.patches


def _st_block(tally: Tally, block: STDiT3Block, x: _Stream) -> None:
    """Self-attention over space or time, text cross-attention, MLP."""
    rows = x.mlp_reached or block.scale_shift_table.requires_grad
    attn = block.attn
    r = tally.weight(attn.qkv, x.tokens, x.reached or rows) or trains(attn)
    length = x.frames if block.temporal else x.patches
    r = tally.attention(x.tokens * length, attn.proj.in_features, r, r)
    x.reached = tally.weight(attn.proj, x.tokens, r) or x.reached or rows
    cross = block.cross_attn
    q = tally.weight(cross.q_linear, x.tokens, x.reached)
    kv = tally.weight(cross.kv_linear, sum(x.text), x.text_reached)
    pairs = sum(x.text) * x.frames * x.patches
    r = tally.attention(pairs, cross.proj.in_features, q, kv)
    x.reached = tally.weight(cross.proj, x.tokens, r) or x.reached
    x.reached = tally.chain(block.mlp, x.tokens, x.reached) or x.reached


def _prior_block(tally: Tally, block: CrossSTDiT3Block, x: _Stream, priors: Sequence[int], reached: bool) -> None:
    """Spatial and temporal prior (tokens per row), MLP."""
    x.reached = x.reached or x.prior_reached or block.scale_shift_table.requires_grad
    for part, prior, length in zip(
        (block.spatial_cross_attn, block.temporal_cross_attn), priors, (x.patches, x.frames), strict=True
    ):
        if isinstance(part, PriorResample):
            x.reached = tally.weight(part.proj, x.rows * length, reached) or x.reached
            continue
        q = tally.weight(part.q_linear, x.tokens, x.reached)
        kv = tally.weight(part.kv_linear, x.rows * prior, reached)
        seen = x.rows * prior if block.scope == "batch" else prior
        r = tally.attention(x.tokens * seen, part.proj.in_features, q, kv)
        x.reached = tally.weight(part.proj, x.tokens, r) or x.reached
    x.reached = tally.chain(block.mlp, x.tokens, x.reached) or x.reached


def _va_block(tally: Tally, block: CrossModalityBiAttentionBlock, v: _Stream, a: _Stream) -> None:
    """Two directions, each with its own logits: what two separate attentions would compute."""
    part = block.cross_attn
    q, v1 = (tally.weight(layer, v.tokens, v.reached) for layer in (part.m1_proj, part.values_m1_proj))
    k, v2 = (tally.weight(layer, a.tokens, a.reached) for layer in (part.m2_proj, part.values_m2_proj))
    pairs, width = v.tokens * a.tokens / v.rows, part.m1_proj.out_features
    one = tally.attention(pairs, width, q, k and v2)
    two = tally.attention(pairs, width, k, q and v1)
    v.reached = tally.weight(part.out_m1_proj, v.tokens, one) or v.reached or block.gamma_m1.requires_grad
    a.reached = tally.weight(part.out_m2_proj, a.tokens, two) or a.reached or block.gamma_m2.requires_grad


def dit_flops(
    model: VASTDiT3, video: Sequence[int] | None, audio: Sequence[int], text: Sequence[int], masked: bool = False
) -> Tally:
    """A step of the joint DiT on latents video (B,4,T,H,W), None for an audio-only model, and audio (B,8,Ra,Ma).

    `text`: real tokens of every row. `masked`: some frame is given, so that the time embedding is needed twice.
    """
    config, tally, rows = model.config, Tally(), audio[0]
    times = 2 if masked else 1
    t = tally.chain(model.t_embedder, times * rows, False)
    t = tally.chain(model.fps_embedder, rows, False) or t
    t_mlp = tally.chain(model.t_block, times * rows, t)
    a = _Stream(rows, audio[2] // config.audio_patch_size[0], -(-audio[3] // config.audio_patch_size[1]), text)
    a.mlp_reached = t_mlp
    a.reached = tally.weight(model.ax_embedder.proj, a.tokens, False)
    a.text_reached = tally.chain(model.audio_y_embedder.y_proj, rows * config.model_max_length, False)
    v: _Stream | None = None
    priors, prior_reached = (config.spatial_prior_len, config.temporal_prior_len), False
    if video is not None and not config.audio_only:
        frames, height, width = (-(-size // patch) for size, patch in zip(video[2:], config.patch_size, strict=True))
        v = _Stream(rows, frames, height * width, text, mlp_reached=t_mlp)
        v.reached = tally.weight(model.x_embedder.proj, v.tokens, False)
        v.text_reached = tally.chain(model.y_embedder.y_proj, rows * config.model_max_length, False)
        if config.has_prior:
            prior_reached = tally.chain(model.st_prior_embedder.y_proj, rows * sum(priors), False)
            v.prior_reached = a.prior_reached = tally.chain(model.st_t_block, times * rows, t)
    for layer in range(config.depth):
        if v is not None:
            _st_block(tally, _at(model, "spatial_blocks", layer), v)
            _st_block(tally, _at(model, "temporal_blocks", layer), v)
        _st_block(tally, _at(model, "audio_spatial_blocks", layer), a)
        _st_block(tally, _at(model, "audio_temporal_blocks", layer), a)
        if v is not None and config.has_prior:
            _prior_block(tally, _at(model, "video_st_prior_blocks", layer), v, priors, prior_reached)
            _prior_block(tally, _at(model, "audio_st_prior_blocks", layer), a, priors, prior_reached)
        if v is not None and config.has_va:
            _va_block(tally, _at(model, "va_cross_blocks", layer), v, a)
    for stream, final in ((a, model.audio_final_layer), (v, model.final_layer)):
        if stream is not None:
            tally.weight(final.linear, stream.tokens, stream.reached or t or final.scale_shift_table.requires_grad)
    return tally


def _at(model: VASTDiT3, name: str, layer: int) -> Any:
    return getattr(model, name)[layer]
