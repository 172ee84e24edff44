"""`temporal_attention`: the public function, its opaque ops, its gradient, its rows of the backend table."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from javisc.kernels import dispatch, operands
from javisc.kernels.attention.op import register
from javisc.kernels.attention.reference import rms_norm
from javisc.kernels.dispatch import Request
from javisc.kernels.registration import autocast, differentiable
from javisc.kernels.temporal_attention import host
from javisc.kernels.temporal_attention.reference import rotate

OP = differentiable(
    "temporal_attention",
    "Tensor qkv, Tensor? q_weight, Tensor? k_weight, Tensor? cos, Tensor? sin, float eps, float scale",
    host,
    gradients=("qkv", "q_weight", "k_weight"),
    save=True,
)


register(
    "temporal_attention",
    "on CUDA, 16-bit: norm, rotation and attention in one pass over the native layout",
    dispatch.on_cuda_in_16_bits,
    least=16,
    torch="norm, rotation, scaled_dot_product_attention",
)


def rope_table(freqs: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """cos and sin (length, D / 2) of the angles p · freqs, p = 0 … length − 1, built in freqs' dtype (rotary embedding)."""
    angles = torch.arange(length, device=freqs.device, dtype=freqs.dtype)[:, None] * freqs
    return angles.cos(), angles.sin()


def temporal_attention(
    qkv: Tensor,
    q_weight: Tensor | None = None,
    k_weight: Tensor | None = None,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    *,
    eps: float = 1e-6,
    scale: float | None = None,
    backend: str | None = None,
) -> Tensor:
    """Self-attention over T for every spatial position and head, read and written in the projection's own layout.

    qkv (B, T, S, 3, H, D), what a linear layer to 3·H·D gives for tokens (B, T, S). q_weight, k_weight (D,): RMSNorm gains;
    given both, queries and keys are normed over D. cos, sin (T, D / 2), see `rope_table`: given both, pairs (2i, 2i + 1) of
    normed queries and keys are turned; no gradient reaches the tables. scale: D ** -0.5 unless given; must be positive.

    Returns (B, T, S, H, D), contiguous, in qkv's dtype. Up to 128 times (64 on
    devices older than 9.0, half of it for heads wider than 80) fit one tile and nothing is saved but qkv; longer sequences are
    streamed. Gradients repeat to the bit (triton), and cannot be differentiated again. Under autocast qkv is cast as for
    `scaled_dot_product_attention`.

    Raises ValueError for shapes that do not fit, BackendError if `backend` was given and cannot run.
    """
    if qkv.ndim != 6 or qkv.shape[3] != 3 or qkv.shape[-1] % 2:
        raise ValueError(
            f"temporal_attention: qkv has shape {tuple(qkv.shape)}; give (B, T, S, 3, H, D) with an even D"
        )
    t, d = qkv.shape[1], qkv.shape[-1]
    operands.together("temporal_attention", q_weight=q_weight, k_weight=k_weight)
    operands.together("temporal_attention", cos=cos, sin=sin)
    operands.shaped("temporal_attention", (d,), q_weight=q_weight, k_weight=k_weight)
    operands.shaped("temporal_attention", (t, d // 2), cos=cos, sin=sin)
    for name, table in (("cos", cos), ("sin", sin)):
        if table is not None and table.requires_grad:
            raise ValueError(f"temporal_attention: {name} requires a gradient, which is not computed; detach it")
    scale = operands.scaled("temporal_attention", scale, d)
    (cast,) = autocast(qkv)
    name = dispatch.choose(Request.of("temporal_attention", cast), backend)
    if name == "triton":
        result: Tensor = OP.apply(cast, q_weight, k_weight, cos, sin, eps, scale)
        return result
    q, k, v = cast.unbind(3)
    if q_weight is not None and k_weight is not None:
        q, k = rms_norm(q, q_weight, eps), rms_norm(k, k_weight, eps)
    if cos is not None and sin is not None:
        c, s = cos[:, None, None], sin[:, None, None]
        q, k = rotate(q, c, s).to(v.dtype), rotate(k, c, s).to(v.dtype)
    q, k, v = (x.permute(0, 2, 3, 1, 4) for x in (q, k, v))
    out = scaled_dot_product_attention(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), scale=scale)
    return out.reshape(cast.shape[0], cast.shape[2], *out.shape[1:]).permute(0, 3, 1, 2, 4).contiguous()
