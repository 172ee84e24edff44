"""What learns in which stage, fresh weights, and where a stage starts from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from javisc.manifests.errors import UserError
from javisc.trainer.models.dit.checkpoint import fit_caption_length
from javisc.trainer.models.dit.model import VASTDiT3

_NEW_WITH_JAVISDIT = (
    "y_embedder",
    "audio_y_embedder",
    "st_t_block",
    "st_prior_embedder",
    "video_st_prior_blocks",
    "audio_st_prior_blocks",
    "va_cross_blocks",
)
_VIDEO = ("x_embedder", "spatial_blocks", "temporal_blocks", "final_layer")
_AUDIO = ("ax_embedder", "audio_spatial_blocks", "audio_temporal_blocks", "audio_final_layer")


def freeze(model: VASTDiT3) -> None:
    """Set `requires_grad` of every parameter as the config's freeze_* options say (the reference's rules, in its
    order).

    With a branch frozen, everything is frozen first and parts are released; the time modules are never released then.
    """
    config = model.config

    def set_all(names: tuple[str, ...], value: bool) -> None:
        for name in names:
            module = getattr(model, name, None)
            if module is not None:
                module.requires_grad_(value)

    model.requires_grad_(True)
    model.rope.requires_grad_(False)
    if config.freeze_video_branch or config.freeze_audio_branch:
        model.requires_grad_(False)
        set_all(_NEW_WITH_JAVISDIT, True)
        set_all(_VIDEO, not config.freeze_video_branch)
        set_all(_AUDIO, not config.freeze_audio_branch)
    if config.freeze_y_embedder:
        set_all(("y_embedder", "audio_y_embedder"), False)
    if config.audio_only:
        set_all(("y_embedder", "final_layer"), False)


def initialise(model: VASTDiT3) -> None:
    """Fresh weights as the reference draws them, from torch's generator.

    What OpenSora's STDiT3 has: Xavier linears with zero biases, the fps embedder's second layer 0, the outputs of
    temporal blocks 0. What came later (audio, prior) keeps the framework's draws, but the outputs of audio temporal and
    of prior blocks have weight 0; their biases are not 0, so a fresh prior block is not exactly an identity.
    Video-audio blocks are one.
    """
    for name in ("t_embedder", "fps_embedder", "t_block", "y_embedder", *_VIDEO):
        for module in _linears(getattr(model, name, None)):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    fps = _linears(model.fps_embedder)
    nn.init.normal_(fps[0].weight, std=0.02)
    nn.init.zeros_(fps[1].weight)
    for name in ("temporal_blocks", "audio_temporal_blocks", "video_st_prior_blocks", "audio_st_prior_blocks"):
        for path, module in getattr(model, name, nn.Module()).named_modules():
            if isinstance(module, nn.Linear) and path.endswith((".proj", "mlp.fc2")):
                nn.init.zeros_(module.weight)
    for module in _linears(getattr(model, "va_cross_blocks", None)):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)


def _linears(module: nn.Module | None) -> list[nn.Linear]:
    return [] if module is None else [m for m in module.modules() if isinstance(m, nn.Linear)]


def audio_from_video(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """OpenSora's STDiT3 tensors, and the audio branch's as copies of its video blocks and caption embedder."""
    copied = {
        f"audio_{name}": value
        for name, value in tensors.items()
        if name.startswith(("spatial_blocks.", "temporal_blocks.", "y_embedder."))
    }
    return dict(tensors) | copied


@dataclass(frozen=True)
class Start:
    """What a stage started from: tensors taken, names that stayed fresh, names in the sources that the model has not."""

    taken: int
    fresh: list[str]
    unused: list[str]


@torch.no_grad()
def start_from(model: VASTDiT3, *sources: Mapping[str, Tensor], fresh: bool = False) -> Start:
    """Copy what the sources hold into `model`; a later source overrides an earlier one.

    Stage 1: `audio_from_video(OpenSora)`. Stage 3: the audio stage's weights, then OpenSora's. Only modules that no source can
    hold may stay fresh: the audio input and output in stage 1, the prior and video-audio parts in stage 3; with `fresh` all
    that the sources lack. Raises UserError where anything else is missing or a shape differs.
    """
    own = model.state_dict()
    found: dict[str, Tensor] = {}
    unused: list[str] = []
    for source in sources:
        fitted = fit_caption_length(dict(source), model.config.model_max_length)
        for name, value in fitted.items():
            if name not in own:
                unused.append(name)
            elif own[name].shape != value.shape:
                raise UserError(
                    f"{name} has the shape {list(value.shape)}, the model {list(own[name].shape)}; start from weights of its size"
                )
            else:
                found[name] = value
    may_be_fresh: tuple[str, ...] = ("st_", "video_st_", "audio_st_", "va_cross_blocks.", "onset_embedder.")
    if model.config.audio_only:
        may_be_fresh += ("ax_embedder.", "audio_final_layer.")
    kept = [name for name in own if name not in found]
    if not fresh and (lost := [name for name in kept if not name.startswith(may_be_fresh)]):
        raise UserError(
            f"{len(lost)} tensors are in none of the sources, the first {lost[0]!r}; give the stage's start weights"
        )
    for name, value in found.items():
        own[name].copy_(value)
    return Start(len(found), kept, unused)
