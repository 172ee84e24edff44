"""What benchmarks/kernels.py measures: every op at the shapes that the models run, its peers, its least work, its goals.

Video buckets are named by short side, frames and clips per device; C = 1152, 16 heads of 72. T latent frames, S patches a frame.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

Function = Callable[..., Any]


@dataclass(frozen=True)
class Goal:
    """`kind` speedup: ours at least `least` times as fast as the fastest of `peers` (name prefixes) in `phase`; share: at least
    `least` of the measured copy bandwidth; memory: peak growth at most `least` times the bytes of inputs and outputs."""

    text: str
    kind: str
    least: float
    phase: str = "forward+backward"
    peers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Case:
    """One op at one shape. sizes → inputs by name; `tiny` sizes are for the check against the definition.

    flops, moved: of forward and backward; moved counts bytes that must be read or written once, in bfloat16.
    """

    op: str
    shape: str
    inputs: Function
    sizes: dict[str, int]
    tiny: dict[str, int]
    ours: Function
    definition: Function
    peers: dict[str, Function]
    flops: tuple[float, float]
    moved: tuple[float, float]
    goals: tuple[Goal, ...] = field(default=())


VIDEO = {
    "144p 51 frames, 16 clips": {"B": 16, "T": 15, "S": 144},
    "240p 51 frames, 10 clips": {"B": 10, "T": 15, "S": 405},
    "360p 51 frames, 4 clips": {"B": 4, "T": 15, "S": 920},
    "720p 51 frames, 1 clip": {"B": 1, "T": 15, "S": 3600},
}
C, H, D = 1152, 16, 72


def sdpa(q: Tensor, k: Tensor, v: Tensor, *, backend: SDPBackend) -> Tensor:
    """PyTorch's attention on (B, L, H, d), pinned to one implementation: it runs or raises."""
    with sdpa_kernel([backend]):
        return F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2)


