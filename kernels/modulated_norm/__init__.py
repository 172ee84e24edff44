"""LayerNorm with modulation and gated residual, alone and fused, per frame between two timesteps."""

from javisc.kernels.modulated_norm.op import gated_residual, gated_residual_layer_norm, modulated_layer_norm

__all__ = ["gated_residual", "gated_residual_layer_norm", "modulated_layer_norm"]
