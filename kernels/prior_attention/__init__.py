"""Many queries over the few distinct prior tokens, of the whole batch or of the own sample."""

from javisc.kernels.prior_attention.op import prior_attention

__all__ = ["prior_attention"]
