"""A joint DiT from, and into, the official folder layout: `config.json` beside the weights."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from torch import Tensor

from javisc.trainer.engine.weights import load_strictly, read_weights, write_weights
from javisc.trainer.models.dit.config import VASTDiT3Config
from javisc.trainer.models.dit.model import VASTDiT3


def load(path: Path, *, dtype: torch.dtype = torch.float32, **options: object) -> VASTDiT3:
    """Build the model a folder describes and load its weights strictly; `options` replace config entries
    (`prior_attention=…`).

    A folder whose model lies in `model/` (a training run's) is accepted. Raises UserError where the folder does not
    fit.
    """
    if not (path / "config.json").is_file() and (path / "model" / "config.json").is_file():
        path = path / "model"
    config = VASTDiT3Config.from_options(
        dataclasses.asdict(VASTDiT3Config.load(path / "config.json")) | options, where=f"{path / 'config.json'}"
    )
    with torch.device("meta"):
        model = VASTDiT3(config).to(dtype)
    load_strictly(model, fit_caption_length(read_weights(path), config.model_max_length), str(path), assign=True)
    return model


def save(
    model: VASTDiT3, folder: Path, state: dict[str, Tensor] | None = None, *, max_shard_bytes: int = 5 << 30
) -> None:
    """Write the folder `load` and the reference read. `state` replaces the model's own tensors (gathered shards,
    EMA)."""
    write_weights(folder, model.state_dict() if state is None else state, max_shard_bytes=max_shard_bytes)
    model.config.save(folder / "config.json")


def fit_caption_length(tensors: dict[str, Tensor], tokens: int) -> dict[str, Tensor]:
    """Null captions of another length, as older files have: longer ones are cut, shorter ones repeat their last row."""

    def fit(value: Tensor) -> Tensor:
        return torch.cat((value[:tokens], value[-1:].expand(max(tokens - len(value), 0), -1)))

    names = ("y_embedder.y_embedding", "audio_y_embedder.y_embedding")
    return {name: fit(value) if name in names else value for name, value in tensors.items()}
