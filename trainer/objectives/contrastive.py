"""The prior's losses.

Every term is the mean over rows of what a row gives alone: negatives are the row's own, never its neighbours. So the loss of a
step is the mean over its samples, on however many processes they lie, and nothing is gathered between processes.

Letters: B rows, X embeddings per row (index 0 the positive pair, then one per negative), n tokens, C width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from javisc.manifests.errors import UserError
from javisc.trainer.engine.settings import setting
from javisc.trainer.models.prior.model import PriorTokens, STIBPrior


def hinge(logits: Tensor) -> Tensor:
    """½ (mean relu(1 − positive) + mean relu(1 + negatives)); logits [rows, 1 + negatives], the positive first."""
    return 0.5 * (F.relu(1 - logits[:, :1]).mean() + F.relu(1 + logits[:, 1:]).mean())


def info_nce(logits: Tensor, temperature: float = 0.5) -> Tensor:
    """Cross-entropy of the positive among all, at a temperature."""
    return F.cross_entropy(logits / temperature, torch.zeros(len(logits), dtype=torch.long, device=logits.device))


def soft_margin(logits: Tensor) -> Tensor:
    """log(1 + exp(−y x)) with y = 1 for the positive and −1 for the negatives."""
    signs = torch.full_like(logits, -1.0)
    signs[:, 0] = 1.0
    return F.soft_margin_loss(logits, signs)


def margin(logits: Tensor, gap: float = 0.3) -> Tensor:
    """mean relu(gap − (positive − negative))."""
    return F.relu(gap - (logits[:, :1] - logits[:, 1:])).mean()


CONTRASTS: dict[str, Callable[[Tensor], Tensor]] = {
    "hinge": hinge,
    "info_nce": info_nce,
    "soft_margin": soft_margin,
    "margin": margin,
}


@dataclass
class PriorLossConfig:
    """The terms' weights, and how prior tokens are held against embeddings (one of CONTRASTS). Defaults are the official ones."""

    token: float = setting(1.0, "Weight of the term of the prior's tokens.", least=0)
    disc: float = setting(1.0, "Weight of the term of the judge.", least=0)
    mse: float = setting(1.0, "Weight of the term of the distance.", least=0)
    va: float = setting(1.0, "Weight of the term of the embeddings.", least=0)
    kl: float = setting(1e-6, "Weight of the term of the distribution.", least=0)
    onset: float = setting(1.0, "Weight of the term of onsets.", least=0)
    contrast: str = setting("hinge", "How tokens are held against embeddings.", choices=tuple(CONTRASTS))

    def __post_init__(self) -> None:
        if self.contrast not in CONTRASTS:
            raise UserError(f"objective.contrast={self.contrast!r}: it may be {', '.join(CONTRASTS)}")


def contrastive_terms(
    model: STIBPrior, embeddings: Tensor, prior: Tensor, aspect: str, config: PriorLossConfig | None = None
) -> dict[str, Tensor]:
    """The four terms of one aspect and their weighted sum: embeddings [B, X, n, C], prior [B, n, C].

    token: the contrast (hinge) of cosines; disc: the judge on prior and embedding together; mse: the prior to the positive;
    va: every negative embedding away from the positive one. Gradients flow into both sides of all four.
    """
    config = config or PriorLossConfig()
    others = embeddings.shape[1]
    cosine = F.cosine_similarity(embeddings, prior[:, None], dim=-1)
    token = CONTRASTS[config.contrast](cosine.transpose(1, 2).flatten(0, 1))
    pairs = torch.cat((prior[:, None].expand(-1, others, -1, -1), embeddings), dim=2)
    logits = model.discriminator(pairs.flatten(0, 1)).view(-1, others)
    labels = torch.zeros_like(logits)
    labels[:, 0] = 1.0
    disc = F.binary_cross_entropy_with_logits(logits, labels)
    mse = F.mse_loss(prior, embeddings[:, 0])
    away = F.relu(1 + F.cosine_similarity(embeddings[:, :1], embeddings[:, 1:], dim=-1)).mean()
    total = config.token * token + config.disc * disc + config.mse * mse + config.va * away
    terms = {"token": token, "disc": disc, "mse": mse, "va": away, "total": total}
    return {f"{aspect}_{name}_loss": value for name, value in terms.items()}


