"""Which places of a step read tensors on the host, or copy them between host and device: a stand-in on the CPU.

On a GPU each of them makes the host wait for all that was queued, or makes a copy wait for pageable memory
(`torch.cuda.set_sync_debug_mode` would name them). Here every such call is seen, whatever device the tensor is on.
"""

from __future__ import annotations

import sys
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode

import javisc.trainer

#: Operations whose result the host must know before it can go on.
WAITING = {
    torch.ops.aten._local_scalar_dense.default: "item",
    torch.ops.aten.nonzero.default: "nonzero",
    torch.ops.aten.masked_select.default: "masked_select",
    torch.ops.aten.unique_consecutive.default: "unique",
    torch.ops.aten._unique2.default: "unique",
}
#: Functions that copy numbers to the device they are given.
MAKERS = ("tensor", "as_tensor")
#: Methods of tensors that do the same without an operation, or that copy.
METHODS = {"tolist": "tolist", "numpy": "numpy", "cpu": "cpu", "to": "to", "cuda": "cuda"}
_PACKAGES = ("trainer", "kernels")
_ROOT = Path(javisc.trainer.__file__).parent.parent


def _place() -> str | None:
    """The innermost line of the trainer or the kernels that is running, as `package/file.py function`; None in the threads of a
    loader, which the step does not wait for."""
    if threading.current_thread() is not threading.main_thread():
        return None
    frame = sys._getframe(2)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(_ROOT) and path.relative_to(_ROOT).parts[0] in _PACKAGES:
            return f"{path.relative_to(_ROOT)} {frame.f_code.co_name}"
        frame = frame.f_back  # type: ignore[assignment]
    return None


class _Seen(TorchDispatchMode):
    def __init__(self, found: Counter[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        what = WAITING.get(func)
        if what is None and func is torch.ops.aten.index.Tensor:
            what = "mask" if any(i is not None and i.dtype == torch.bool for i in args[1]) else None
        if what and (place := _place()):
            self.found[f"{place} {what}"] += 1
        return func(*args, **(kwargs or {}))


def _copies(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a call of `to` names a device, and may wait."""
    if name != "to":
        return True
    device = next((a for a in (*args, kwargs.get("device")) if isinstance(a, torch.device | str)), None)
    return device is not None and not kwargs.get("non_blocking")


@contextmanager
def watched(found: Counter[str]) -> Iterator[None]:
    """Count, while open, what waits, by place and kind."""
    with _Seen(found):
        patches = []
        for name, what in METHODS.items():
            original: Callable[..., Any] = getattr(torch.Tensor, name)

            def call(self: Any, *args: Any, _original: Any = original, _what: str = what, **kwargs: Any) -> Any:
                if _copies(_what, args, kwargs) and (place := _place()):
                    found[f"{place} {_what}"] += 1
                return _original(self, *args, **kwargs)

            patches.append(mock.patch.object(torch.Tensor, name, call))
        for name in MAKERS:
            made: Callable[..., Any] = getattr(torch, name)

            def make(*args: Any, _made: Any = made, _name: str = name, **kwargs: Any) -> Any:
                if kwargs.get("device") is not None and (place := _place()):
                    found[f"{place} {_name}"] += 1
                return _made(*args, **kwargs)

            patches.append(mock.patch.object(torch, name, make))
        for patch in patches:
            patch.start()
        try:
            yield
        finally:
            for patch in patches:
                patch.stop()


@contextmanager
def synchronizing(found: Counter[str]) -> Iterator[None]:
    """Count, while open, what really waits for a GPU, by place: PyTorch warns of each (`torch.cuda.set_sync_debug_mode`)."""

    def note(message: Warning | str, *_: Any, **__: Any) -> None:
        if "synchronizing" in str(message) and (place := _place()):
            found[place] += 1

    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode(before)
