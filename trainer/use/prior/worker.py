"""In a worker process: a part is made and published. The model stays between parts."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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
    items: Sequence[dict[str, Any]],
    whole: int,
    lost: Mapping[str, str],
    device: str | None = None,
    folder: str | None = None,
) -> dict[str, Any]:
    """Make the part `number` and publish it: shard, index, tables, and last the commit. Returns its samples, and `published`.

    items: fewer than the `whole` part has where it is only looked for the one that kills processes; nothing is published then.
    lost: items that did, with how: they are refused. device: cuda or cpu, None without networks. folder: for what is temporary.
    """
    made_by, model = _model(stage, settings, device)
    alive = [item for item in items if item["key"] not in lost]
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        made = made_by.work(Part(number, alive, header), model, Path(scratch)) if alive else Made()
        for item in items:
            if item["key"] in lost:
                made.refuse(item, "crashed", lost[item["key"]])
        if published := len(items) == whole:
            store = Store(out, Path(scratch) / "uploads")
            commit_shard(store, number, made.samples, made.rejects, schema=made_by.schema, header=header)
    return {"samples": len(made.samples), "published": published}


def _model(name: str, settings: dict[str, Any], device: str | None) -> tuple[Stage, Any]:
    global _loaded
    told = digest([name, settings, device])
    if _loaded is None or _loaded[0] != told:
        stage = stage_of(name, settings)
        model = None
        if device is not None:
            import torch

            torch.set_num_threads(1)
            model = stage.load("cuda:0" if device == "cuda" else device)  # the one GPU that this process sees
        _loaded = told, stage, model
    return _loaded[1:]
