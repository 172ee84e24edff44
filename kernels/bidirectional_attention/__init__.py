"""Attention between two streams in both directions, from one matrix of logits that is never stored."""

from javisc.kernels.bidirectional_attention.op import bidirectional_attention

__all__ = ["bidirectional_attention"]
