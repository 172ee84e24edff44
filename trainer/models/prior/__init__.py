"""STIBPrior: captions to spatial and temporal prior tokens."""

from javisc.trainer.models.prior.config import PriorConfig
from javisc.trainer.models.prior.model import STIBPrior

__all__ = ["PriorConfig", "STIBPrior"]
