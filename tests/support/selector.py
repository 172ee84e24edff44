"""A sync selector that is small enough for a test to run, untrained, as a run leaves it in its folder `best`."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import nn

from javisc.trainer.engine.config import as_dict, load_recipe
from javisc.trainer.engine.weights import write_weights
from javisc.trainer.models.sync.model import AVSync
from javisc.trainer.tasks.sync import SyncRecipe

#: SparseSync in small, as published but for its size: one second of 32 pixels, five offsets 0.2 s apart. Changes to `sync-demo`.
TINY = [
    "model.correlation=null",
    "alignment_weight=0",
    "transforms.crop_len_sec=1.0",
    "transforms.max_off_sec=0.4",
    "transforms.classes=5",
    "transforms.input_size=32",
    "model.transformer.classes=5",
    "model.transformer.width=16",
    "model.transformer.visual_shape=[20,8,8]",
    "model.transformer.audio_shape=[9,16]",
    "model.transformer.position_std=1.0",
    "model.visual_trunk.size=small",
    "model.audio_trunk.size=small",
    "transforms.audio_jitter_sec=0.02",
    "model.transformer.visual_selector.n_head=4",
    "model.transformer.audio_selector.n_head=4",
    "model.transformer.fusion.n_head=4",
    "model.transformer.visual_selector.n_layer=1",
    "model.transformer.audio_selector.n_layer=1",
    "model.transformer.fusion.n_layer=1",
]


def write_best(folder: Path, overrides: list[str] | None = None) -> Path:
    """Weights and recipe of `sync-demo` with the overrides, from a fixed seed, tuned so that clips get different answers."""
    recipe = load_recipe("sync-demo", SyncRecipe, TINY if overrides is None else overrides)
    torch.manual_seed(0)
    model = AVSync(recipe.model).eval()
    with torch.no_grad():
        for layer in model.transformer.modules():
            if isinstance(layer, nn.Linear):
                layer.weight *= 20
        # What the head sees of one clip is nearly what it sees of any: only the rest shall count, and much.
        seen: list[torch.Tensor] = []
        hook = model.transformer.off_head.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
        size, seconds = recipe.transforms.input_size, recipe.transforms.crop_len_sec
        vis = torch.zeros(8, int(seconds * 25), 3, size, size) + torch.linspace(-2, 2, 8).view(8, 1, 1, 1, 1)
        model(vis, torch.randn(8, 1, 257, int(seconds * 125) + 1))
        hook.remove()
        mean = seen[0].mean(0)
        mean /= mean.norm()
        weight = model.transformer.off_head.weight
        weight.copy_(100 * (weight - weight @ mean[:, None] * mean))
    write_weights(folder, model.state_dict())
    (folder / "recipe.json").write_text(json.dumps(as_dict(recipe)))
    return folder
