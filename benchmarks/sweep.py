"""Which tiles are fastest: entries of the kernels' tables of configurations, tried one by one on the models' calls.

An entry is found, not named: it is one whose change changes what a call looks up. Every candidate must compute what the entry
that stands there computes. The winners are written as whole tables, in Python, to be pasted over those in `kernels/*/configs.py`.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from cells import Log, Record
from gate import TOLERANCE, error
from kernel_stages import Compilers, bench, device, is_of, timed

#: Calls that an entry is timed on, at most.
CALLS = 3


@dataclass(frozen=True)
class Entry:
    """kernels/FOLDER/configs.py: TABLE[path[0]][path[1]]…"""

    folder: str
    table: str
    path: tuple[Any, ...]

    @property
    def name(self) -> str:
        return f"{self.folder}, {self.table}{''.join(f'[{key!r}]' for key in self.path)}"

    def holder(self) -> Any:
        """The dictionary that holds it."""
        found = getattr(configs(self.folder), self.table)
        for key in self.path[:-1]:
            found = found[key]
        return found

    @property
    def value(self) -> Any:
        return self.holder()[self.path[-1]]

    @contextlib.contextmanager
    def holding(self, value: Any) -> Iterator[None]:
        """Another value stands there inside."""
        holder, before = self.holder(), self.value
        holder[self.path[-1]] = value
        try:
            yield
        finally:
            holder[self.path[-1]] = before


def configs(folder: str) -> Any:
    return importlib.import_module(f"javisc.kernels.{folder}.configs")


def entries(folder: str) -> list[Entry]:
    """Every entry of an op's tables."""

    def below(table: str, path: tuple[Any, ...], value: Any) -> Iterator[Entry]:
        for key, item in value.items():
            if isinstance(item, dict):
                yield from below(table, (*path, key), item)
            else:
                yield Entry(folder, table, (*path, key))

    tables = {
        name: value for name, value in vars(configs(folder)).items() if name.isupper() and isinstance(value, dict)
    }
    return [entry for name, value in tables.items() for entry in below(name, (), value)]


def used(call: Any, folder: str, dtype: torch.dtype, where: torch.device) -> list[tuple[Entry, str]]:
    """The entries that a call's passes look up, each with its pass: "fwd" or one of the backward."""
    module, host = configs(folder), importlib.import_module(f"javisc.kernels.{folder}.host")
    name = "configuration" if hasattr(module, "configuration") else "config"
    look_up = getattr(module, name)
    asked: list[tuple[Any, ...]] = []

    def noted(*args: Any) -> Any:
        asked.append(args)
        return look_up(*args)

    owner = host if hasattr(host, name) else module
    setattr(owner, name, noted)
    try:
        call.run(where, dtype)
    finally:
        setattr(owner, name, look_up)
    found = {}
    for args in dict.fromkeys(asked):
        stands = look_up(*args)
        for entry in entries(folder):
            value = entry.value
            with entry.holding(like(value, [x if x is None else x + 7 for x in value])):
                if look_up(*args) != stands:
                    found[entry] = str(args[0])
    return list(found.items())


def like(value: Any, numbers: Any) -> Any:
    """A Config or a plain tuple of these numbers, whichever the value is."""
    return type(value)(*numbers) if hasattr(value, "_fields") else tuple(numbers)


def candidates(entry: Entry, kind: str, tiny: bool) -> list[Any]:
    """What may stand there: first what does, then tiles that fit an H200's registers and shared memory."""
    value, stages = entry.value, (2, 3) if kind == "fwd" else (1, 2)
    if tiny:
        return [value, _other(value)]
    tried: Iterator[tuple[Any, ...]]
    if entry.folder == "attention":
        small = entry.table == "SHORT"
        rows = (16, 32, 64) if small else (32, 64) if kind == "dkv" else (64, 128)
        columns = (16, 32, 64) if small else (32, 64, 128)
        tried = itertools.product(rows, columns, (2, 4, 8)[not small :], stages[1:], (None,) if small else (None, 128))
    elif entry.folder == "bidirectional_attention":
        tried = itertools.product((16, 32, 64), (32, 64, 128), (4, 8), stages)
    elif entry.folder == "temporal_attention":
        tried = itertools.product([rows for rows in (32, 64, 128) if rows >= entry.path[-1]], (4, 8))
    else:
        tried = itertools.product((1, 2, 4, 8), (1, 2, 4, 8))
    return list(dict.fromkeys([value, *(like(value, numbers) for numbers in tried)]))


def _other(value: Any) -> Any:
    """For a rehearsal: the same tile with twice the warps, which the interpreter does not see."""
    if hasattr(value, "_fields"):
        return value._replace(warps=2 * value.warps)
    return (*value[:-1], 2 * value[-1])


#: Op of a stage → the folder whose tables serve it.
FOLDERS = {
    "attention": "attention",
    "bidirectional_attention": "bidirectional_attention",
    "temporal_attention": "temporal_attention",
    "norms": "modulated_norm",
    "selector_attention": "attention",
}


