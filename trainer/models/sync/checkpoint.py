"""A published synchronisation checkpoint of either family as typed values, told apart by what its state dict holds."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from javisc.manifests.errors import UserError
from javisc.trainer.engine.checkpoint_io import read_pt, state_dict_of

#: How the reference names its experiments: by when they were started.
_STAMP = re.compile(r"\d\d-\d\d-\d\dT\d\d-\d\d-\d\d")
#: Files that are known under another name.
_ALIASES = {"synchformer_state_dict.pth": "24-01-04T16-39-21"}
#: 1024 samples: what the reader of that time lost at the start of clips with AAC's priming (VGGSound's and AudioSet's have it).
_LOST = 1024 / 16000
#: Published experiment → by how much the sound must be taken later to be what it was trained on (seconds).
ADVANCES = {
    # SparseSync on LRS3, then on VGGSound(-Sparse) and AudioSet
    "22-07-13T22-25-49": 0.0,
    "22-07-18T08-00-00": 0.0,
    "22-07-28T15-49-45": _LOST,
    "22-08-13T21-55-03": _LOST,
    "22-09-21T21-00-52": _LOST,
    "23-02-26T22-31-22": _LOST,
    # Synchformer's extractors, then the models of offsets, then that of synchronizability: LRS3, VGGSound, AudioSet
    "23-12-22T16-04-18": 0.0,
    "23-12-22T16-10-50": _LOST,
    "23-12-22T16-13-38": _LOST,
    "23-12-23T18-33-57": 0.0,
    "24-01-02T10-00-53": _LOST,
    "24-01-04T16-39-21": _LOST,
    "23-08-28T11-23-23": _LOST,
    "24-01-22T20-34-52": _LOST,
}


@dataclass(frozen=True)
class SyncCheckpoint:
    """What the reference's trainers save; the parts that only a continued training needs may be absent.

    `stamp` is the experiment's name, where the file or its own name tells it.
    """

    source: str
    model: dict[str, Tensor]
    config: dict[str, Any]
    optimizer: dict[str, Any] | None
    lr_scheduler: dict[str, Any] | None
    scaler: dict[str, Any] | None
    epoch: int | None
    loss: float | None
    metrics: dict[str, float]
    #: Checkpoints of older code nest the metrics under `off`. The reference's fine-tuning then fails to reset the best one.
    metrics_nested: bool
    model_type: str | None
    stamp: str | None = None

    @property
    def advance_sec(self) -> float:
        """By how much this experiment's sound was early (seconds): 0 unless it is one that is known to."""
        return ADVANCES.get(self.stamp or "", 0.0)


def read_sync_checkpoint(path: Path | str) -> SyncCheckpoint:
    """Read a published `.pt`, nothing of it executed: a training container of either family, or a bare state dict.

    Raises UserError if it is broken, hostile or of another kind.
    """
    loaded = read_pt(path)
    source = str(path)
    if not isinstance(loaded, Mapping):
        raise UserError(f"{source} is no synchronisation checkpoint: it holds a {type(loaded).__name__}, no dict")
    state = state_dict_of(loaded, source)
    if all(isinstance(value, Tensor) for value in loaded.values()):
        loaded = {}  # a bare state dict: what it holds are weights, whatever their names
    metrics = loaded.get("metrics") if isinstance(loaded.get("metrics"), Mapping) else {}
    nested = isinstance(metrics.get("off"), Mapping)
    for group in ("off", "sync_w_shifts"):
        if isinstance(metrics.get(group), Mapping):
            metrics = metrics[group]

    def part(name: str) -> dict[str, Any] | None:
        value = loaded.get(name)
        return dict(value) if isinstance(value, Mapping) else None

    def number(name: str) -> float | None:
        value = loaded.get(name)
        return value if isinstance(value, int | float) else None

    config, epoch = part("args") or {}, number("epoch")
    return SyncCheckpoint(
        source=source,
        model={name.removeprefix("module."): value for name, value in state.items()},
        config=config,
        optimizer=part("optimizer"),
        lr_scheduler=part("lr_scheduler"),
        scaler=part("scaler"),
        epoch=None if epoch is None else int(epoch),
        loss=number("loss"),
        metrics={key: float(value) for key, value in metrics.items() if isinstance(value, int | float)},
        metrics_nested=nested,
        model_type=loaded.get("model_type") if isinstance(loaded.get("model_type"), str) else None,
        stamp=_stamp(Path(source).name, config.get("start_time"), loaded.get("name")),
    )


def _stamp(file: str, *told: object) -> str | None:
    """The experiment's name: what the container says, else what the file's name says."""
    for text in (*told, _ALIASES.get(file, file)):
        if isinstance(text, str) and (found := _STAMP.search(text)):
            return found.group()
    return None
