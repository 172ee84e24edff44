"""`bidirectional_attention`: the public function, its opaque ops, its gradient, its rows of the backend table."""

from __future__ import annotations

import torch
from torch import Tensor

from javisc.kernels import dispatch, operands
from javisc.kernels.attention.fallback import masked
from javisc.kernels.attention.op import dense, register
from javisc.kernels.bidirectional_attention import host
from javisc.kernels.bidirectional_attention.configs import configuration
from javisc.kernels.bidirectional_attention.reference import allowed_pairs
from javisc.kernels.dispatch import Request
from javisc.kernels.registration import differentiable

OP = differentiable(
    "bidirectional_attention",
    "Tensor q, Tensor k, Tensor v_row, Tensor v_col, Tensor? mask_row, Tensor? mask_col, int mode, float scale",
    host,
    gradients=("q", "k", "v_row", "v_col"),
    strided=("q", "k", "v_row", "v_col"),
    results=lambda *inputs: 2,
    save=True,
)


#: Streaming multiprocessors of an H200.
_MULTIPROCESSORS = 132


def _small(q: Tensor, k: Tensor) -> bool:
    """Whether programs of two tiles of the longer side each, as forward has them, are less than a wave on an H200."""
    tile = configuration("fwd", q.shape[3], 90, k.shape[1], q.element_size()).rows
    return q.shape[0] * q.shape[2] * max(q.shape[1], k.shape[1]) < 2 * tile * _MULTIPROCESSORS


def _refuse_xformers(request: Request) -> str | None:
    if "mask" in request.features:
        return "its backend here takes no padding masks"
    return dispatch.refuse_xformers(request)


register(
    "bidirectional_attention",
    "on CUDA 9.0+, 16-bit, enough rows to fill the device: the logits once for both directions (else by name)",
    lambda r: (
        dispatch.on_cuda_in_16_bits(r)
        and "small" not in r.features
        and (9, 0) <= dispatch.capability(r.device.index or 0) < (12, 0)
    ),
    xformers=_refuse_xformers,
    torch="two scaled_dot_product_attention calls",
)


def bidirectional_attention(
    q: Tensor,
    k: Tensor,
    v_row: Tensor,
    v_col: Tensor,
    *,
    mask_row: Tensor | None = None,
    mask_col: Tensor | None = None,
    mask_mode: str = "and",
    scale: float | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention of two streams to each other, from one matrix of logits S = q kᵀ · scale that is never stored.

    q (B, L1, H, D), k (B, L2, H, D); v_row (B, L2, H, D) is what q's stream receives, softmax over each row of S; v_col
    (B, L1, H, D) is what k's stream receives, softmax over each column. Either length may be the longer; D is a multiple of 8.
    mask_row (B, L1), mask_col (B, L2): booleans, True where a token is real. mask_mode "and": a pair counts if both are real.
    "or": if either is, as the published BiMultiHeadAttention has it (padding stays visible to real tokens). A token that sees
    nothing gives zero. scale: D ** -0.5 unless given.

    Returns (B, L1, H, D) and (B, L2, H, D), contiguous. Rows and columns are normalised with their own maxima, so no logit is
    clamped or lost. Memory beside inputs and outputs grows with L1 + L2. Gradients repeat to the bit (triton), and cannot be
    differentiated again.

    Raises ValueError for shapes that do not fit, BackendError if `backend` was given and cannot run.
    """
    if (
        q.ndim != 4
        or k.shape[:1] + k.shape[2:] != q.shape[:1] + q.shape[2:]
        or v_row.shape != k.shape
        or v_col.shape != q.shape
    ):
        raise ValueError(
            f"bidirectional_attention: q {tuple(q.shape)}, k {tuple(k.shape)}, v_row {tuple(v_row.shape)}, "
            f"v_col {tuple(v_col.shape)}; give (B, L1, H, D), (B, L2, H, D), the shape of k, and the shape of q"
        )
    if mask_mode not in host.MODES:
        raise ValueError(f"bidirectional_attention: mask_mode={mask_mode!r}; allowed are 'and', 'or'")
    scale = operands.scaled("bidirectional_attention", scale, q.shape[-1])
    if (mask_row is None) != (mask_col is None):
        mask_row = torch.ones(q.shape[:2], dtype=torch.bool, device=q.device) if mask_row is None else mask_row
        mask_col = torch.ones(k.shape[:2], dtype=torch.bool, device=q.device) if mask_col is None else mask_col
    for name, mask, like in (("mask_row", mask_row, q), ("mask_col", mask_col, k)):
        if mask is not None and (mask.dtype != torch.bool or mask.shape != like.shape[:2]):
            raise ValueError(
                f"bidirectional_attention: {name} is {mask.dtype} {tuple(mask.shape)}; give bool {tuple(like.shape[:2])}"
            )
    q, k, v_row, v_col = operands.of_one_dtype("bidirectional_attention", q=q, k=k, v_row=v_row, v_col=v_col)
    request = Request.of("bidirectional_attention", q, mask=mask_row is not None, small=_small(q, k))
    name = dispatch.choose(request, backend)
    if name == "triton":
        mode = 0 if mask_row is None else host.MODES[mask_mode]
        row, col = OP.apply(q, k, v_row, v_col, mask_row, mask_col, mode, scale)
        return row, col
    if name == "xformers":
        return dense(name, q, k, v_row, scale), dense(name, k, q, v_col, scale)
    allowed = allowed_pairs(mask_row, mask_col, mask_mode)
    across = None if allowed is None else allowed.transpose(-1, -2)
    row, col = masked(q, k, v_row, allowed, scale), masked(k, q, v_col, across, scale)
    return row.contiguous(), col.contiguous()
