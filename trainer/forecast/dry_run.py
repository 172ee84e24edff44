"""What a run would be, without running it: batches, parameters, memory, arithmetic, kernels.

The model is never allocated: one forward pass runs on fake tensors (`footprint`).
"""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from javisc.trainer.engine.config import Recipe
from javisc.trainer.engine.distributed import check
from javisc.trainer.engine.peaks import peak_flops
from javisc.trainer.forecast.footprint import footprint
from javisc.trainer.forecast.parallel_plan import Links, on_many, plan
from javisc.trainer.task import Task

LINKS = Links()
#: What `memory` counts, and how a person is told.
PARTS = {
    "weights": "trained weights",
    "frozen": "frozen weights and buffers",
    "gathered": "weights gathered for the running and the next block",
    "gradients": "gradients",
    "unreduced": "gradients on their way",
    "optimizer": "optimizer",
    "average": "moving average",
    "activations": "activations",
}


def dry_run(recipe: Recipe, task: Task[Any]) -> dict[str, Any]:
    """Batches per epoch, the first batch, parameters (trained and frozen), bytes per process, FLOPs of a step, kernels taken.

    Raises UserError for a strategy or precision that does not exist, and what opening the data raises.
    """
    check(recipe.parallel)
    world = int(os.environ.get("WORLD_SIZE", 1))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    source = task.source(0, world)
    try:
        batches = len(source)
        batch = next(iter(source))
        sampler = getattr(getattr(source, "loader", None), "sampler", None)
        pictures = "" if sampler is None else sampler.plan()[0].pictures_said
    finally:
        source.close()
    with FakeTensorMode():
        model = task.model()
        blocks = task.blocks(model)
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
        here = plan(model, blocks, recipe, world)
        elsewhere = on_many(model, blocks, recipe)
    seen = footprint(task, batch, recipe.parallel, device)
    memory = {
        **here.memory,
        "activations": seen.checkpointed if recipe.parallel.checkpoint_blocks else seen.activations,
    }
    steps = recipe.run.accumulate * world
    return {
        "task": recipe.task,
        "processes": world,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "strategy": recipe.parallel.strategy,
        "precision": recipe.parallel.precision,
        "steps": recipe.run.steps,
        "batches_per_epoch": batches,
        "samples_per_step": task.size(batch) * steps,
        "tokens_per_step": task.tokens(batch) * steps,
        "pictures": pictures,
        "batch": {name: list(value.shape) for name, value in vars(batch).items() if isinstance(value, torch.Tensor)},
        "parameters_trained": trained,
        "parameters_frozen": frozen,
        "memory": memory,
        "memory_total": sum(memory.values()),
        "activations_plain": seen.activations,
        "activations_checkpointed": seen.checkpointed,
        "step_tflop": (task.flops(batch) or seen.flops) * steps / 1e12,
        "peak_tflops_per_sec": (peak_flops(device, recipe.parallel.precision) or 0.0) / 1e12 or None,
        "sent_per_step": {name: asdict(sent) for name, sent in here.traffic.items()},
        "checkpoint": here.checkpoint,
        "plan": [
            {"gpus": gpus, "strategy": strategy, "memory": sum(on.memory.values()), "sent": asdict(on.sent)}
            for gpus, strategy, on in elsewhere
        ],
        "kernels": [
            {"op": op, "backend": backend, "dtype": dtype, "head_dim": width, "uses": list(uses), "calls": calls}
            for (op, backend, dtype, width, uses), calls in sorted(seen.kernels.items())
        ],
    }


def told(report: dict[str, Any]) -> str:
    """The report for a person."""
    r = report
    shapes = ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in r["batch"].items())
    lines = [
        f"{r['task']}: {r['steps']} steps on {_many(r['processes'], 'process', 'es')} ({r['device']}), "
        f"{r['strategy']}, {r['precision']}",
        "",
        *_column(
            {
                "batches per epoch": f"{r['batches_per_epoch']} for each process",
                "a step": f"{r['samples_per_step']} samples, {r['tokens_per_step']:,} tokens",
                "first batch": shapes,
                **({"pictures": r["pictures"]} if r.get("pictures") else {}),
                "parameters": f"{r['parameters_trained']:,} trained, {r['parameters_frozen']:,} frozen",
                "arithmetic": _arithmetic(r),
            }
        ),
        "",
        "memory of a process, from the first batch",
        *_column(
            {**{PARTS[key]: _bytes(value) for key, value in r["memory"].items()}, "together": _bytes(r["memory_total"])}
        ),
        f"  activations: {_bytes(r['activations_plain'])} plain, {_bytes(r['activations_checkpointed'])} with "
        "parallel.checkpoint_blocks=true",
        f"  a checkpoint: {_bytes(r['checkpoint']['whole'])}, of which each process writes {_bytes(r['checkpoint']['written'])}",
        "",
        "on more GPUs: memory of each without activations, bytes that each sends in a step, and their time alone",
        f"(assumes {_bytes(LINKS.nvlink)}/s within nodes of {LINKS.node}, {_bytes(LINKS.network)}/s a GPU between them)",
        *_column(_scales(r["plan"])),
        "",
        "kernels on this device (forward calls of a batch)",
    ]
    calls = {
        " ".join([entry["op"], *(["heads of", str(entry["head_dim"])] if entry["head_dim"] else []), *entry["uses"]]): (
            f"{entry['backend']}, {entry['dtype']}, {entry['calls']}"
        )
        for entry in r["kernels"]
    }
    return "\n".join([*lines, *(_column(calls) or ["  none"])])


def _arithmetic(report: dict[str, Any]) -> str:
    work, peak = report["step_tflop"], report["peak_tflops_per_sec"]
    seconds = f", {work / report['processes'] / peak:.3g} s at the data sheet's {peak:g} TFLOP/s" if peak else ""
    return f"{work:.3g} TFLOP a step{seconds}"


def _scales(plans: list[dict[str, Any]]) -> dict[str, str]:
    """A line for each number of GPUs, all strategies beside each other."""
    lines: dict[str, str] = {}
    for row in plans:
        sent = row["sent"]
        cell = f"{row['strategy']} {_bytes(row['memory'])}, {_bytes(sent['bytes'])}, {1e3 * sent['seconds']:.0f} ms"
        key = str(row["gpus"])
        lines[key] = f"{lines[key]} {cell:<33}" if key in lines else f"{cell:<33}"
    return {key: line.rstrip() for key, line in lines.items()}


def _column(rows: dict[str, str]) -> list[str]:
    width = max((len(name) for name in rows), default=0)
    return [f"  {name:<{width}}  {value}" for name, value in rows.items()]


def _many(count: int, word: str, ending: str) -> str:
    return f"{count} {word}{ending if count != 1 else ''}"


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
