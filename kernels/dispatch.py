"""Which backend runs an op: one table (op × backend × requirement × when chosen), and the rule that reads it.

`JAVISC_KERNELS` or an op's `backend=` names the backend; `auto` takes the first row of the op's table whose backend can run
the call and is preferred for it. A backend asked for by name runs or raises: nothing falls back silently. This module
imports neither Triton nor xformers, so choosing the torch backend never loads them.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

BACKENDS = ("triton", "xformers", "torch")
VARIABLE = "JAVISC_KERNELS"


class BackendError(ValueError):
    """A backend was asked for by name and cannot run the call; the message says why and what to change."""


@dataclass(frozen=True)
class Request:
    """What a choice may depend on.

    device, dtype: of the op's main input, after autocast. head_dim: 0 where the op has none. features: names of what the
    call uses ("norm", "lengths", "mask"), as the op's module documents them.
    """

    op: str
    device: torch.device
    dtype: torch.dtype
    head_dim: int = 0
    features: frozenset[str] = frozenset()

    @classmethod
    def of(cls, op: str, x: Tensor, head_dim: int | None = None, **features: bool) -> Request:
        """A call whose main input is x, its rows a head each unless told otherwise, with the features that are true."""
        used = frozenset(name for name, on in features.items() if on)
        return cls(op, x.device, x.dtype, x.shape[-1] if head_dim is None else head_dim, used)


@dataclass(frozen=True)
class Backend:
    """A row of the table.

    needs, when: for a reader. refuse: the reason why it cannot run a request, or None. prefer: whether `auto` takes it when
    it can run.
    """

    op: str
    name: str
    needs: str
    when: str
    refuse: Callable[[Request], str | None]
    prefer: Callable[[Request], bool]


@dataclass(frozen=True)
class Verdict:
    """One backend's answer to a request: chosen or not, and the reason why it cannot run (None: it can)."""

    backend: Backend
    reason: str | None
    chosen: bool


#: The compute capability of a device that is only imagined, while launches are captured on tensors without memory (`aot`).
pretended: tuple[int, int] | None = None
#: op → its rows, in the order in which `auto` tries them. Op modules fill it with `register`.
TABLE: dict[str, list[Backend]] = {}
_recorders: list[list[tuple[Request, str]]] = []
_only: list[str] = []


def always(request: Request) -> bool:
    """Preferred whenever it can run."""
    return True


def never(request: Request) -> bool:
    """Taken only where it is asked for by name."""
    return False


def on_cuda(request: Request) -> bool:
    """Preferred on CUDA devices."""
    return request.device.type == "cuda" or pretended is not None


def on_cuda_in_16_bits(request: Request) -> bool:
    """Preferred on CUDA devices for float16 and bfloat16."""
    return on_cuda(request) and request.dtype.itemsize == 2


def register(
    op: str,
    name: str,
    *,
    needs: str,
    when: str,
    refuse: Callable[[Request], str | None] = lambda request: None,
    prefer: Callable[[Request], bool] = always,
) -> None:
    """Add a row to the op's table; `auto` tries rows in the order of registration."""
    if name not in BACKENDS:
        raise ValueError(f"backend {name!r}: allowed are {', '.join(BACKENDS)}")
    rows = TABLE.setdefault(op, [])
    if any(row.name == name for row in rows):
        raise ValueError(f"{op}: backend {name!r} is registered already")
    rows.append(Backend(op, name, needs, when, refuse, prefer))


def register_op(
    op: str,
    *,
    needs: str,
    when: str,
    refuse: Callable[[Request], str | None],
    prefer: Callable[[Request], bool],
    torch: str = "",
    xformers: Callable[[Request], str | None] | None = None,
) -> None:
    """Add the rows of an op of ours: Triton (needs, when, refuse, prefer); xformers where it is given what refuses it, taken only
    by name; and PyTorch otherwise, with what `torch` says of it."""
    register(op, "triton", needs=needs, when=when, refuse=refuse, prefer=prefer)
    if xformers is not None:
        needs = "CUDA; float32, float16, bfloat16; head dim a multiple of 8; no masks; an installation that runs"
        register(op, "xformers", needs=needs, when="only by name", refuse=xformers, prefer=never)
    register(op, "torch", needs="nothing", when=f"otherwise: {torch}" if torch else "otherwise")


#: Which of the optional packages are installed, found without importing them (once: `choose` runs under tracing too).
INSTALLED = {package: importlib.util.find_spec(package) is not None for package in ("triton", "xformers")}
_broken: dict[str, str] = {}


def _broken_once(name: str, attempt: Callable[[], object], said: str) -> str:
    """Why the attempt fails, "" if it does not; made once per process. An installed package is not yet one that runs."""
    if name not in _broken:
        try:
            attempt()
        except Exception as error:  # noqa: BLE001  whatever it raises is the reason
            _broken[name] = f"{said} ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
        else:
            _broken[name] = ""
    return _broken[name]


def broken_triton() -> str:
    """Why Triton cannot be imported, "" if it can."""
    return _broken_once("triton", lambda: importlib.import_module("triton"), "the package triton cannot be imported")


