"""In a worker process: a part is made and published. The model stays between parts."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from javisc.compiler.run.parts import split
from javisc.compiler.store.files import Store
from javisc.compiler.store.writer import commit_shard
from javisc.trainer.use.prior.stage import Made, Part, Stage, digest, stage_of

_loaded: tuple[str, Stage, Any] | None = None


def make(
    stage: str,
    settings: dict[str, Any],
    out: str,
    number: int,
    header: dict[str, str],
    items: Sequence[tuple[int, dict[str, Any]]],
    whole: int,
    lost: Sequence[tuple[int, str, str]],
    device: str | None = None,
    folder: str | None = None,
) -> bool:
    """Make the part `number` and publish it: shard, index, tables, and last the commit. See `parts.publish`.

    device: by torch's name, None without networks. folder: for what is temporary.
    """
    made_by, model = _model(stage, settings, device)
    alive, gone = split(items, lost)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        made = made_by.work(Part(number, list(alive.values()), header), model, Path(scratch)) if alive else Made()
        for place, item in items:
            if place in gone:
                made.refuse(item, *gone[place])
        if published := len(items) == whole:
            store = Store(out, Path(scratch) / "uploads")
            commit_shard(store, number, made.samples, made.rejects, schema=made_by.schema, header=header)
    return published


def _model(name: str, settings: dict[str, Any], device: str | None) -> tuple[Stage, Any]:
    global _loaded
    told = digest([name, settings, device])
    if _loaded is None or _loaded[0] != told:
        stage = stage_of(name, settings)
        model = None
        if device is not None:
            import torch

            torch.set_num_threads(1)
            model = stage.load(device)
        _loaded = told, stage, model
    return _loaded[1:]