def onset_loss(model: STIBPrior, temporal_prior: Tensor, onset: Tensor) -> Tensor:
    """Cross-entropy of predicted onsets: labels [B, frames], max-pooled to the token count from 64 frames up, else
    interpolated."""
    tokens = temporal_prior.shape[1]
    if onset.shape[1] >= 2 * model.config.temporal_token_num:
        labels = F.adaptive_max_pool1d(onset[:, None], tokens)[:, 0]
    else:
        labels = F.interpolate(onset[:, None], size=tokens, mode="linear", align_corners=False)[:, 0]
    return F.binary_cross_entropy_with_logits(model.onset_predictor(temporal_prior).squeeze(-1), labels)


@dataclass(frozen=True)
class Negatives:
    """Latents of one aspect's negatives: `video` [B, x, 4, T, H, W], `audio` [B, x, 8, Ra, Ma]."""

    video: Tensor
    audio: Tensor


def prior_loss(
    model: STIBPrior,
    prior: PriorTokens,
    video: Tensor,
    audio: Tensor,
    negatives: dict[str, Negatives],
    height: Tensor | float,
    width: Tensor | float,
    onset: Tensor | None = None,
    config: PriorLossConfig | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of stage 2 and its named terms (`kl_loss` with its weight, as the reference logs it), for latents video
    [B, 4, T, H, W], audio [B, 8, Ra, Ma].

    `negatives["spatial"]` and `["temporal"]` are used for their own aspect only: the positive pair, then (video,
    negative audio) for each negative audio, then (negative video, audio) for each negative video.
    """
    config = config or PriorLossConfig()
    terms: dict[str, Tensor] = {}
    for aspect, tokens in (("spatial", prior.spatial), ("temporal", prior.temporal)):
        embeddings = _embed(model, _pairs(video, audio, negatives[aspect]), aspect, height, width)
        terms |= contrastive_terms(model, embeddings, tokens, aspect, config)
    loss = terms["spatial_total_loss"] + terms["temporal_total_loss"]
    if prior.mean is not None:
        terms["kl_loss"] = config.kl * prior.kl().mean()
        loss = loss + terms["kl_loss"]
    if onset is not None and model.config.pred_onset:
        terms["onset_loss"] = onset_loss(model, prior.temporal, onset)
        loss = loss + config.onset * terms["onset_loss"]
    return loss, terms


def similarities(
    model: STIBPrior,
    prior: PriorTokens,
    video: Tensor,
    audio: Tensor,
    negatives: dict[str, Negatives],
    height: Tensor | float,
    width: Tensor | float,
) -> dict[str, Tensor]:
    """By aspect [B, 1 + negatives]: the mean cosine of a row's prior tokens with the embedding of its own pair, and of each wrong
    one. Arguments as for `prior_loss`."""
    found = {}
    for aspect, tokens in (("spatial", prior.spatial), ("temporal", prior.temporal)):
        embeddings = _embed(model, _pairs(video, audio, negatives[aspect]), aspect, height, width)
        found[aspect] = F.cosine_similarity(embeddings, tokens[:, None], dim=-1).mean(-1)
    return found


def _pairs(video: Tensor, audio: Tensor, wrong: Negatives) -> list[tuple[Tensor, Tensor]]:
    """The positive pair, then every wrong sound with the video, then every wrong video with the sound."""
    heard = [(video, wrong.audio[:, i]) for i in range(wrong.audio.shape[1])]
    return [(video, audio), *heard, *((wrong.video[:, i], audio) for i in range(wrong.video.shape[1]))]


def _embed(
    model: STIBPrior, pairs: Sequence[tuple[Tensor, Tensor]], aspect: str, height: Tensor | float, width: Tensor | float
) -> Tensor:
    """[B, X, n, C]: all pairs in one pass of the encoder."""
    video, audio = (torch.cat(side) for side in zip(*pairs))
    aligned = model.align(*model.embed_va(video, audio, height, width))
    if aspect == "spatial":
        merged = model.merge_spatial(aligned.video_spatial, aligned.audio_spatial)
    else:
        merged = model.merge_temporal(aligned.video_temporal, aligned.audio_temporal)
    return merged.view(len(pairs), -1, *merged.shape[1:]).transpose(0, 1)
