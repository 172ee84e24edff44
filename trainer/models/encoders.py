"""The frozen networks that turn clips and captions into what a model takes, and back: each loaded when it is first needed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from javisc.manifests.errors import UserError
from javisc.trainer.engine.distributed import PRECISIONS
from javisc.trainer.engine.settings import setting
from javisc.trainer.engine.weights import read_options, read_weights, run_weights
from javisc.trainer.models import tiny
from javisc.trainer.models.frozen import AudioCodec, PriorTextEncoder, TextEncoder, VideoCodec, need_weights
from javisc.trainer.models.prior import STIBPrior
from javisc.trainer.models.prior import model as prior_files
from javisc.trainer.models.text.imagebind import ImageBindText
from javisc.trainer.models.text.t5 import T5
from javisc.trainer.models.text.tokens import ClipTokens, ImageBindEncoder
from javisc.trainer.models.vae.audio import AudioLDM2
from javisc.trainer.models.vae.diffusers_video import DiffusersVideoVAE
from javisc.trainer.models.vae.opensora import OpenSoraVAE

#: What a run leaves beside its weights.
RECIPE = "recipe.json"


@dataclass
class EncodersConfig:
    """Where the frozen networks lie: folders or files on this machine, see `frozen.SOURCES`.

    `imagebind` may be absent if the prior's file holds the text tower. `tiny` takes small random networks wherever no place is
    given. `precision` is theirs alone.
    """

    t5: str = ""
    imagebind: str = ""
    clip_tokenizer: str = ""
    prior: str = ""
    video_vae: str = ""
    audio_vae: str = ""
    vocoder: str = ""
    precision: str = setting("bf16", "What the frozen networks compute in.", choices=tuple(PRECISIONS))
    frames_at_once: int = setting(
        0, "Pictures that OpenSora's autoencoder takes in one call; 0 takes its own number.", least=0
    )
    tiny: bool = setting(False, "Small random networks wherever no place is given.")


def recorded(folder: Path) -> EncodersConfig:
    """The encoders that a run's weights in `folder` were trained with, by its recipe.json; none if there is none."""
    options = read_options(folder / RECIPE).get("encoders", {})
    known = {field.name: type(field.default) for field in fields(EncodersConfig)}
    if not isinstance(options, dict) or any(type(value) is not known.get(name) for name, value in options.items()):
        raise UserError(f"{folder / RECIPE}: its encoders are not those of a recipe; give them as options")
    return EncodersConfig(**options)


class Encoders:
    """The networks of an `EncodersConfig` on one device, frozen.

    T5 gives captions `caption_length` tokens; only to `decode` is the vocoder needed.
    Raises UserError in one line for what is missing, when it is asked for.
    """

    def __init__(
        self, config: EncodersConfig, device: torch.device, caption_length: int = 300, *, decode: bool = False
    ) -> None:
        if config.precision not in PRECISIONS:
            raise UserError(f"encoders.precision={config.precision!r}: it may be {', '.join(PRECISIONS)}")
        self.config, self.device, self.caption_length, self.decode = config, device, caption_length, decode
        self.dtype = PRECISIONS[config.precision]

    def check(self, names: Iterable[str]) -> None:
        """Raise UserError for the first of some networks that is not there, before anything is read."""
        for name in names:
            if not self._tiny(name):
                need_weights(getattr(self.config, name), name)

    def _tiny(self, name: str) -> bool:
        return self.config.tiny and not getattr(self.config, name)

    @cached_property
    def text(self) -> TextEncoder:
        """T5."""
        if self._tiny("t5"):
            encoder = tiny.t5(self.caption_length)
            encoder.model.to(self.device, self.dtype)
            return encoder
        return T5.load(self.config.t5, length=self.caption_length, device=self.device, dtype=self.dtype)

    @cached_property
    def _prior(self) -> tuple[STIBPrior, dict[str, Tensor]]:
        if self._tiny("prior"):
            return tiny.prior().to(self.device, self.dtype).eval().requires_grad_(False), {}
        path = run_weights(need_weights(self.config.prior, "prior"))
        model, tower = prior_files.load(path, encode_va=False, dtype=self.dtype)
        return model.to(self.device).eval().requires_grad_(False), tower

    @property
    def prior(self) -> STIBPrior:
        """The prior as stage 2 left it."""
        return self._prior[0]

    @cached_property
    def prior_text(self) -> PriorTextEncoder:
        """ImageBind's text tower: the prior's file may bring it."""
        tower: dict[str, Tensor] = self._prior[1] if self.config.prior else {}
        if not tower and self._tiny("imagebind"):
            encoder = tiny.imagebind_text()
            encoder.tower.to(self.device, self.dtype)
            return encoder
        where: str | Path = self.config.prior
        if not tower:
            where = need_weights(self.config.imagebind, "imagebind")
            tower = read_weights(where)
        text = ImageBindText.load(tower, str(where)).to(self.device, self.dtype)
        positions = text.modality_preprocessors["text"].get_parameter("pos_embed").shape[1]
        return ImageBindEncoder(text, ClipTokens.load(self.config.clip_tokenizer, length=positions))

    @cached_property
    def video(self) -> VideoCodec:
        """OpenSora's autoencoder, or a diffusers one where the folder's config.json names its class."""
        if self._tiny("video_vae"):
            return tiny.video_vae().to(self.device, self.dtype)
        folder = need_weights(self.config.video_vae, "video_vae")
        if folder.is_dir() and "_class_name" in read_options(folder / "config.json"):
            return DiffusersVideoVAE.load(folder, device=self.device, dtype=self.dtype)
        vae = OpenSoraVAE.load(folder, device=self.device, dtype=self.dtype)
        vae.frames_at_once = self.config.frames_at_once or vae.frames_at_once
        return vae

    @cached_property
    def audio(self) -> AudioCodec:
        """AudioLDM2's autoencoder; with `decode` its vocoder too."""
        if self._tiny("audio_vae"):
            codec = tiny.audio_vae()
            nn.Module.to(codec.vae, self.device, self.dtype)  # diffusers' own `to` warns of every precision
            nn.Module.to(codec.vocoder, self.device, self.dtype)
            return codec
        paths = self.config.audio_vae, self.config.vocoder
        return AudioLDM2.load(*paths, decode=self.decode, device=self.device, dtype=self.dtype)
