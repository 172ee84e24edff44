"""The joint DiT's plans as Markdown: `python -m javisc.trainer.forecast.parallel_table docs/parallel.md` writes them between its
marks."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from javisc.manifests.errors import UserError
from javisc.manifests.files import published
from javisc.trainer.engine.config import Recipe
from javisc.trainer.engine.distributed import ParallelConfig
from javisc.trainer.forecast.parallel_plan import Plan, on_many
from javisc.trainer.models.dit import PRESETS, VASTDiT3
from javisc.trainer.models.dit.stages import freeze

BEGIN, END = "<!-- plans -->\n", "<!-- end of plans -->\n"
ALL = (8, 16, 32, 64, 128, 256, 512)
FEW = (8, 64, 512)
#: title, preset, whether its freezing is lifted, numbers of GPUs
MODELS: tuple[tuple[str, str, bool, Sequence[int]], ...] = (
    ("XL/2, stage 3 (audio and video branches frozen)", "VASTDiT3-XL/2", False, ALL),
    ("XL/2, stage 1 (audio branch)", "VASTDiT3-XL/2-audio", False, FEW),
    ("XL/2, everything trained", "VASTDiT3-XL/2", True, FEW),
    ("3B/2, stage 3", "VASTDiT3-3B/2", False, FEW),
    ("3B/2, everything trained", "VASTDiT3-3B/2", True, FEW),
)
HEADER = (
    "| GPUs | strategy | memory | weights | frozen | gradients | Adam and average | gathered, on their way "
    "| checkpoint: a process writes | gathers | scatters | all-reduces | collectives | alone |\n|--:|---|"
    + "--:|" * 12
    + "\n"
)


def section(title: str, preset: str, everything: bool, gpus: Sequence[int]) -> str:
    """One model's table: AdamW, an average, bf16, one micro-batch a step."""
    config = PRESETS[preset]
    if everything:
        config = dataclasses.replace(
            config, freeze_y_embedder=False, freeze_video_branch=False, freeze_audio_branch=False
        )
    with torch.device("meta"):
        model = VASTDiT3(config)
    freeze(model)
    recipe = Recipe(task="jav", parallel=ParallelConfig(precision="bf16"))
    recipe.optimizer.name, recipe.ema.decay = "adamw", 0.9999
    trained, whole = (
        sum(p.numel() for p in model.parameters() if p.requires_grad or also_frozen) / 1e9
        for also_frozen in (False, True)
    )
    plans = on_many(model, [modules[index] for modules, index in model.blocks()], recipe, gpus)
    written = plans[0][2].checkpoint["whole"] / 1e9
    rows = "".join("| " + " | ".join(_cells(*row)) + " |\n" for row in plans)
    counts = (
        f"{trained:.2f} of {whole:.2f} billion parameters are trained; a checkpoint under DDP has {written:.1f} GB."
    )
    return f"### {title}\n\n{counts}\n\n{HEADER}{rows}"


def _cells(gpus: int, strategy: str, plan: Plan) -> Iterator[str]:
    memory = plan.memory
    yield from (str(gpus), strategy)
    parts = [
        sum(memory.values()),
        memory["weights"],
        memory["frozen"],
        memory["gradients"],
        memory["optimizer"] + memory["average"],
        memory["gathered"] + memory["unreduced"],
        plan.checkpoint["written"],
    ]
    sent = [plan.traffic[name].bytes if name in plan.traffic else 0 for name in _COLLECTIVES]
    yield from (f"{value / 1e9:.2f}" for value in (*parts, *sent))
    yield from (str(plan.sent.collectives), f"{1e3 * plan.sent.seconds:.0f} ms")


_COLLECTIVES = ("all-gather", "reduce-scatter", "all-reduce")


def write(path: Path) -> None:
    """Replace what stands between the marks in `path`. Raises UserError if they are not there."""
    text = path.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise UserError(f"{path} has no {BEGIN.strip()} and {END.strip()}: put them where the tables belong")
    tables = "\n".join(section(*model) for model in MODELS)
    with published(path) as temporary:
        temporary.write_text(f"{before}{BEGIN}\n{tables}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
