"""What learns in which stage, fresh weights, and where a stage starts from."""

from __future__ import annotations

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
