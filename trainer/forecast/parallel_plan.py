"""What a run holds and sends on any number of GPUs, from the model's shapes and the trainer's own rules; nothing is allocated.

What `distributed.spread` and `optim` do is written down here as arithmetic: master weights, gradients, moments and average as
float32 in shares, frozen parts whole, blocks gathered for forward and again for backward, gradients reduced as float32.
Times are those of rings: a collective over n GPUs takes n - 1 turns (an all-reduce twice that) of 1/n of its bytes and one hop
each. They assume `Links`, and say what would be waited for if nothing were computed meanwhile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from javisc.trainer.engine.config import Recipe
from javisc.trainer.engine.distributed import STRATEGIES, gathered_dtype, sharing

#: Bytes of a master weight, gradient, moment or average.
FULL = 4
#: DDP's default bucket.
BUCKET = 25 << 20


@dataclass(frozen=True)
class Links:
    """Assumed, not measured: bytes per second that a GPU sends at best, and seconds of a hop.

    The defaults are the data sheets' of an HGX H200 node (NVLink 4: 450 GB/s each way) with one 400 Gb/s adapter per GPU; the
    hops are of the order that NCCL's own tuning tables use.
    """

    node: int = 8
    nvlink: float = 450e9
    network: float = 50e9
    nvlink_hop: float = 1e-6
    network_hop: float = 5e-6

    def ring(self, size: int, stride: int = 1) -> tuple[float, float]:
        """(bytes per second of a GPU, seconds per turn) of a ring over `size` GPUs that lie `stride` apart.

        A ring leaves a node once, through the adapters of all its members there.
        """
        if size * stride <= self.node:
            return self.nvlink, self.nvlink_hop
        return min(self.nvlink, max(1, min(self.node // stride, size)) * self.network), self.network_hop


@dataclass(frozen=True)
class Unit:
    """Trained parameters that travel together, as (rows, elements of a row): a block, or all that is in none."""

    shapes: tuple[tuple[int, int], ...]
    is_root: bool = False

    @property
    def elements(self) -> int:
        return sum(rows * row for rows, row in self.shapes)

    def share(self, pieces: int) -> int:
        """Elements of the largest share: tensors are cut between rows; one of fewer rows than pieces still costs a row."""
        return sum(-(-rows // pieces) * row for rows, row in self.shapes)


@dataclass(frozen=True)
class Sent:
    """Bytes that each GPU sends in a step by one kind of collective, how many of them, and their time alone."""

    bytes: int = 0
    collectives: int = 0
    seconds: float = 0.0

    def __add__(self, other: Sent) -> Sent:
        return Sent(self.bytes + other.bytes, self.collectives + other.collectives, self.seconds + other.seconds)

    def times(self, number: int) -> Sent:
        """The same, `number` times."""
        return Sent(self.bytes * number, self.collectives * number, self.seconds * number)


@dataclass(frozen=True)
class Plan:
    """`memory`: bytes of a GPU by part, without activations. `traffic`: what it sends in a step, by collective.

    `checkpoint`: bytes of one whole, of the part each process writes, and of host memory it takes while it is written.
    """

    memory: dict[str, int]
    traffic: dict[str, Sent]
    checkpoint: dict[str, int]

    @property
    def sent(self) -> Sent:
        return sum(self.traffic.values(), Sent())


def units(model: nn.Module, blocks: Sequence[nn.Module]) -> list[Unit]:
    """What FSDP2 gathers at once: each block that learns, and the rest of the model last."""
    seen: set[int] = set()

    def unit(module: nn.Module, is_root: bool = False) -> Unit:
        mine = [p for p in module.parameters() if p.requires_grad and id(p) not in seen]
        seen.update(id(p) for p in mine)
        return Unit(tuple((p.shape[0], p[0].numel()) if p.ndim else (1, 1) for p in mine), is_root)

    return [made for made in (*map(unit, blocks), unit(model, is_root=True)) if made.shapes]


def plan(
    model: nn.Module, blocks: Sequence[nn.Module], recipe: Recipe, processes: int, links: Links | None = None
) -> Plan:
    """The plan of a step of `recipe` on so many GPUs. The model may be on the meta device.

    Raises UserError if the shard groups do not fit.
    """
    links = links or Links()
    pieces = sharing(recipe.parallel, processes)
    dtype = gathered_dtype(model, recipe.parallel)
    width = (dtype or torch.float32).itemsize
    parts = units(model, blocks)
    memory = _memory(model, parts, recipe, pieces, dtype)
    whole = _memory(model, parts, recipe, 1, dtype)
    buffers = sum(buffer.numel() * buffer.element_size() for buffer in model.buffers())
    written = buffers + sum(whole[name] for name in _KEPT)
    staged = buffers + sum(memory[name] for name in _KEPT)
    return Plan(
        memory,
        _traffic(parts, recipe.run.accumulate, pieces, processes, width, links),
        {"whole": written, "written": -(-written // processes), "host": staged},
    )


def on_many(
    model: nn.Module,
    blocks: Sequence[nn.Module],
    recipe: Recipe,
    gpus: Sequence[int] = (8, 16, 32, 64, 128, 256, 512),
    links: Links | None = None,
) -> list[tuple[int, str, Plan]]:
    """(GPUs, strategy, plan) for every number of them and every strategy; `hybrid` in the recipe's groups, or a node's."""
    links = links or Links()
    group = recipe.parallel.shard_group or links.node
    plans = []
    for count in gpus:
        for strategy in STRATEGIES:
            if strategy == "hybrid" and count % group:
                continue
            chosen = replace(recipe, parallel=replace(recipe.parallel, strategy=strategy, shard_group=group))
            plans.append((count, strategy, plan(model, blocks, chosen, count, links)))
    return plans


#: The parts of the memory that a checkpoint holds, beside buffers; what is frozen is written once.
_KEPT = ("weights", "optimizer", "average")


def _memory(
    model: nn.Module, parts: Sequence[Unit], recipe: Recipe, pieces: int, dtype: torch.dtype | None
) -> dict[str, int]:
    width = (dtype or torch.float32).itemsize
    held = FULL * sum(unit.share(pieces) for unit in parts)
    largest = sorted((unit.elements for unit in parts if not unit.is_root), reverse=True)[:2]
    root = sum(unit.elements for unit in parts if unit.is_root)
    trained = root + sum(unit.elements for unit in parts if not unit.is_root)
    frozen = sum(
        p.numel() * (p.element_size() if dtype is None else width) for p in model.parameters() if not p.requires_grad
    )
    sgd = recipe.optimizer.name == "sgd"
    moments = int(bool(recipe.optimizer.momentum)) if sgd else 2
    tensors = sum(len(unit.shapes) for unit in parts)
    cut = pieces > 1
    flying = (width + FULL) * max([*largest, root]) if cut else 0
    return {
        "weights": held,
        "frozen": frozen + sum(buffer.numel() * buffer.element_size() for buffer in model.buffers()),
        "gradients": held,
        # Adam counts the steps of every tensor by itself.
        "optimizer": moments * held + (0 if sgd else FULL * tensors),
        "average": held if recipe.ema.decay > 0 else 0,
        "gathered": width * (root + sum(largest)) if cut else 0,
        # Between micro-batches gradients are not reduced, and whole.
        "unreduced": flying + (FULL * trained if cut and recipe.run.accumulate > 1 else 0),
    }


def _traffic(
    parts: Sequence[Unit], micro_batches: int, pieces: int, processes: int, width: int, links: Links
) -> dict[str, Sent]:
    def collective(elements: int, size: int, itemsize: int, *, stride: int = 1, turns: int = 1) -> Sent:
        """One over `elements` in total, of which a turn sends 1/size."""
        if size == 1:
            return Sent()
        speed, hop = links.ring(size, stride)
        steps = turns * (size - 1)
        sent = itemsize * elements * steps // size
        return Sent(sent, 1, sent / speed + steps * hop)

    if pieces == 1:
        trained = sum(unit.elements for unit in parts)
        reduced = collective(trained, processes, FULL, turns=2)
        buckets = -(-FULL * trained // BUCKET)
        hops = 2 * (processes - 1) * links.ring(processes)[1] * (buckets - 1)
        return {
            "all-reduce": replace(reduced, collectives=buckets * reduced.collectives, seconds=reduced.seconds + hops)
        }
    gathered, scattered, reduced = Sent(), Sent(), Sent()
    for unit in parts:
        share = unit.share(pieces)
        # The root stays gathered from forward to backward.
        gathered += collective(share * pieces, pieces, width).times((1 if unit.is_root else 2) * micro_batches)
        scattered += collective(share * pieces, pieces, FULL)
        reduced += collective(share, processes // pieces, FULL, stride=pieces, turns=2)
    return {"all-gather": gathered, "reduce-scatter": scattered, "all-reduce": reduced}
