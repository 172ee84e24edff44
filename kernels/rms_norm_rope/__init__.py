"""RMS norm of query and key heads with interleaved rope."""

from javisc.kernels.rms_norm_rope.op import rms_norm_rope

__all__ = ["rms_norm_rope"]
