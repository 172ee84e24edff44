"""The public op `selector_attention`: checks, choice of backend."""

from __future__ import annotations

import torch
from torch import Tensor

from javisc.kernels import dispatch
from javisc.kernels.attention.op import refuse_heads
from javisc.kernels.registration import autocast, differentiable
from javisc.kernels.selector_attention import configs, host, reference

OP = differentiable(
    "selector_attention",
    "Tensor q, Tensor k, Tensor v, float scale",
    host,
    gradients=("q", "k", "v"),
    strided=("q", "k", "v"),
    save=True,
)


def _refuse(request: dispatch.Request) -> str | None:
    if "many" in request.features:
        return (
            f"the queries stay resident: at most {configs.MAX_QUERIES} of them ({configs.MAX_QUERIES_WIDE} in float32); "
            "use attention"
        )
    return refuse_heads(request)


dispatch.register_op(
    "selector_attention",
    needs=f"CUDA (sm_80 or newer), float32/16/bfloat16, at most {configs.MAX_QUERIES} queries "
    f"({configs.MAX_QUERIES_WIDE} in float32), d 8–128, a multiple of 8",
    when="on CUDA, 16-bit, few queries (float32 by name: not measured)",
    refuse=_refuse,
    prefer=lambda r: dispatch.on_cuda_in_16_bits(r) and "many" not in r.features,
    xformers=dispatch.refuse_xformers,
    torch="PyTorch's scaled_dot_product_attention",
)


def checked(op: str, q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> tuple[Tensor, Tensor, Tensor, float]:
    """q, k, v as autocast wants them, and the scale. Raises ValueError unless q is (B, L, H, d), k and v are (B, N, H, d), their
    dtypes agree and the scale is positive."""
    fits = q.ndim == k.ndim == 4 and k.shape == v.shape and q.shape[::2] == k.shape[::2] and q.shape[3] == k.shape[3]
    if not fits:
        raise ValueError(
            f"{op}: q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)} do not fit: "
            "give (B, L, H, d) and twice (B, N, H, d)"
        )
    factor = q.shape[-1] ** -0.5 if scale is None else float(scale)
    if factor <= 0:
        raise ValueError(f"{op}: scale={scale}; it must be positive")
    q, k, v = (t for t in autocast(q, k, v) if t is not None)
    if not q.dtype == k.dtype == v.dtype:
        raise ValueError(f"{op}: q, k, v have dtypes {q.dtype}, {k.dtype}, {v.dtype}; give one")
    return q, k, v, factor


def with_torch(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """PyTorch's attention on (B, L, H, d); 0 without keys."""
    if not k.shape[1]:
        return reference.selector_attention(q, k, v, scale)
    out = torch.nn.functional.scaled_dot_product_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), scale=scale
    )
    return out.transpose(1, 2).contiguous()


def with_xformers(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """xformers' memory-efficient attention on (B, L, H, d)."""
    from xformers.ops import memory_efficient_attention  # type: ignore[import-untyped]

    out: Tensor = memory_efficient_attention(q, k, v, scale=scale)
    return out


def selector_attention(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None, backend: str | None = None
) -> Tensor:
    """Return softmax(q·kᵀ·scale)·v per head, (B, S, H, d) in q's dtype: few queries over many keys.

    q (B, S, H, d), k and v (B, N, H, d); slices such as `kv.unbind(2)` are read in place. `scale` is 1/√d unless given. Work
    and memory grow linearly with N; gradients of the Triton kernel are the same to the bit from run to run, and cannot be
    differentiated again. Without keys the result is 0. Under autocast inputs are cast as for `scaled_dot_product_attention`.

    Raises ValueError for shapes, dtypes or a scale that do not fit, BackendError if `backend` cannot run.
    """
    q, k, v, factor = checked("selector_attention", q, k, v, scale)
    limit = configs.MAX_QUERIES if q.element_size() == 2 else configs.MAX_QUERIES_WIDE
    features = frozenset({"many"}) if q.shape[1] > limit else frozenset()
    request = dispatch.Request("selector_attention", q.device, q.dtype, q.shape[-1], features)
    name = dispatch.choose(request, backend)
    if name == "torch":
        return with_torch(q, k, v, factor)
    if name == "xformers":
        return with_xformers(q, k, v, factor)
    out: Tensor = OP.apply(q, k, v, factor)
    return out
