"""STIBPrior: the hidden states of a caption → spatial and temporal prior tokens.

Letters: B rows, L text positions, n tokens (spatial first, then temporal), C the tokens' width.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from javisc.trainer.engine.weights import load_strictly, read_weights, write_weights
from javisc.trainer.models.dit.embeddings import PatchEmbed3d, position_code_1d, video_position_code
from javisc.trainer.models.prior.config import PriorConfig
from javisc.trainer.models.prior.encoder import Aligned, Discriminator, MergingBlock, resize_axis

TRAINING_ONLY = ("video_embedder.", "audio_embedder.", "va_spatial_encoder.", "va_temporal_encoder.", "discriminator.")


@dataclass(frozen=True)
class PriorTokens:
    """A drawn prior: `spatial` [B, ns, C], `temporal` [B, nt, C]; the Gaussian it was drawn from (`mean`, `logvar` [B, n, C]),
    absent without sampling; `onset` [B, nt, 1] in 0 to 1 where the model predicts them."""

    spatial: Tensor
    temporal: Tensor
    mean: Tensor | None = None
    logvar: Tensor | None = None
    onset: Tensor | None = None

    def kl(self) -> Tensor:
        """[B]: divergence from the standard normal, summed over tokens and channels."""
        if self.mean is None or self.logvar is None:
            raise ValueError("a prior without sampling has no divergence")
        return 0.5 * (self.mean.pow(2) + self.logvar.exp() - 1 - self.logvar).sum((1, 2))


def _transformer(c: PriorConfig) -> nn.Transformer:
    """The pre-norm encoder and decoder. Layers are made one by one: torch would copy one, which fake tensors forbid.

    The official weights were trained with ReLU in the decoder: copying a torch decoder layer loses an activation that is a
    module and falls back to ReLU, while an encoder layer keeps it.
    """
    options: dict[str, Any] = {
        "d_model": c.hidden_size,
        "nhead": c.nhead,
        "dim_feedforward": c.hidden_size * c.feedforward_scale,
        "dropout": 0.0,
        "batch_first": True,
        "norm_first": True,
    }
    gelu = partial(F.gelu, approximate="tanh")
    encoders = [nn.TransformerEncoderLayer(**options, activation=gelu) for _ in range(c.num_encoder_layers)]
    decoders = [nn.TransformerDecoderLayer(**options, activation=F.relu) for _ in range(c.num_decoder_layers)]
    encoder = nn.TransformerEncoder(encoders[0], 0, nn.LayerNorm(c.hidden_size), enable_nested_tensor=False)
    decoder = nn.TransformerDecoder(decoders[0], 0, nn.LayerNorm(c.hidden_size))
    encoder.layers, encoder.num_layers = nn.ModuleList(encoders), len(encoders)
    decoder.layers, decoder.num_layers = nn.ModuleList(decoders), len(decoders)
    return nn.Transformer(c.hidden_size, c.nhead, custom_encoder=encoder, custom_decoder=decoder, batch_first=True)


class STIBPrior(nn.Module):
    """The prior; state-dict names are the official ones, without the text tower (a frozen encoder of its own).

    nn.Transformer's own inference path is never taken: it computes the exact GELU where this model has the tanh form.
    """

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        self.config = c = config
        self.spatial_query_emb = nn.Parameter(torch.randn(1, c.spatial_token_num, c.hidden_size) / c.hidden_size**0.5)
        self.temporal_query_emb = nn.Parameter(torch.randn(1, c.temporal_token_num, c.hidden_size) / c.hidden_size**0.5)
        self.in_proj = nn.Linear(c.text_emb_dim, c.hidden_size)
        self.prior_extractor = _transformer(c)
        self.out_proj = nn.Linear(c.hidden_size, c.out_dim * (2 if c.apply_sampling else 1))
        if c.pred_onset:
            self.onset_predictor = nn.Linear(c.out_dim, 1)
        if c.encode_va:
            self.video_embedder = PatchEmbed3d(c.video_patch_size, c.video_in_channel, c.out_dim)
            self.audio_embedder = nn.Conv2d(
                c.audio_in_channel, c.out_dim, kernel_size=c.audio_patch_size, stride=c.audio_patch_size
            )
            self.va_spatial_encoder = MergingBlock(c.out_dim, c.va_num_heads, c.va_mlp_ratio)
            self.va_temporal_encoder = MergingBlock(c.out_dim, c.va_num_heads, c.va_mlp_ratio)
            self.discriminator = Discriminator(c.out_dim, c.va_num_heads, c.qk_norm)

    def forward(
        self, text_hidden: Tensor, noise: Tensor | None = None, generator: torch.Generator | None = None
    ) -> PriorTokens:
        """Draw the prior of captions: text_hidden [B, L, text_emb_dim] is the text tower's trunk output.

        `noise` [B, n, C] is the draw's ε; without it, ε comes from `generator` in float32 on the generator's device (the
        reference draws it on the CPU) and is cast. Training and inference both draw.
        """
        c = self.config
        dtype = self.in_proj.weight.dtype
        source = self.in_proj(text_hidden.to(dtype))
        queries = torch.cat((self.spatial_query_emb, self.temporal_query_emb), dim=1).expand(len(source), -1, -1)
        out = self.out_proj(self.prior_extractor(source, queries))
        mean = logvar = None
        if c.apply_sampling:
            mean, logvar = out.chunk(2, dim=-1)
            logvar = logvar.clamp(-30, 20)
            if noise is None:
                device = generator.device if generator is not None else out.device
                noise = torch.randn(mean.shape, generator=generator, device=device, dtype=torch.float32)
            out = mean + torch.exp(0.5 * logvar) * noise.to(out)
        spatial, temporal = out[:, : c.spatial_token_num], out[:, c.spatial_token_num :]
        onset = self.onset_predictor(temporal).sigmoid() if c.pred_onset else None
        return PriorTokens(spatial, temporal, mean, logvar, onset)

    def embed_va(
        self, video: Tensor, audio: Tensor, height: Tensor | float, width: Tensor | float
    ) -> tuple[Tensor, Tensor]:
        """Latents [B, 4, T, H, W], [B, 8, Ra, Ma] → tokens [B, T, S, C], [B, R, M, C]; height, width in pixels (first element).

        Raises ValueError where the audio latent does not divide by the patch.
        """
        c, dtype = self.config, self.in_proj.weight.dtype
        if any(size % patch for size, patch in zip(audio.shape[2:], c.audio_patch_size)):
            raise ValueError(
                f"audio latent {tuple(audio.shape)} must divide by the prior's audio patch {c.audio_patch_size}"
            )
        frames, rows, columns = (-(-size // patch) for size, patch in zip(video.shape[2:], c.video_patch_size))
        pixels = [float(x.flatten()[0]) if isinstance(x, Tensor) else float(x) for x in (height, width)]
        code = video_position_code(
            rows, columns, c.out_dim, pixels[0], pixels[1], c.video_input_sq_size, video.device, dtype
        )
        vx = self.video_embedder(video.to(dtype)).view(len(video), frames, rows * columns, -1) + code
        ax = self.audio_embedder(audio.to(dtype)).permute(0, 2, 3, 1)
        return vx, ax + position_code_1d(ax.shape[2], c.out_dim, device=ax.device, dtype=dtype)

    def align(self, vx: Tensor, ax: Tensor) -> Aligned:
        """Resize the patch axis to the spatial token count, and the time axis to the temporal one."""
        ns, nt = self.config.spatial_token_num, self.config.temporal_token_num
        return Aligned(resize_axis(vx, 2, ns), resize_axis(ax, 2, ns), resize_axis(vx, 1, nt), resize_axis(ax, 1, nt))

    def merge_spatial(self, video: Tensor, audio: Tensor) -> Tensor:
        """`Aligned`'s spatial pair [B, T, n, C], [B, R, n, C] → [B, n, C]."""
        grouped = (x.transpose(1, 2).flatten(0, 1) for x in (video, audio))
        return self.va_spatial_encoder(*grouped).view(len(video), -1, self.config.out_dim)

    def merge_temporal(self, video: Tensor, audio: Tensor) -> Tensor:
        """`Aligned`'s temporal pair [B, n, S, C], [B, n, M, C] → [B, n, C]."""
        grouped = (x.flatten(0, 1) for x in (video, audio))
        return self.va_temporal_encoder(*grouped).view(len(video), -1, self.config.out_dim)


