"""The public op `selector_attention`: checks, choice of backend. Its kernels are those of `attention`, split over the keys."""

from __future__ import annotations

from torch import Tensor

from javisc.kernels import dispatch, operands
from javisc.kernels.attention.op import dense, register
from javisc.kernels.dispatch import Request

#: Beyond so many queries they are no longer few: PyTorch's attention is taken.
FEW = 64

register(
    "selector_attention",
    f"on CUDA, 16-bit, at most {FEW} queries (more, and float32, by name: not measured)",
    lambda r: dispatch.on_cuda_in_16_bits(r) and "many" not in r.features,
    xformers=dispatch.refuse_xformers,
    torch="scaled_dot_product_attention",
)


def selector_attention(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None, backend: str | None = None
) -> Tensor:
    """Return softmax(q·kᵀ·scale)·v per head, (B, S, H, d) in q's dtype: few queries over many keys.

    q (B, S, H, d), k and v (B, N, H, d); slices such as `kv.unbind(2)` are read in place. `scale` is 1/√d unless given. Work
    and memory grow linearly with N; gradients of the Triton kernel are the same to the bit from run to run, and cannot be
    differentiated again. Without keys the result is 0. Under autocast inputs are cast as for `scaled_dot_product_attention`.

    Raises ValueError for shapes, dtypes or a scale that do not fit, BackendError if `backend` cannot run.
    """
    q, k, v = operands.few_and_many("selector_attention", q, k, v)
    factor = operands.scaled("selector_attention", scale, q.shape[-1])
    name = dispatch.choose(Request.of("selector_attention", q, many=q.shape[1] > FEW), backend)
    return dense(name, q, k, v, factor)
