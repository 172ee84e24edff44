"""A published synchronisation checkpoint as typed values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from javisc.manifests.errors import UserError
from javisc.trainer.engine.checkpoint_io import read_pt, state_dict_of
from javisc.trainer.engine.weights import load_strictly
from javisc.trainer.models.sync.model import AVSync
from javisc.trainer.models.sync.official import build_model


@dataclass(frozen=True)
class SyncCheckpoint:
    """What the reference's trainer saves; the parts that only a continued training needs may be absent."""

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

    def build(self) -> AVSync:
        """The model its own config describes, with its weights."""
        node = self.config.get("model")
        if not isinstance(node, Mapping):
            raise UserError(f"{self.source} holds no config of its model: name the model's settings instead")
        model = build_model(node)
        load_strictly(model, self.model, self.source)
        return model


def read_sync_checkpoint(path: Path | str) -> SyncCheckpoint:
    """Read a published `.pt`, nothing of it executed. Raises UserError if it is broken, hostile or of another kind."""
    loaded = read_pt(path)
    source = str(path)
    if not isinstance(loaded, Mapping) or not isinstance(loaded.get("model"), Mapping):
        raise UserError(f"{source} is no synchronisation checkpoint: it has no entry 'model'")
    metrics = loaded.get("metrics") or {}
    nested = isinstance(metrics.get("off"), Mapping)

    def part(name: str) -> dict[str, Any] | None:
        value = loaded.get(name)
        return dict(value) if isinstance(value, Mapping) else None

    def number(name: str) -> float | None:
        value = loaded.get(name)
        return value if isinstance(value, int | float) else None

    epoch = number("epoch")
    return SyncCheckpoint(
        source=source,
        model=state_dict_of(loaded["model"], source),
        config=part("args") or {},
        optimizer=part("optimizer"),
        lr_scheduler=part("lr_scheduler"),
        scaler=part("scaler"),
        epoch=None if epoch is None else int(epoch),
        loss=number("loss"),
        metrics={key: float(value) for key, value in (metrics["off"] if nested else metrics).items()},
        metrics_nested=nested,
        model_type=loaded.get("model_type"),
    )
