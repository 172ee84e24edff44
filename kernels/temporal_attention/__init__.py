"""Attention over time on the native (B, T, S, 3, H, D) projection, with qk-norm and rotary positions."""

from javisc.kernels.temporal_attention.op import rope_table, temporal_attention

__all__ = ["rope_table", "temporal_attention"]
