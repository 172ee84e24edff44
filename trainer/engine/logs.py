"""What a run tells: JSON lines, TensorBoard, a line a person can read. Only the first process writes."""

from __future__ import annotations

import importlib
import json
import math
import sys
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from javisc.manifests.extras import missing
from javisc.manifests.files import published
from javisc.trainer.engine.config import Recipe, as_dict, as_yaml

#: Of a row, what the line for a person leaves out, and what it calls the rest.
HIDDEN = ("step_sec", "imbalance", "tflops_per_sec", "data_wait", "skipped", "memory_gb", "allocation_retries", "clips")
SHOWN = {"samples_per_sec": "samples/s", "mfu": "MFU"}


class Logs:
    """`metrics.jsonl` in the run's folder, and TensorBoard's files in `tensorboard/`.

    Resumed at step S, rows after S are dropped: the steps they tell of are taken again.
    """

    def __init__(self, folder: Path, recipe: Recipe, step: int, *, first: bool) -> None:
        self.first, self.config = first, recipe.run
        config = recipe.run
        self.started = time.monotonic()
        self.start_step = step
        self.board: Any = None
        self.wandb: Any = None
        if not first:
            return
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "metrics.jsonl"
        if path.exists():
            _drop_after(path, step)
        self.file: TextIO = path.open("a", encoding="utf-8")
        if config.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1 if step else None)
            self.board.add_text("recipe", "    " + as_yaml(recipe).replace("\n", "\n    "), step)
        if config.wandb:
            self.wandb = _wandb(folder, recipe)

    def row(self, step: int, kind: str, values: Mapping[str, float | int | str | list[str]]) -> None:
        """Write one row: `kind` is train, validate or event. What is not finite is null in it."""
        if not self.first:
            return
        sane = {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in values.items()}
        self.file.write(json.dumps({"step": step, "kind": kind, **sane}) + "\n")
        self.file.flush()
        numbers = {key: value for key, value in values.items() if isinstance(value, int | float)}
        if self.board is not None:
            for key, value in numbers.items():
                self.board.add_scalar(f"{kind}/{key}", value, step)
            self.board.flush()
        if self.wandb is not None:
            # The step is a value like others, and every chart's x-axis: a resumed run goes back to its checkpoint's.
            self.wandb.log({"step": step, **{f"{kind}/{key}": value for key, value in numbers.items()}})

    def progress(self, step: int, values: Mapping[str, float], total: int | None = None) -> None:
        """One line on standard error: where the run is, how it fares, when it will be done. `total`: the last step's number."""
        if not self.first:
            return
        total = self.config.steps if total is None else total
        seconds = time.monotonic() - self.started
        left = seconds / max(step - self.start_step, 1) * (total - step)
        told = "  ".join(f"{SHOWN.get(key, key)} {value:.4g}" for key, value in values.items() if key not in HIDDEN)
        print(f"step {step}/{total}  {told}  left {_clock(left)}", file=sys.stderr, flush=True)

    def image(self, step: int, name: str, pixels: NDArray[np.uint8]) -> None:
        """An image [H, W, 3] for TensorBoard and Weights & Biases."""
        if self.board is not None:
            self.board.add_image(name, pixels, step, dataformats="HWC")
            self.board.flush()
        if self.wandb is not None:
            import wandb

            self.wandb.log({"step": step, name: wandb.Image(pixels)})

    def clip(
        self, step: int, name: str, path: Path, frames: NDArray[np.uint8] | None, wave: Tensor, sample_rate: int
    ) -> None:
        """A clip for the logs: TensorBoard gets `frames` as an image and the sound [n], Weights & Biases the file with both."""
        if self.board is not None:
            if frames is not None:
                self.board.add_image(f"{name}/frames", frames, step, dataformats="HWC")
            self.board.add_audio(f"{name}/sound", wave, step, sample_rate)
            self.board.flush()
        if self.wandb is not None:
            import wandb

            made = wandb.Video(str(path), format="mp4") if path.suffix == ".mp4" else wandb.Audio(str(path))
            self.wandb.log({"step": step, name: made})

    def close(self) -> None:
        """Flush and close everything."""
        if self.first:
            self.file.close()
        if self.board is not None:
            self.board.close()
        if self.wandb is not None:
            self.wandb.finish()


def check_loggers(recipe: Recipe) -> None:
    """Raise UserError if what the run is to log to is not installed. A dry run, or `encode`, logs nothing and need not ask."""
    if recipe.run.wandb:
        try:
            importlib.import_module("wandb")
        except ImportError:
            raise missing("run.wandb=true", "wandb") from None


def _wandb(folder: Path, recipe: Recipe) -> Any:
    """The run at Weights & Biases: under a name of its own, with the recipe; resumed, it goes on there."""
    import wandb

    identity = folder / "wandb-id"
    if not identity.exists():  # two runs may have folders of one name
        identity.write_text(uuid.uuid4().hex, encoding="utf-8")
    name = recipe.run.name or folder.resolve().name
    run = wandb.init(
        dir=folder, resume="allow", id=identity.read_text(encoding="utf-8").strip(), name=name, config=as_dict(recipe)
    )
    run.define_metric("*", step_metric="step")
    return run


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"


def _drop_after(path: Path, step: int) -> None:
    """Rewrite a log without rows after `step`, and without a row that a kill cut short."""
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if row.get("step", 0) <= step:
            kept.append(line)
    with published(path) as temporary:
        temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
