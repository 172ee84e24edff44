"""What the public ops check of their operands, in the same words: each raises ValueError and says what to give."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from javisc.kernels.registration import autocast


def together(op: str, **pair: Tensor | None) -> None:
    """Raise unless both are given or neither."""
    first, second = pair.values()
    if (first is None) != (second is None):
        raise ValueError(f"{op}: give both {' and '.join(pair)}, or neither")


def shaped(op: str, shape: tuple[int, ...], **tensors: Tensor | None) -> None:
    """Raise unless every tensor that is given has the shape."""
    for name, x in tensors.items():
        if x is not None and tuple(x.shape) != shape:
            raise ValueError(f"{op}: {name} has shape {tuple(x.shape)}; give {shape}")


def scaled(op: str, scale: float | None, dim: int) -> float:
    """The scale, or 1/√dim. Raises unless it is positive."""
    factor = dim**-0.5 if scale is None else scale
    if not factor > 0:
        raise ValueError(f"{op}: scale={scale}; it must be positive")
    return factor


def of_one_dtype(op: str, **tensors: Tensor) -> Sequence[Tensor]:
    """The tensors as autocast wants them. Raises unless they then have one dtype."""
    cast = autocast(*tensors.values())
    if any(x.dtype != cast[0].dtype for x in cast):
        raise ValueError(f"{op}: {', '.join(tensors)} have dtypes {', '.join(str(x.dtype) for x in cast)}; give one")
    return cast


def few_and_many(op: str, q: Tensor, k: Tensor, v: Tensor) -> Sequence[Tensor]:
    """q, k, v of one dtype. Raises unless q is (B, L, H, D), and k and v are (B, N, H, D)."""
    if not (q.ndim == k.ndim == 4 and k.shape == v.shape and q.shape[::2] == k.shape[::2] and q.shape[3] == k.shape[3]):
        raise ValueError(
            f"{op}: q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)} do not fit: "
            "give (B, L, H, d) and twice (B, N, H, d)"
        )
    return of_one_dtype(op, q=q, k=k, v=v)
