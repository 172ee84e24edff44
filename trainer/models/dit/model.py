"""VASTDiT3: a video latent and an audio latent denoised together.

Letters: B rows, C width, T/H/W video latent axes and t/h/w its patch counts, S = h*w, R/M audio patch counts (time,
frequency), L caption tokens, P prior tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import is_fake

from javisc.trainer.models.dit.attention import PackedText, Rope
from javisc.trainer.models.dit.blocks import (
    CrossModalityBiAttentionBlock,
    CrossSTDiT3Block,
    Modulation,
    STDiT3Block,
    T2IFinalLayer,
)
from javisc.trainer.models.dit.config import VASTDiT3Config
from javisc.trainer.models.dit.embeddings import (
    CaptionEmbedder,
    PatchEmbed2d,
    PatchEmbed3d,
    SizeEmbedder,
    TimestepEmbedder,
    keep_real_tokens,
    position_code_1d,
    video_position_code,
)


@dataclass(frozen=True)
class Conditions:
    """What the captions and the prior say, at the model's width. `text_kv` and `prior_kv` hold every block's keys and
    values where a sampler keeps them over its steps (by the block's list name)."""

    video_text: PackedText | None
    audio_text: PackedText
    spatial_prior: Tensor | None = None
    temporal_prior: Tensor | None = None
    text_kv: dict[str, list[Tensor]] | None = None
    prior_kv: dict[str, list[tuple[Tensor, Tensor]]] | None = None


@dataclass(frozen=True)
class _Times:
    """The timestep's three faces: the embedding, and through the two time blocks; each for the drawn time and for time
    0."""

    t: tuple[Tensor, Tensor | None]
    mlp: tuple[Tensor, Tensor | None]
    prior: tuple[Tensor, Tensor | None] | None

    def of(self, face: str, mask: Tensor | None) -> Modulation:
        t, t0 = getattr(self, face)
        return Modulation(t, t0, mask)


class VASTDiT3(nn.Module):
    """The joint DiT; state-dict names are the official ones. `config.audio_only` leaves only the audio branch's
    blocks."""

    def __init__(self, config: VASTDiT3Config) -> None:
        super().__init__()
        self.config = config
        c, width, heads = config, config.hidden_size, config.num_heads
        self.out_factor = 2 if c.pred_sigma else 1
        self.rope = Rope(width // heads)
        self.x_embedder = PatchEmbed3d(c.patch_size, c.in_channels, width)
        self.t_embedder = TimestepEmbedder(width)
        self.fps_embedder = SizeEmbedder(width)
        self.t_block = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.y_embedder = CaptionEmbedder(c.caption_channels, width, c.class_dropout_prob, c.model_max_length)

        def branch(temporal: bool) -> nn.ModuleList:
            return nn.ModuleList(STDiT3Block(width, heads, c.mlp_ratio, c.qk_norm, temporal) for _ in range(c.depth))

        def final(patch: tuple[int, ...], channels: int) -> T2IFinalLayer:
            volume = int(torch.Size(patch).numel())
            return T2IFinalLayer(width, volume, channels * self.out_factor, c.final_layer_given_frames)

        if not c.audio_only:
            self.spatial_blocks, self.temporal_blocks = branch(False), branch(True)
        self.final_layer = final(c.patch_size, c.in_channels)
        self.ax_embedder = PatchEmbed2d(c.audio_patch_size, c.audio_in_channels, width)
        self.audio_y_embedder = CaptionEmbedder(c.caption_channels, width, c.class_dropout_prob, c.model_max_length)
        self.audio_y_embedder.y_embedding.copy_(self.y_embedder.y_embedding)
        self.audio_spatial_blocks, self.audio_temporal_blocks = branch(False), branch(True)
        self.audio_final_layer = final(c.audio_patch_size, c.audio_in_channels)
        if c.require_onset:
            self.onset_embedder = TimestepEmbedder(width)
        if c.has_prior:
            self.st_t_block = nn.Sequential(nn.SiLU(), nn.Linear(width, 9 * width))
            tokens = c.spatial_prior_len + c.temporal_prior_len
            self.st_prior_embedder = CaptionEmbedder(c.st_prior_channel, width, c.class_dropout_prob, tokens)

            def prior_blocks() -> nn.ModuleList:
                return nn.ModuleList(
                    CrossSTDiT3Block(width, heads, c.mlp_ratio, c.st_prior_utilize, c.prior_attention)
                    for _ in range(c.depth)
                )

            self.video_st_prior_blocks, self.audio_st_prior_blocks = prior_blocks(), prior_blocks()
        if c.has_va:
            self.va_cross_blocks = nn.ModuleList(
                CrossModalityBiAttentionBlock(width, width, width // 2, heads // 2) for _ in range(c.depth)
            )

    def blocks(self) -> Iterator[tuple[nn.ModuleList, int]]:
        """Every (block list, index): what is sharded, compiled and checkpointed one by one."""
        for module in self.children():
            if isinstance(module, nn.ModuleList):
                for index in range(len(module)):
                    yield module, index

    @property
    def dtype(self) -> torch.dtype:
        return self.ax_embedder.proj.weight.dtype

    def conditions(
        self,
        y: Tensor,
        mask: Tensor | None = None,
        spatial_prior: Tensor | None = None,
        temporal_prior: Tensor | None = None,
        *,
        keep: bool = False,
        drops: Mapping[str, Tensor] | None = None,
        lengths: Sequence[int] | None = None,
    ) -> Conditions:
        """Embed captions y [B, 1, L, c] (mask [B or B/k, L], 1 = real, or `lengths` of the same rows) and priors [B, P, c'] once.

        `drops` [B] says which rows read the null embedding: "text" for the video branch, "audio_text", "prior". What it does
        not name is drawn in training, and never dropped else.
        `keep` also projects every block's keys and values, which depend on nothing else: a sampler does it once for all
        steps.
        """
        y, drops = y.to(self.dtype), drops or {}
        video_text = None
        if not self.config.audio_only:
            seen = self.y_embedder(y, drops.get("text")).squeeze(1)
            video_text = PackedText.of(*keep_real_tokens(seen, mask, lengths))
        heard = self.audio_y_embedder(y, drops.get("audio_text")).squeeze(1)
        audio_text = PackedText.of(*keep_real_tokens(heard, mask, lengths))
        spatial = temporal = None
        if self.config.has_prior:
            if spatial_prior is None or temporal_prior is None:
                raise ValueError("this model has prior blocks: spatial_prior and temporal_prior must be given")
            tokens = torch.cat((spatial_prior, temporal_prior), dim=1).to(self.dtype)
            spatial, temporal = self.st_prior_embedder(tokens, drops.get("prior")).split(
                (spatial_prior.shape[1], temporal_prior.shape[1]), dim=1
            )
        made = Conditions(video_text, audio_text, spatial, temporal)
        return self._with_keys_values(made) if keep else made

    def _with_keys_values(self, made: Conditions) -> Conditions:
        text_kv: dict[str, list[Tensor]] = {}
        prior_kv: dict[str, list[tuple[Tensor, Tensor]]] = {}
        for name, module in self.named_children():
            text = made.audio_text if name.startswith("audio_") else made.video_text
            for block in module if isinstance(module, nn.ModuleList) else ():
                if isinstance(block, STDiT3Block) and text is not None:
                    text_kv.setdefault(name, []).append(block.cross_attn.keys_values(text.tokens))
                elif isinstance(block, CrossSTDiT3Block):
                    assert made.spatial_prior is not None and made.temporal_prior is not None
                    if (kept := block.keys_values(made.spatial_prior, made.temporal_prior)) is not None:
                        prior_kv.setdefault(name, []).append(kept)
        return dataclasses.replace(made, text_kv=text_kv, prior_kv=prior_kv)

    def _times(self, timestep: Tensor, fps: Tensor, masked: bool) -> _Times:
        fps_code = self.fps_embedder(fps, len(timestep))
        t = self.t_embedder(timestep) + fps_code
        t0 = self.t_embedder(torch.zeros_like(timestep)) + fps_code if masked else None

        def through(block: nn.Module) -> tuple[Tensor, Tensor | None]:
            return block(t), None if t0 is None else block(t0)

        return _Times((t, t0), through(self.t_block), through(self.st_t_block) if self.config.has_prior else None)

    def _onset(self, onset: Tensor, frames: int) -> Tensor:
        """An onset curve [B, n, 1] as a code per frame [B, frames, C]."""
        resized = F.interpolate(onset.transpose(1, 2), size=frames, mode="linear", align_corners=False)
        return self.onset_embedder(resized.flatten()).view(len(onset), frames, -1)

    def forward(
        self,
        video: Tensor | None,
        audio: Tensor,
        timestep: Tensor,
        y: Tensor | None = None,
        mask: Tensor | None = None,
        *,
        fps: Tensor,
        height: Tensor | float | None = None,
        width: Tensor | float | None = None,
        x_mask: Tensor | None = None,
        ax_mask: Tensor | None = None,
        spatial_prior: Tensor | None = None,
        temporal_prior: Tensor | None = None,
        onset_prior: Tensor | None = None,
        conditions: Conditions | None = None,
        drops: Mapping[str, Tensor] | None = None,
        lengths: Sequence[int] | None = None,
        partial: Mapping[str, bool] | None = None,
    ) -> dict[str, Tensor]:
        """Predict video [B, k*4, T, H, W] and audio [B, k*8, Ra, Ma] in float32 (k = 2 with `pred_sigma`; the first
        half is the velocity).

        `timestep` [B] in [0, 1000], 0 = clean. `x_mask` [B, T] and `ax_mask` [B, Ra]: true = the frame is being
        generated, false = it is given, clean. A mask that is true everywhere costs nothing. `height`, `width` in pixels
        (the first element counts). Either y (with mask, priors and drops) or `conditions` from `conditions()`. An audio-only
        model takes no video and returns none.

        What the host knows it need not read from the device: `lengths` [B] of the captions, and `partial`, whether the masks
        "video" and "audio" give any frame.

        Raises ValueError where an input is missing or does not fit.
        """
        config, dtype = self.config, self.dtype
        if conditions is None:
            if y is None:
                raise ValueError("give y or conditions")
            conditions = self.conditions(y, mask, spatial_prior, temporal_prior, drops=drops, lengths=lengths)
        if (x_mask is not None and ax_mask is None and not config.audio_only) or any(
            size % patch for size, patch in zip(audio.shape[2:], config.audio_patch_size)
        ):
            raise ValueError(
                f"audio latent {tuple(audio.shape)} must divide by the audio patch {config.audio_patch_size}, "
                "and x_mask needs ax_mask"
            )
        known = partial or {}
        ax_mask = _partial(ax_mask, known.get("audio"))
        a_frames = audio.shape[2] // config.audio_patch_size[0]
        a_mask = None if ax_mask is None else ax_mask[:, :: config.audio_patch_size[0]].contiguous()
        v_mask = None if config.audio_only else _partial(x_mask, known.get("video"))
        times = self._times(timestep.to(dtype), fps.to(dtype), a_mask is not None or v_mask is not None)

        a = self.ax_embedder(audio.to(dtype))
        bins = a.shape[1] // a_frames
        code = position_code_1d(bins, config.hidden_size, device=a.device, dtype=dtype)
        a = a + code.repeat(1, a_frames, 1)
        v = None
        v_frames = v_rows = v_columns = 0
        if not config.audio_only:
            if video is None or height is None or width is None:
                raise ValueError("a joint model needs video, height and width")
            v_frames, v_rows, v_columns = (-(-size // patch) for size, patch in zip(video.shape[2:], config.patch_size))
            code = video_position_code(
                v_rows,
                v_columns,
                config.hidden_size,
                _first(height),
                _first(width),
                config.input_sq_size,
                a.device,
                dtype,
            )
            v = self.x_embedder(video.to(dtype)) + code.repeat(1, v_frames, 1)
        if config.require_onset and onset_prior is not None:
            onset = onset_prior.to(dtype)
            a = a + self._onset(onset, a_frames).repeat_interleave(bins, dim=1)
            if v is not None:
                v = v + self._onset(onset, v_frames).repeat_interleave(v_rows * v_columns, dim=1)

        v, a = self._layers(v, a, times, conditions, (v_frames, a_frames), (v_mask, a_mask))
        out = {"audio": self.audio_latent(self.audio_final_layer(a, times.of("t", a_mask)), audio.shape)}
        if v is not None and video is not None:
            out["video"] = self.video_latent(self.final_layer(v, times.of("t", v_mask)), video.shape)
        return out

    def _layers(
        self,
        v: Tensor | None,
        a: Tensor,
        times: _Times,
        conditions: Conditions,
        frames: tuple[int, int],
        masks: tuple[Tensor | None, Tensor | None],
    ) -> tuple[Tensor | None, Tensor]:
        v_mlp, a_mlp = (times.of("mlp", mask) for mask in masks)
        v_turns, a_turns = (self.rope.turns(count) for count in frames)

        def text_kv(name: str, layer: int) -> Tensor | None:
            return None if conditions.text_kv is None else conditions.text_kv[name][layer]

        def prior(name: str, x: Tensor, layer: int, side: int) -> Tensor:
            kept = (conditions.prior_kv or {}).get(name)
            return getattr(self, name)[layer](
                x,
                times.of("prior", masks[side]),
                conditions.spatial_prior,
                conditions.temporal_prior,
                frames[side],
                None if kept is None else kept[layer],
            )

        for layer in range(self.config.depth):
            if v is not None:
                for name in ("spatial_blocks", "temporal_blocks"):
                    block = getattr(self, name)[layer]
                    v = block(v, v_mlp, conditions.video_text, frames[0], v_turns, text_kv(name, layer))
            for name in ("audio_spatial_blocks", "audio_temporal_blocks"):
                block = getattr(self, name)[layer]
                a = block(a, a_mlp, conditions.audio_text, frames[1], a_turns, text_kv(name, layer))
            if v is not None and self.config.has_prior:
                v = prior("video_st_prior_blocks", v, layer, 0)
                a = prior("audio_st_prior_blocks", a, layer, 1)
            if v is not None and self.config.has_va:
                v, a = self.va_cross_blocks[layer](v, a)
        return v, a

    def video_latent(self, tokens: Tensor, shape: torch.Size) -> Tensor:
        """The final layer's tokens [B, N, patch volume * k*4] as a float32 latent [B, k*4, T, H, W], for an input of `shape`."""
        counts = [-(-size // patch) for size, patch in zip(shape[2:], self.config.patch_size)]
        x = tokens.view(len(tokens), *counts, *self.config.patch_size, -1)
        x = x.permute(0, 7, 1, 4, 2, 5, 3, 6).flatten(6, 7).flatten(4, 5).flatten(2, 3)
        return x[:, :, : shape[2], : shape[3], : shape[4]].float()

    def audio_latent(self, tokens: Tensor, shape: torch.Size) -> Tensor:
        """The same for audio: [B, A, patch volume * k*8] → [B, k*8, Ra, Ma]."""
        counts = [size // patch for size, patch in zip(shape[2:], self.config.audio_patch_size)]
        x = tokens.view(len(tokens), *counts, *self.config.audio_patch_size, -1)
        return x.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3).float()


def _first(value: Tensor | float) -> float:
    return float(value.flatten()[0]) if isinstance(value, Tensor) else float(value)


def _partial(mask: Tensor | None, known: bool | None = None) -> Tensor | None:
    """None where the mask is true everywhere (`known`, or read): the masked path then computes the same and costs more. A fake
    mask is partial."""
    if mask is None or known is not None:
        return None if mask is None or not known else mask.bool()
    everywhere = mask.all()
    return None if not is_fake(everywhere) and bool(everywhere) else mask.bool()
