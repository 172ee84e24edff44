"""What a run tells: JSON lines, TensorBoard, a line a person can read. Only the first process writes."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any, TextIO

from javisc.manifests.errors import UserError
from javisc.manifests.files import published
from javisc.trainer.engine.config import RunConfig


class Logs:
    """`metrics.jsonl` in the run's folder, and TensorBoard's files in `tensorboard/`.

    Resumed at step S, rows after S are dropped: the steps they tell of are taken again.
    """

    def __init__(self, folder: Path, config: RunConfig, step: int, *, first: bool) -> None:
        self.first, self.config = first, config
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
        if config.wandb:
            try:
                import wandb
            except ImportError as error:
                raise UserError("run.wandb=true needs the package wandb: pip install 'javisc[wandb]'") from error
            self.wandb = wandb.init(dir=folder, resume="allow", id=folder.resolve().name)

    def row(self, step: int, kind: str, values: dict[str, float | int | str | list[str]]) -> None:
        """Write one row: `kind` is train, validate or event."""
        if not self.first:
            return
        self.file.write(json.dumps({"step": step, "kind": kind, **values}) + "\n")
        self.file.flush()
        numbers = {key: value for key, value in values.items() if isinstance(value, int | float)}
        if self.board is not None:
            for key, value in numbers.items():
                self.board.add_scalar(f"{kind}/{key}", value, step)
        if self.wandb is not None:
            self.wandb.log({f"{kind}/{key}": value for key, value in numbers.items()}, step=step)

    def progress(self, step: int, values: dict[str, float]) -> None:
        """One line on standard error: where the run is, how it fares, when it will be done."""
        if not self.first:
            return
        seconds = time.monotonic() - self.started
        left = seconds / max(step - self.start_step, 1) * (self.config.steps - step)
        told = "  ".join(f"{key} {value:.4g}" for key, value in values.items())
        print(f"step {step}/{self.config.steps}  {told}  left {_clock(left)}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Flush and close everything."""
        if self.first:
            self.file.close()
        if self.board is not None:
            self.board.close()
        if self.wandb is not None:
            self.wandb.finish()


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