def xformers(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """xformers' memory-efficient attention on (B, L, H, d)."""
    from xformers.ops import memory_efficient_attention

    return memory_efficient_attention(q, k, v)


def attention_peers() -> dict[str, Function]:
    """Every fused attention that is installed, each pinned."""
    pinned = {
        "SDPA flash": SDPBackend.FLASH_ATTENTION,
        "SDPA efficient": SDPBackend.EFFICIENT_ATTENTION,
        "SDPA cuDNN": SDPBackend.CUDNN_ATTENTION,
    }
    peers: dict[str, Function] = {name: partial(sdpa, backend=backend) for name, backend in pinned.items()}
    return peers | {"xformers": xformers}


def normal(device: str, dtype: torch.dtype, **shapes: tuple[int, ...]) -> dict[str, Tensor]:
    """Standard normal leaves by name, the same on every call."""
    torch.manual_seed(0)
    return {name: torch.randn(shape, device=device, dtype=dtype).requires_grad_() for name, shape in shapes.items()}


def qkv(device: str, dtype: torch.dtype, B: int, L: int, N: int, H: int, d: int) -> dict[str, Tensor]:
    """Queries (B, L, H, d), keys and values (B, N, H, d)."""
    return normal(device, dtype, q=(B, L, H, d), k=(B, N, H, d), v=(B, N, H, d))


def attention_work(B: int, L: int, N: int, H: int, d: int) -> dict[str, Any]:
    """FLOPs (2 products forward, 5 backward) and bytes (q, k, v in, o out; backward also o, dO in and three gradients out)."""
    small, large = 2.0 * B * H * d * L, 2.0 * B * H * d * N
    product = 2.0 * B * H * L * N * d
    return {"flops": (2 * product, 5 * product), "moved": (2 * small + 2 * large, 4 * small + 4 * large)}


def spatial() -> list[Case]:
    """Spatial self-attention of the joint DiT."""
    from javisc.kernels.attention import attention
    from javisc.kernels.attention.reference import attention_reference

    goal = Goal("heads of 72 within 90 % of the best installed attention", "speedup", 0.9, peers=("SDPA", "xformers"))
    cases = []
    for name, v in VIDEO.items():
        sizes = {"B": v["B"] * v["T"], "L": v["S"], "N": v["S"], "H": H, "d": D}
        tiny = {"B": 2, "L": 100, "N": 100, "H": 2, "d": D}
        ours = partial(attention, backend="triton")
        work = attention_work(**sizes)
        goals = (goal,)
        cases.append(
            Case(
                "attention",
                f"spatial, {name}",
                qkv,
                sizes,
                tiny,
                ours,
                attention_reference,
                attention_peers(),
                goals=goals,
                **work,
            )
        )
    return cases


def bidirectional() -> list[Case]:
    """Video against audio, one logits matrix in two directions."""
    from javisc.kernels.bidirectional_attention import bidirectional_attention
    from javisc.kernels.bidirectional_attention.reference import bidirectional_attention_reference

    def inputs(device: str, dtype: torch.dtype, B: int, L1: int, L2: int) -> dict[str, Tensor]:
        return normal(device, dtype, q=(B, L1, 8, D), k=(B, L2, 8, D), v_row=(B, L2, 8, D), v_col=(B, L1, 8, D))

    def one(q: Tensor, k: Tensor, v: Tensor, backend: SDPBackend) -> Tensor:
        return sdpa(q, k, v, backend=backend)

    goals = (
        Goal("at least 1.3 times two SDPA calls", "speedup", 1.3, peers=("two SDPA",)),
        Goal("memory O(L1 + L2): growth at most 4 times inputs and outputs", "memory", 4.0),
    )
    cases = []
    for name, v in VIDEO.items():
        B, L1, L2 = v["B"], v["T"] * v["S"], 224
        u, rows = 2.0 * B * 8 * D * L1 * L2, 2.0 * B * 8 * D * (L1 + L2)
        peers = {
            f"two {label}": partial(two_calls, one=partial(one, backend=pin))
            for label, pin in (
                ("SDPA flash", SDPBackend.FLASH_ATTENTION),
                ("SDPA efficient", SDPBackend.EFFICIENT_ATTENTION),
                ("SDPA cuDNN", SDPBackend.CUDNN_ATTENTION),
            )
        }
        sizes, tiny = {"B": B, "L1": L1, "L2": L2}, {"B": 2, "L1": 150, "L2": 40}
        cases.append(
            Case("bidirectional_attention", name, inputs, sizes, tiny, partial(bidirectional_attention, backend="triton"),
                 bidirectional_attention_reference, peers, (3 * u, 7 * u), (3 * rows, 6 * rows), goals)
        )  # fmt: skip
    return cases


def two_calls(q: Tensor, k: Tensor, v_row: Tensor, v_col: Tensor, *, one: Function) -> tuple[Tensor, Tensor]:
    """Both directions as two attentions; values are named by the axis that their softmax runs along."""
    return one(q, k, v_row), one(k, q, v_col)


def temporal() -> list[Case]:
    """Attention over T in the projection's own layout, against transposes, compiled norm and rope, and a fused attention."""
    from javisc.kernels.attention.reference import rms_norm
    from javisc.kernels.temporal_attention import temporal_attention
    from javisc.kernels.temporal_attention.reference import rotate, temporal_attention_reference

    def inputs(device: str, dtype: torch.dtype, B: int, T: int, S: int) -> dict[str, Tensor]:
        angles = torch.arange(T, device=device)[:, None] / 1e4 ** (torch.arange(0, D, 2, device=device) / D)
        leaves = normal(device, dtype, qkv=(B, T, S, 3, H, D), q_weight=(D,), k_weight=(D,))
        return leaves | {"cos": angles.cos(), "sin": angles.sin()}

    @torch.compile
    def norm_rope(x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return rotate(rms_norm(x, weight, 1e-6), cos[:, None], sin[:, None]).to(x.dtype)

    def usual(
        qkv: Tensor, q_weight: Tensor, k_weight: Tensor, cos: Tensor, sin: Tensor, *, backend: SDPBackend
    ) -> Tensor:
        B, T, S = qkv.shape[:3]
        q, k, v = qkv.transpose(1, 2).reshape(B * S, T, 3, H, D).unbind(2)
        out = sdpa(norm_rope(q, q_weight, cos, sin), norm_rope(k, k_weight, cos, sin), v, backend=backend)
        return out.reshape(B, S, T, H, D).transpose(1, 2).contiguous()

    goal = Goal("at least 3 times SDPA with compiled norm and rope", "speedup", 3.0, peers=("SDPA",))
    pinned = {
        "flash": SDPBackend.FLASH_ATTENTION,
        "efficient": SDPBackend.EFFICIENT_ATTENTION,
        "cuDNN": SDPBackend.CUDNN_ATTENTION,
    }
    peers = {f"SDPA {label}, compiled norm and rope": partial(usual, backend=pin) for label, pin in pinned.items()}
    cases = []
    for name, v in VIDEO.items():
        bytes_, product = 2.0 * v["B"] * v["T"] * v["S"] * C, 2.0 * v["B"] * v["S"] * v["T"] ** 2 * C
        ours = partial(temporal_attention, backend="triton")
        cases.append(
            Case("temporal_attention", name, inputs, v, {"B": 1, "T": 15, "S": 5}, ours, temporal_attention_reference, peers,
                 (2 * product, 5 * product), (4 * bytes_, 7 * bytes_), (goal,))
        )  # fmt: skip
    return cases


def selector() -> list[Case]:
    """SparseSync's 16 queries over the visual tokens of 5 to 60 seconds; 2 clips where N passes 3000."""
    from javisc.kernels.selector_attention import reference, selector_attention

    cases = []
    for seconds, clips in ((5, 10), (20, 2), (60, 2)):
        keys = 49 * 16 * seconds // 5
        sizes, tiny = {"B": clips, "L": 16, "N": keys, "H": 8, "d": 64}, {"B": 2, "L": 16, "N": 200, "H": 2, "d": 64}
        goal = Goal("at least 2 times SDPA at 3000 keys or more with few clips", "speedup", 2.0, peers=("SDPA",))
        cases.append(
            Case("selector_attention", f"{seconds} s, {clips} clips, {keys} keys", qkv, sizes, tiny,
                 partial(selector_attention, backend="triton"), reference.selector_attention, attention_peers(),
                 goals=(goal,) if keys > 3000 else (), **attention_work(**sizes))
        )  # fmt: skip
    return cases


def prior() -> list[Case]:
    """32 distinct prior tokens per clip."""
    from javisc.kernels.prior_attention import prior_attention, reference

    def flat(q: Tensor, k: Tensor, v: Tensor, *, scope: str, one: Function) -> Tensor:
        if scope == "sample":
            return one(q, k, v)
        return one(*(x.reshape(1, -1, *x.shape[2:]) for x in (q, k, v))).reshape(q.shape)

    cases = []
    for name, v in VIDEO.items():
        for scope in ("batch", "sample") if v["B"] > 1 else ("sample",):
            sizes, tiny = (
                {"B": v["B"], "L": v["T"] * v["S"], "N": 32, "H": H, "d": D},
                {"B": 2, "L": 100, "N": 32, "H": 2, "d": D},
            )
            work = attention_work(**sizes)
            seen = v["B"] if scope == "batch" else 1
            cases.append(
                Case("prior_attention", f"{scope}, {name}", qkv, sizes, tiny,
                     partial(prior_attention, scope=scope, backend="triton"), partial(reference.prior_attention, scope=scope),
                     {label: partial(flat, scope=scope, one=one) for label, one in attention_peers().items()},
                     (work["flops"][0] * seen, work["flops"][1] * seen), work["moved"])
            )  # fmt: skip
    return cases


def norms() -> list[Case]:
    """Modulated norms and gated residuals, with and without a frame mask."""
    from javisc.kernels import modulated_norm
    from javisc.kernels.modulated_norm import reference

    rows = {"modulated_layer_norm": ("x",), "gated_residual": ("x", "y"), "gated_residual_layer_norm": ("x", "y")}
    extra = {
        "modulated_layer_norm": ("shift", "scale"),
        "gated_residual": ("gate",),
        "gated_residual_layer_norm": ("gate", "shift", "scale"),
    }
    passes = {"modulated_layer_norm": (2, 3), "gated_residual": (3, 3), "gated_residual_layer_norm": (4, 6)}
    goals = (
        Goal("backward at least 1.8 times torch.compile", "speedup", 1.8, "backward", ("torch.compile",)),
        Goal("forward at least 80 % of the measured copy bandwidth", "share", 0.8, "forward"),
    )

    def inputs(
        device: str, dtype: torch.dtype, B: int, T: int, S: int, C: int, op: str, masked: bool
    ) -> dict[str, Any]:
        names = dict.fromkeys(rows[op], (B, T, S, C)) | dict.fromkeys(extra[op], (B, C))
        if not masked:
            return normal(device, dtype, **names)
        drawn: dict[str, Any] = normal(device, dtype, **names, **{f"{name}0": (B, C) for name in extra[op]})
        return drawn | {"mask": torch.arange(T, device=device).expand(B, T) % 3 > 0}

    cases = []
    for name, v in VIDEO.items():
        for op, (forward, backward) in passes.items():
            for masked in (False, True) if op == "modulated_layer_norm" else (True,):
                bytes_ = 2.0 * v["B"] * v["T"] * v["S"] * C
                definition = getattr(reference, op)
                cases.append(
                    Case(op, f"{'frame mask, ' if masked else ''}{name}", partial(inputs, op=op, masked=masked), v | {"C": C},
                         {"B": 2, "T": 3, "S": 20, "C": C}, partial(getattr(modulated_norm, op), backend="triton"), definition,
                         {}, (0, 0), (forward * bytes_, backward * bytes_), goals if op == "modulated_layer_norm" else ())
                )  # fmt: skip
    return cases


FAMILIES: dict[str, Callable[[], list[Case]]] = {
    "attention": spatial,
    "temporal_attention": temporal,
    "bidirectional_attention": bidirectional,
    "selector_attention": selector,
    "prior_attention": prior,
    "modulated_norm": norms,
}


def cases() -> tuple[list[Case], list[str]]:
    """Return every case, and the families whose op this version does not have."""
    found: list[Case] = []
    missing = []
    for family, make in FAMILIES.items():
        if importlib.util.find_spec(f"javisc.kernels.{family}") is None:
            missing.append(family)
        else:
            found += make()
    return found, missing