def results(call: Any, inputs: dict[str, Any]) -> list[torch.Tensor]:
    """Outputs and gradients, for gradients of the outputs that are the same every time."""
    out = call.ours(**inputs)
    outs = list(out) if isinstance(out, tuple) else [out]
    leaves = [x for x in inputs.values() if isinstance(x, torch.Tensor) and x.requires_grad]
    random = torch.Generator(device=outs[0].device).manual_seed(1)
    grads = [torch.randn(o.shape, generator=random, device=o.device, dtype=torch.float32).to(o) for o in outs]
    return outs + list(torch.autograd.grad(outs, leaves, grads))


def phase(call: Any, inputs: dict[str, Any], kind: str, tiny: bool) -> float:
    """Median ms of the pass that an entry is for."""
    leaves = [x for x in inputs.values() if isinstance(x, torch.Tensor) and x.requires_grad]
    if kind == "fwd":
        with torch.no_grad():
            return bench(lambda: call.ours(**inputs), tiny)[0]
    out = call.ours(**inputs)
    outs = out if isinstance(out, tuple) else (out,)
    grads = [torch.randn_like(o) for o in outs]
    return bench(lambda: torch.autograd.grad(outs, leaves, grads, retain_graph=True), tiny)[0]


def sweep(log: Log, tiny: bool, op: str) -> None:
    """Try the candidates of every entry that the models' calls of an op use; after each entry write the tables of winners."""
    from javisc.kernels import dispatch

    compilers = None if dispatch.interpreting() else Compilers()
    folder, dtype = FOLDERS[op], torch.float16 if tiny else torch.bfloat16
    served: dict[tuple[Entry, str], list[Any]] = {}
    for call, _ in timed(tiny):
        if is_of(call, op):
            for place in used(call, folder, dtype, device()):
                served.setdefault(place, []).append(call)
    winners: dict[Entry, Any] = {}
    for (entry, kind), calls in list(served.items())[: 2 if tiny else None]:
        tried = candidates(entry, kind, tiny)
        if compilers is not None:
            for value in tried:
                with (
                    entry.holding(value),
                    contextlib.suppress(Exception),
                ):  # its own cell will say what is wrong with it
                    compilers.launch(calls[0], dtype)
            compilers.wait()
        best, least = entry.value, 0.0
        for value in tried:
            ratios = []
            for call in calls[: 1 if tiny else CALLS]:
                stands = f"sweep/{entry.name}/{kind}/{entry.value}/{call.name}"
                cell = log.measure(
                    f"sweep/{entry.name}/{kind}/{value}/{call.name}", _trial(entry, value, kind, call, dtype, tiny)
                )
                measured = "ms" in cell and "ms" in log.cells[stands]
                ratios.append(math.log(cell["ms"] / log.cells[stands]["ms"]) if measured else math.inf)
            if ratios and sum(ratios) < least:
                best, least = value, sum(ratios)
        winners[entry] = best
        for table in dict.fromkeys(e.table for e in winners):
            mine = {e: v for e, v in winners.items() if e.table == table}
            log.write({"cell": f"winners/{folder}/{table}", "python": python(folder, table, mine)})


def _trial(entry: Entry, value: Any, kind: str, call: Any, dtype: torch.dtype, tiny: bool) -> Callable[[], Record]:
    def run() -> Record:
        torch.manual_seed(0)
        inputs = call.make(device(), dtype)
        wanted = results(call, inputs) if value != entry.value else []
        with entry.holding(value):
            off = (
                max((error(got, want) for got, want in zip(results(call, inputs), wanted)), default=0.0)
                if wanted
                else 0.0
            )
            if not off <= TOLERANCE[dtype]:
                raise ValueError(f"computes something else: off by {off:.2g}")
            return {"ms": phase(call, inputs, kind, tiny), "config": list(value)}

    return run


def python(folder: str, table: str, winners: dict[Entry, Any]) -> str:
    """The whole table with these entries in it, as it can be pasted into the folder's configs.py."""
    with contextlib.ExitStack() as stack:
        for entry, value in winners.items():
            stack.enter_context(entry.holding(value))
        rows = [
            f"    {key!r}: {_written(value)},".replace("'", '"')
            for key, value in getattr(configs(folder), table).items()
        ]
    kind = configs(folder).__annotations__.get(table)
    return "\n".join([f"{table}{f': {kind}' if kind else ''} = {{", *rows, "}"])


def _written(value: Any) -> str:
    if not hasattr(value, "_fields"):
        return repr(value)
    defaults = type(value)._field_defaults
    numbers = list(value)
    while numbers and (name := value._fields[len(numbers) - 1]) in defaults and numbers[-1] == defaults[name]:
        numbers.pop()
    return f"{type(value).__name__}({', '.join(map(repr, numbers))})"