def broken_xformers(index: int) -> str:
    """Why xformers' attention does not run on that CUDA device, "" if it does: tried on one token."""

    def attempt() -> None:
        ops = importlib.import_module("xformers.ops")
        token = torch.zeros((1, 1, 1, 8), dtype=torch.float16, device=torch.device("cuda", index))
        ops.memory_efficient_attention(token, token, token)

    return _broken_once(f"xformers on {index}", attempt, "xformers does not run here")


def interpreting() -> bool:
    """Whether Triton kernels run under its interpreter (the variable must be set before Triton is first imported)."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on")


def capability(index: int) -> tuple[int, int]:
    """A CUDA device's compute capability, or that of the device that is imagined."""
    return pretended or torch.cuda.get_device_capability(index)


# Tracing takes the answer as a constant: what torch.compiler.assume_constant_result sets, which would import Triton.
for _constant in (capability, broken_triton, broken_xformers):
    _constant._dynamo_marked_constant = True  # type: ignore[attr-defined, union-attr]


def refuse_triton(request: Request) -> str | None:
    """The reason why no Triton kernel of ours can run on the request's device and dtype, or None."""
    if not INSTALLED["triton"]:
        return "the package triton is not installed (pip install 'javisc[train]')"
    if request.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"it takes float32, float16 and bfloat16, not {str(request.dtype).removeprefix('torch.')}"
    if request.device.type == "cuda" or pretended is not None:
        if torch.version.hip is not None:
            return "its configurations are for NVIDIA devices"
        found = capability(request.device.index or 0)
        if found < (8, 0):
            return f"it needs compute capability 8.0 or newer, the device has {found[0]}.{found[1]}"
        return broken_triton() or None
    if interpreting():
        return broken_triton() or None
    return f"it needs a CUDA device, not {request.device.type} (or TRITON_INTERPRET=1, set before Triton is imported)"


def refuse_xformers(request: Request) -> str | None:
    """The reason why xformers' memory-efficient attention cannot run on the request's device and dtype, or None."""
    if not INSTALLED["xformers"]:
        return "the package xformers is not installed (pip install 'javisc[train]')"
    if request.device.type != "cuda":
        return f"xformers has no attention operator for {request.device.type}"
    if request.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"it takes float32, float16 and bfloat16, not {str(request.dtype).removeprefix('torch.')}"
    if request.head_dim % 8 and request.dtype != torch.float32:
        return f"its operators need a head dim divisible by 8, not {request.head_dim}"
    return broken_xformers(request.device.index or 0) or None


def requested(op: str) -> str:
    """What `JAVISC_KERNELS` asks for this op: a name, or a comma-separated list of names and OP=NAME, the last that fits."""
    if _only:
        return _only[-1]
    value = os.environ.get(VARIABLE, "") or "auto"
    answer = "auto"
    for item in value.split(","):
        target, _, name = item.strip().rpartition("=")
        if name not in ("auto", *BACKENDS):
            raise ValueError(
                f"{VARIABLE}={value}: {name!r} is no backend; allowed are auto, {', '.join(BACKENDS)}, and OP=NAME"
            )
        if target and target not in TABLE:
            raise ValueError(f"{VARIABLE}={value}: {target!r} is no op; there are {', '.join(TABLE)}")
        if target in ("", op):
            answer = name
    return answer


def judge(request: Request, backend: str | None = None) -> list[Verdict]:
    """Every row of the op's table with its answer to the request; at most one is chosen. Raises nothing for want of a backend."""
    asked = backend or requested(request.op)
    verdicts: list[Verdict] = []
    for row in TABLE[request.op]:
        reason = row.refuse(request)
        wanted = row.prefer(request) if asked == "auto" else row.name == asked
        verdicts.append(Verdict(row, reason, wanted and reason is None and not any(v.chosen for v in verdicts)))
    return verdicts


def choose(request: Request, backend: str | None = None) -> str:
    """The backend that runs this request.

    backend: "auto", "triton", "xformers", "torch", or None for what `JAVISC_KERNELS` says.
    Raises BackendError if the backend asked for by name cannot run it, or (auto) if none can.
    """
    asked = backend or requested(request.op)
    if asked not in ("auto", *BACKENDS):
        raise ValueError(f"backend={asked!r}: allowed are auto, {', '.join(BACKENDS)}")
    why = f"it has {', '.join(row.name for row in TABLE[request.op])}"
    for row in TABLE[request.op]:
        if not (row.prefer(request) if asked == "auto" else row.name == asked):
            continue  # its refusal, which may try the backend, is not asked for
        reason = row.refuse(request)
        if reason is None:
            for recorder in _recorders:
                recorder.append((request, row.name))
            return row.name
        why = reason
    if asked == "auto":
        raise BackendError(f"{request.op}: no backend can run this call ({why})")
    raise BackendError(
        f"{request.op}: backend {asked!r} was asked for and cannot run: {why}. Use another backend= or {VARIABLE}"
    )


@contextmanager
def recording() -> Iterator[list[tuple[Request, str]]]:
    """Collect (request, chosen backend) of every call made inside the block, in order."""
    choices: list[tuple[Request, str]] = []
    _recorders.append(choices)
    try:
        yield choices
    finally:
        _recorders.remove(choices)


@contextmanager
def only(backend: str) -> Iterator[None]:
    """Calls inside the block take this backend, whatever `JAVISC_KERNELS` says."""
    _only.append(backend)
    try:
        yield
    finally:
        _only.pop()
