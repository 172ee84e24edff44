"""A few queries over many keys, in time and memory linear in the keys; with projected keys, or with the projections absorbed."""

from javisc.kernels.selector_attention.absorbed import absorbed_selector_attention
from javisc.kernels.selector_attention.op import selector_attention

__all__ = ["absorbed_selector_attention", "selector_attention"]
