"""Attention over variable lengths, with optional RMSNorm of queries and keys."""

from javisc.kernels.attention.op import attention

__all__ = ["attention"]
