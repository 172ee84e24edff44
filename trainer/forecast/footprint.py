"""What a forward pass would call and keep for its backward, seen without doing it: it runs on fake tensors, which have shapes
but no values, as on the device and with the kernels that the run would take."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.hooks import RemovableHandle

from javisc.kernels import dispatch
from javisc.trainer.engine.distributed import ParallelConfig, autocast, gathered_dtype
from javisc.trainer.engine.recompute import attention_results
from javisc.trainer.task import Task

#: (op, backend, dtype, head width, what the call uses) of a kernel's call
Call = tuple[str, str, str, int, tuple[str, ...]]


@dataclass(frozen=True)
class Footprint:
    """One micro-batch on one device.

    `activations` and `checkpointed`: bytes kept between forward and backward, without and with activation checkpointing of
    the task's blocks (their inputs, what lies outside of them, with `keep_attention` what attentions gave, and the one block that
    is computed again). `kernels`: how often each backend is called in the forward pass.
    `flops`: of forward and backward as they run, what attention computes again among them.
    """

    activations: int
    checkpointed: int
    kernels: dict[Call, int]
    flops: int


def footprint(task: Task[Any], batch: Any, parallel: ParallelConfig, device: torch.device) -> Footprint:
    """The footprint of `batch` on `device`, which nothing is allocated on."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        with torch.device(device):
            model = task.model()
        if (dtype := gathered_dtype(model, parallel)) is not None:
            cast(model, dtype)
        model.train()
        kept = _Kept(model, task.blocks(model))
        results = _Results(kept, attention_results() if parallel.keep_attention else set())
        with FlopCounterMode(display=False) as counter:
            with kept, results, dispatch.recording() as calls, autocast(model, parallel, device):
                loss = task.loss(model, batch, device)
            total = loss["loss"] if isinstance(loss, Mapping) else loss
            total.backward()  # type: ignore[no-untyped-call]
    found = Counter((r.op, backend, _name(r.dtype), r.head_dim, tuple(sorted(r.features))) for r, backend in calls)
    return Footprint(kept.plain(), kept.checkpointed(), dict(found), counter.get_total_flops())


def cast(model: nn.Module, dtype: torch.dtype) -> None:
    """The parameters as FSDP2 gathers them; `Module.to` cannot exchange fake ones."""
    for module in model.modules():
        for name, p in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(p.detach().to(dtype), p.requires_grad))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


class _Kept(AbstractContextManager["_Kept"]):
    """Records every storage that autograd saves, and inside which block; parameters and buffers are no activations."""

    def __init__(self, model: nn.Module, blocks: Iterable[nn.Module]) -> None:
        self.bytes: dict[int, int] = {}
        self.places: dict[int | None, set[int]] = {None: set()}
        self.saved: set[int] = set()
        self.alive: list[Tensor] = []  # a storage's number is its own only as long as it lives
        own = (*model.parameters(), *model.buffers())
        self.own = {_storage(tensor) for tensor in own}
        self.inside: int | None = None
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)
        self.handles: list[RemovableHandle] = []
        for number, block in enumerate(blocks):
            self.places[number] = set()
            self._watch(number, block)

    def _watch(self, number: int, block: nn.Module) -> None:
        def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self.inside = None
            for tensor in _tensors((args, kwargs)):
                self._note(tensor)
            self.inside = number

        def leave(*_: Any) -> None:
            self.inside = None

        self.handles += [
            block.register_forward_pre_hook(enter, with_kwargs=True),
            block.register_forward_hook(leave),
        ]

    def _note(self, tensor: Tensor) -> int:
        """Put a storage down where the forward pass is, and return its number."""
        key = _storage(tensor)
        if key not in self.own:
            self.bytes[key] = tensor.untyped_storage().nbytes()
            self.places[self.inside].add(key)
            self.alive.append(tensor.detach())
        return key

    def _pack(self, tensor: Tensor) -> Tensor:
        self.saved.add(self._note(tensor))
        return tensor

    def __enter__(self) -> _Kept:
        self.hooks.__enter__()
        return self

    def __exit__(self, *exc: Any) -> None:
        self.hooks.__exit__(*exc)
        for handle in self.handles:
            handle.remove()

    def plain(self) -> int:
        return sum(self.bytes[key] for key in self.saved - self.own)

    def checkpointed(self) -> int:
        """What lies outside of the blocks, their inputs, and the largest block's inside."""
        always = self.places[None]
        again = [
            sum(self.bytes[key] for key in keys - always) for place, keys in self.places.items() if place is not None
        ]
        return sum(self.bytes[key] for key in always) + max(again, default=0)


class _Results(TorchDispatchMode):
    """Notes what some operators give as kept, wherever they run."""

    def __init__(self, kept: _Kept, operators: set[OpOverload]) -> None:
        super().__init__()
        self.kept, self.operators = kept, operators

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = op(*args, **(kwargs or {}))
        if op in self.operators:
            for tensor in _tensors(out):
                self.kept.places[None].add(self.kept._note(tensor))
        return out


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _tensors(value: Any) -> Iterator[Tensor]:
    """All tensors inside arguments: tuples, lists, dicts, dataclasses."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield from _tensors([getattr(value, entry.name) for entry in dataclasses.fields(value)])
