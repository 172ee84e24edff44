"""The public op `prior_attention`: checks, scope, choice of backend. Its kernels are those of `attention`."""

from __future__ import annotations

from torch import Tensor

from javisc.kernels import dispatch, operands
from javisc.kernels.attention.op import dense, register
from javisc.kernels.dispatch import Request
from javisc.kernels.prior_attention.reference import Scope

#: From this many keys PyTorch's attention is taken, until ours is measured there.
MANY = 256

register(
    "prior_attention",
    f"on CUDA, 16-bit, fewer than {MANY} distinct keys (more, and float32, by name: not measured)",
    lambda r: dispatch.on_cuda_in_16_bits(r) and "many" not in r.features,
    xformers=dispatch.refuse_xformers,
    torch="scaled_dot_product_attention",
)


def prior_attention(
    q: Tensor, k: Tensor, v: Tensor, *, scope: Scope, scale: float | None = None, backend: str | None = None
) -> Tensor:
    """Return softmax(q·kᵀ·scale)·v per head, (B, N, H, d) in q's dtype: many queries over the few distinct prior tokens.

    q (B, N, H, d), k and v (B, P, H, d), each prior token once: never repeated over frames or positions. scope "batch": a query
    sees the tokens of all B samples, as the published weights were trained and must be sampled. scope "sample": its own
    sample's. `scale` is 1/√d unless given. Gradients of the Triton kernel are the same to the bit from run to run, and cannot be
    differentiated again. Under autocast inputs are cast as for `scaled_dot_product_attention`.

    Raises ValueError for shapes, dtypes, a scale or a scope that do not fit, BackendError if `backend` cannot run.
    """
    q, k, v = operands.few_and_many("prior_attention", q, k, v)
    factor = operands.scaled("prior_attention", scale, q.shape[-1])
    if scope not in ("batch", "sample"):
        raise ValueError(
            f"prior_attention: scope={scope!r}: give 'batch' (prior tokens of all samples) or 'sample' (of the own one)"
        )
    shape = q.shape
    if scope == "batch":
        q, k, v = (x.reshape(1, -1, *x.shape[2:]) for x in (q, k, v))
    name = dispatch.choose(Request.of("prior_attention", q, many=k.shape[1] >= MANY), backend)
    return dense(name, q, k, v, factor).reshape(shape)