def load(
    path: Path, *, encode_va: bool | None = None, dtype: torch.dtype = torch.float32
) -> tuple[STIBPrior, dict[str, Tensor]]:
    """Load a prior folder or file strictly; returns the model and the text tower's tensors if the file held them.

    `encode_va=False` leaves the training-only part away (stage 3 and inference); None keeps what the file has.
    """
    tensors = read_weights(path)
    tower = {
        name.removeprefix("text_encoder."): value for name, value in tensors.items() if name.startswith("text_encoder.")
    }
    tensors = {name: value for name, value in tensors.items() if not name.startswith("text_encoder.")}
    held = any(name.startswith(TRAINING_ONLY) for name in tensors)
    encode_va = held if encode_va is None else encode_va
    if not encode_va:
        tensors = {name: value for name, value in tensors.items() if not name.startswith(TRAINING_ONLY)}
    options = vars(PriorConfig.load(path / "config.json") if path.is_dir() else PriorConfig())
    config = PriorConfig(**options | {"encode_va": encode_va, "pred_onset": "onset_predictor.weight" in tensors})
    model = STIBPrior(config).to(dtype)
    load_strictly(model, tensors, str(path))
    return model, tower


def save(model: STIBPrior, folder: Path, state: dict[str, Tensor] | None = None) -> None:
    """Write the folder `load` reads."""
    write_weights(folder, model.state_dict() if state is None else state)
    model.config.save(folder / "config.json")
