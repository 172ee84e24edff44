"""The prior's options, under the reference's names."""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from javisc.manifests.errors import UserError
from javisc.manifests.files import published
from javisc.trainer.engine.settings import coerced, setting
from javisc.trainer.engine.weights import read_options


@dataclass(frozen=True)
class PriorConfig:
    """Defaults are the official size. `encode_va` adds the video-audio encoder and discriminator, which only training needs."""

    text_emb_dim: int = setting(1024, "Width of the text states.", least=1, most=65536)
    spatial_token_num: int = setting(32, "Tokens.", least=1, most=65536)
    temporal_token_num: int = setting(32, "Tokens.", least=1, most=65536)
    hidden_size: int = setting(512, "Width.", least=1, most=65536)
    out_dim: int = setting(128, "Width of the tokens.", least=1, most=65536)
    nhead: int = setting(4, "Heads.", least=1, most=4096)
    num_encoder_layers: int = setting(4, "Layers.", least=0, most=1000)
    num_decoder_layers: int = setting(4, "Layers.", least=0, most=1000)
    feedforward_scale: int = setting(4, "Width of the MLPs over the width.", least=1, most=64)
    apply_sampling: bool = True
    pred_onset: bool = False
    encode_va: bool = False
    video_in_channel: int = setting(4, "Of the video latent.", least=1, most=65536)
    video_patch_size: tuple[int, int, int] = setting((1, 2, 2), "Time, height, width.", least=1, most=256)
    video_input_sq_size: int = setting(512, "Side of the pictures that positions are scaled to.", least=1, most=65536)
    audio_in_channel: int = setting(8, "Of the audio latent.", least=1, most=65536)
    audio_patch_size: tuple[int, int] = setting((2, 2), "Time, frequency.", least=1, most=256)
    va_num_heads: int = setting(4, "Heads of the judge.", least=1, most=4096)
    va_mlp_ratio: float = setting(4.0, "Width of the judge's MLPs over the width.", above=0, most=64)
    qk_norm: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "video_patch_size", tuple(self.video_patch_size))
        object.__setattr__(self, "audio_patch_size", tuple(self.audio_patch_size))
        for width, heads, name in (
            (self.hidden_size, self.nhead, "nhead"),
            (self.out_dim, self.va_num_heads, "va_num_heads"),
        ):
            if width % heads:
                raise UserError(f"{name} is {heads}; it must divide the width {width}")

    @classmethod
    def from_options(cls, options: Mapping[str, Any], *, where: str = "config") -> PriorConfig:
        """Build from the reference's option names; an unknown one is an error that names the nearest."""
        known = {field.name for field in dataclasses.fields(cls)}
        for name in options:
            if name not in known:
                nearest = difflib.get_close_matches(name, known, 1)
                raise UserError(
                    f"{where}: unknown option {name!r}" + (f"; did you mean {nearest[0]!r}?" if nearest else "")
                )
        return cls(**coerced(cls, options, where))

    @classmethod
    def load(cls, path: Path) -> PriorConfig:
        """Read `config.json`; an absent file means the official size (the published prior has none)."""
        options = read_options(path)
        return cls.from_options({k: v for k, v in options.items() if k != "model_type"}, where=str(path))

    def save(self, path: Path) -> None:
        with published(path) as temporary:
            text = json.dumps({"model_type": "STIBPrior"} | dataclasses.asdict(self), indent=2)
            temporary.write_text(text + "\n", encoding="utf-8")


OFFICIAL = PriorConfig()
TINY = PriorConfig(
    text_emb_dim=32,
    spatial_token_num=8,
    temporal_token_num=8,
    hidden_size=32,
    out_dim=32,
    num_encoder_layers=1,
    num_decoder_layers=1,
)
