"""The joint audio-video diffusion transformer VASTDiT3."""

from javisc.trainer.models.dit.config import PRESETS, VASTDiT3Config
from javisc.trainer.models.dit.model import VASTDiT3

__all__ = ["PRESETS", "VASTDiT3", "VASTDiT3Config"]
