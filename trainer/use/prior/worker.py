"""In a worker process: a part is made and published. The model stays between parts."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Sums of many threads depend on how many there are; there is a process for every core anyway.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"

from javisc.compiler.store.files import Store  # noqa: E402
from javisc.compiler.store.writer import commit_shard  # noqa: E402
from javisc.trainer.use.claims import claim  # noqa: E402
from javisc.trainer.use.prior.stage import Made, Part, Stage, digest, stage_of  # noqa: E402

_loaded: tuple[str, Stage, Any] | None = None


def make(
    stage: str,
    settings: dict[str, Any],
    out: str,
    folder: str,
    devices: list[str],
    part: dict[str, Any],
    lost: Mapping[str, str],
    publish: bool = True,
    networks: bool = False,
) -> int:
    """Make a part and publish it: shard, index, tables, and last the commit. Returns its samples.

    lost: items that killed a worker, with how: they are refused. Without `publish` it is only tried.
    """
    made_by, model = _model(stage, settings, folder, devices if networks else [])
    wanted = Part(**part)
    alive = [item for item in wanted.items if item["key"] not in lost]
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        made = made_by.work(Part(wanted.number, alive, wanted.header), model, Path(scratch)) if alive else Made()
        for item in wanted.items:
            if item["key"] in lost:
                made.refuse(item, "crashed", lost[item["key"]])
        if publish:
            store = Store(out, Path(scratch) / "uploads")
            commit_shard(store, wanted.number, made.samples, made.rejects, schema=made_by.schema, header=wanted.header)
    return len(made.samples)


def _model(name: str, settings: dict[str, Any], folder: str, devices: list[str]) -> tuple[Stage, Any]:
    global _loaded
    told = digest([name, settings])
    if _loaded is None or _loaded[0] != told:
        stage = stage_of(name, settings)
        model = None
        if devices:
            import torch

            torch.set_num_threads(1)
            model = stage.load(claim(Path(folder), devices))
        _loaded = told, stage, model
    return _loaded[1:]
