"""A few queries over many keys, in time and memory linear in the keys."""

from javisc.kernels.selector_attention.op import selector_attention

__all__ = ["selector_attention"]
