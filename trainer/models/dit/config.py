"""The model's options, and their Hugging Face style `config.json`."""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from javisc.manifests.errors import UserError
from javisc.manifests.files import published
from javisc.trainer.engine.settings import coerced, setting
from javisc.trainer.engine.weights import read_options

#: Keys of the reference's config.json that decide how it computes, or who made it, not what.
_IGNORED = frozenset(
    (
        "model_type", "architectures", "torch_dtype", "dtype", "transformers_version", "_name_or_path",
        "auto_map", "drop_path", "force_huggingface", "from_pretrained", "weight_init_from",
    )
)  # fmt: skip


@dataclass(frozen=True)
class VASTDiT3Config:
    """Options of `VASTDiT3`, under the reference's names. Defaults are XL/2.

    `prior_attention`: "batch" lets every query see the prior tokens of all rows, as the official weights were trained;
    "sample" only its own row's. `final_layer_given_frames`: "twice" modulates given (clean) frames a second time as the
    reference does; "once" does not; generated frames are the same either way.
    """

    hidden_size: int = setting(1152, "Width.", least=1, most=65536)
    depth: int = setting(28, "Blocks of a branch.", least=1, most=1000)
    num_heads: int = setting(16, "Heads.", least=2, most=4096)
    mlp_ratio: float = setting(4.0, "Width of the MLPs over the width.", above=0, most=64)
    caption_channels: int = setting(4096, "Width of the text states.", least=1, most=65536)
    model_max_length: int = setting(300, "Text tokens.", least=1, most=65536)
    in_channels: int = setting(4, "Of the video latent.", least=1, most=65536)
    audio_in_channels: int = setting(8, "Of the audio latent.", least=1, most=65536)
    patch_size: tuple[int, int, int] = setting((1, 2, 2), "Time, height, width.", least=1, most=256)
    audio_patch_size: tuple[int, int] = setting((4, 1), "Time, frequency.", least=1, most=256)
    input_sq_size: int = setting(512, "Side of the pictures that positions are scaled to.", least=1, most=65536)
    qk_norm: bool = True
    pred_sigma: bool = True
    class_dropout_prob: float = setting(0.1, "Probability of a dropped caption.", least=0, most=1)
    spatial_prior_len: int = setting(32, "Tokens.", least=1, most=65536)
    temporal_prior_len: int = setting(32, "Tokens.", least=1, most=65536)
    st_prior_channel: int = setting(128, "Width of the prior's tokens.", least=1, most=65536)
    st_prior_utilize: str = "cross_attn"
    require_onset: bool = False
    only_train_audio: bool = False
    only_infer_audio: bool = False
    train_st_prior_attn: bool = True
    train_va_cross_attn: bool = True
    freeze_y_embedder: bool = False
    freeze_video_branch: bool = False
    freeze_audio_branch: bool = False
    prior_attention: Literal["batch", "sample"] = "batch"
    final_layer_given_frames: str = "twice"

    def __post_init__(self) -> None:
        object.__setattr__(self, "patch_size", tuple(self.patch_size))
        object.__setattr__(self, "audio_patch_size", tuple(self.audio_patch_size))
        for name, allowed in (
            ("st_prior_utilize", ("cross_attn", "modulate", "addition")),
            ("prior_attention", ("batch", "sample")),
            ("final_layer_given_frames", ("twice", "once")),
        ):
            if getattr(self, name) not in allowed:
                raise UserError(f"{name} is {getattr(self, name)!r}; allowed are {', '.join(allowed)}")
        if self.hidden_size % self.num_heads or (self.hidden_size // self.num_heads) % 2 or self.num_heads % 2:
            raise UserError(
                f"hidden_size {self.hidden_size} and num_heads {self.num_heads} do not fit; "
                "num_heads must be even and divide hidden_size into even head widths"
            )
        if self.hidden_size % 4:
            raise UserError(f"hidden_size is {self.hidden_size}; the position codes need a multiple of 4")
        if len(self.patch_size) != 3 or len(self.audio_patch_size) != 2:
            raise UserError("patch_size needs 3 numbers (time, height, width) and audio_patch_size 2 (time, frequency)")

    @property
    def audio_only(self) -> bool:
        """True for the stage-1 layout: no video, prior or video-audio blocks."""
        return self.only_train_audio or self.only_infer_audio

    @property
    def has_prior(self) -> bool:
        return self.train_st_prior_attn and not self.audio_only

    @property
    def has_va(self) -> bool:
        return self.train_va_cross_attn and not self.audio_only

    @classmethod
    def from_options(cls, options: Mapping[str, Any], *, where: str = "config") -> VASTDiT3Config:
        """Build from the reference's option names. Options that only choose its kernels are dropped; an unknown one is
        an error."""
        known = {field.name for field in dataclasses.fields(cls)}
        chosen = {}
        for name, value in options.items():
            if name in known:
                chosen[name] = value
            elif name not in _IGNORED and not name.startswith("enable_"):
                if name in ("skip_y_embedder", "only_train_temporal"):
                    if value:
                        raise UserError(f"{where}: {name} is set; this model does not have it: unset it")
                    continue
                nearest = difflib.get_close_matches(name, known, 1)
                raise UserError(
                    f"{where}: unknown option {name!r}" + (f"; did you mean {nearest[0]!r}?" if nearest else "")
                )
        return cls(**coerced(cls, chosen, where))

    @classmethod
    def load(cls, path: Path) -> VASTDiT3Config:
        """Read a `config.json`."""
        if not path.is_file():
            raise UserError(f"{path} is not there; a model folder needs its config.json beside the weights")
        options = read_options(path)
        if options.get("model_type", "VASTDiT3") != "VASTDiT3":
            raise UserError(f'{path} is not the config of a VASTDiT3; its "model_type" must be "VASTDiT3"')
        return cls.from_options(options, where=str(path))

    def save(self, path: Path) -> None:
        """Write a `config.json` that the reference reads too (it ignores the two names it does not know)."""
        with published(path) as temporary:
            text = json.dumps(
                {"model_type": "VASTDiT3", "architectures": ["VASTDiT3"]} | dataclasses.asdict(self), indent=2
            )
            temporary.write_text(text + "\n", encoding="utf-8")


_STAGE1 = {
    "only_train_audio": True,
    "freeze_video_branch": True,
    "train_st_prior_attn": False,
    "train_va_cross_attn": False,
}
_STAGE3: dict[str, Any] = {"freeze_y_embedder": True, "freeze_video_branch": True, "freeze_audio_branch": True}
_XL: dict[str, Any] = {"depth": 28, "hidden_size": 1152, "num_heads": 16}
_3B: dict[str, Any] = {"depth": 28, "hidden_size": 1872, "num_heads": 26}
_TINY: dict[str, Any] = {
    "depth": 2,
    "hidden_size": 64,
    "num_heads": 4,
    "caption_channels": 32,
    "model_max_length": 24,
    "spatial_prior_len": 8,
    "temporal_prior_len": 8,
    "st_prior_channel": 32,
}

#: name → config. "-audio" is stage 1's layout and freezing, the plain name stage 3's.
PRESETS: dict[str, VASTDiT3Config] = {
    name + suffix: VASTDiT3Config(**size, **stage)
    for name, size in (("VASTDiT3-XL/2", _XL), ("VASTDiT3-3B/2", _3B), ("VASTDiT3-tiny", _TINY))
    for suffix, stage in (("", _STAGE3), ("-audio", _STAGE1))
}
