"""Weights that others load: `best/` and `last/` of a run, and those of a checkpoint, each folder whole or as it was before."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from javisc.manifests.files import published_folder
from javisc.trainer.engine.distributed import World, bare
from javisc.trainer.engine.optim import EMA
from javisc.trainer.engine.weights import write_weights

#: What stands beside the weights: the recipe, and which step they are of.
RECIPE, ORIGIN = "recipe.json", "origin.json"


@torch.no_grad()
def save_weights(
    folder: Path,
    model: nn.Module,
    ema: EMA | None,
    settings: Mapping[str, Any],
    here: World,
    origin: Mapping[str, Any],
) -> None:
    """Write the weights (of the average, where there is one) as safetensors, whole, under their own names; the recipe; where they
    come from; and config.json, if the model's configuration writes one, so that the folder is what others load.

    Tensors are gathered one after another, and only the first process keeps them, in host memory. The others wait for it.
    """
    if ema is not None:
        ema.swap()
    whole = whole_state(model)
    if here.first:
        write_folder(folder, whole, settings, origin, getattr(bare(model), "config", None))
    if ema is not None:  # not before it is written: on the CPU, what was gathered may be the parameters themselves
        ema.swap()
    dist.barrier(here.control)


def whole_state(model: nn.Module) -> dict[str, Tensor]:
    """All tensors of a spread model by their own names, in host memory of the first process; {} on the others."""
    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    return {name: value for name, value in state.items() if isinstance(value, Tensor)} if dist.get_rank() == 0 else {}


def write_folder(
    folder: Path, tensors: Mapping[str, Tensor], settings: Mapping[str, Any], origin: Mapping[str, Any], config: Any
) -> None:
    """Publish a folder of weights, whole. `config` writes its config.json, if it can."""
    with published_folder(folder) as new:
        write_weights(new, tensors)
        (new / RECIPE).write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
        (new / ORIGIN).write_text(json.dumps(dict(origin), indent=1) + "\n", encoding="utf-8")
        if save := getattr(config, "save", None):
            save(new / "config.json")
