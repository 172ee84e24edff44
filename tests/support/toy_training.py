"""A training run small enough to be killed many times: a sync model of a few thousand weights with norms and dropout.

Runs are started as processes of their own, forked from a server that has imported torch once.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import os
import signal
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partialmethod
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter, load
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from javisc.trainer.data.sources.numbered import Many, NumberedSource
from javisc.trainer.engine import checkpoint
from javisc.trainer.engine.config import Recipe, load_recipe
from javisc.trainer.engine.hooks import Hook, Run
from javisc.trainer.engine.loop import Outcome, train
from javisc.trainer.models.sync import resnet, s3d
from javisc.trainer.models.sync.config import AVSyncConfig, FullAttentionConfig, FusionConfig, TrunkConfig
from javisc.trainer.models.sync.model import AVSync
from support.processes import forkserver

RECIPE = """
task: toy
seed: 5
run: {steps: 12, checkpoint_every: 3, log_every: 2, tensorboard: false}
optimizer: {lr: 0.001}
schedule: {warmup_steps: 4}
ema: {decay: 0.9}
resting_pictures: true
"""


@dataclass
class ToyRecipe(Recipe):
    batch_size: int = 4
    samples: int = 20
    dropout: float = 0.1
    frozen_trunks: bool = False
    #: The trunk of the pictures rests, that of the sounds learns: a checkpoint costs half a millisecond a tensor, and so more
    #: than the steps before it.
    resting_pictures: bool = False
    poison_from: int = -1
    #: Blocks: the transformer's alone, or the trunks' stages with their batch norms, too.
    all_blocks: bool = False
    #: The loss as terms by name.
    terms: bool = False
    data: list[str] = field(default_factory=list)


class ToyTask:
    """Tells which of five shifts a random sound has against a random picture: nothing to learn, everything to compute."""

    def __init__(self, recipe: ToyRecipe, die_at: int = -1, slow: float = 0.0) -> None:
        self.recipe, self.die_at, self.slow = recipe, die_at, slow
        self.calls = 0

    def build(self) -> nn.Module:
        return self.model()

    def model(self) -> nn.Module:
        """As thin as it gets, since a checkpoint costs by the tensor: trunks of a stage or two, and blocks that are all alike."""
        drop = dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop"), self.recipe.dropout)
        rest = self.recipe.frozen_trunks
        with (
            mock.patch.dict(resnet.BLOCKS, small=[1]),
            mock.patch.dict(s3d.SPECS, small=s3d.SPECS["small"][:4]),
        ):
            return AVSync(
                AVSyncConfig(
                    visual_trunk=TrunkConfig(size="small", trained=not (rest or self.recipe.resting_pictures)),
                    audio_trunk=TrunkConfig(size="small", trained=not rest),
                    audio_bridge="conv",
                    full_attention=FullAttentionConfig(
                        classes=5,
                        width=16,
                        visual_shape=(1, 4, 4),
                        audio_shape=(3, 5),
                        stack=FusionConfig(n_layer=2, n_head=2, **drop),
                    ),
                )
            )

    def carry_over(self, model: nn.Module) -> None:
        return None

    def blocks(self, model: nn.Module) -> list[nn.Module]:
        assert isinstance(model, AVSync)
        if self.recipe.all_blocks:
            return model.blocks()
        return [*model.transformer.blocks]  # type: ignore[union-attr]

    def make(self, number: int, seed: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        vis, aud = torch.randn(2, 3, 16, 16, generator=generator), torch.randn(1, 17, 17, generator=generator)
        if self.recipe.poison_from >= 0 and number >= self.recipe.poison_from:
            vis.fill_(float("nan"))
        return {"vis": vis, "aud": aud, "target": torch.tensor(number % 5)}

    def source(self, rank: int, world: int) -> NumberedSource[dict[str, Tensor]]:
        recipe = self.recipe
        return NumberedSource(recipe.samples, self.make, recipe.batch_size, seed=recipe.seed, rank=rank, world=world)

    def size(self, batch: Many[Any]) -> int:
        return len(batch.samples)

    def tokens(self, batch: Many[Any]) -> int:
        return 2 * len(batch.samples)

    def keys(self, batch: Many[Any]) -> list[str]:
        return batch.keys

    def flops(self, batch: Many[Any]) -> float:
        return 1e6 * len(batch.samples)

    def loss(self, model: nn.Module, batch: Many[Any], device: torch.device) -> Tensor | dict[str, Tensor]:
        self.calls += 1
        if self.calls == self.die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(self.slow)
        stacked = {key: torch.stack([s[key] for s in batch.samples]).to(device) for key in ("vis", "aud", "target")}
        _, logits = model(stacked["vis"], stacked["aud"])
        loss = F.cross_entropy(logits, stacked["target"], reduction="sum")
        return (
            {"loss": loss, "entropy": -(logits.softmax(1) * logits.log_softmax(1)).sum()} if self.recipe.terms else loss
        )

    def validate(self, model: nn.Module, rank: int, world: int, device: torch.device) -> dict[str, float]:
        return {"accuracy_1": float(torch.rand(()))}


def digest(model: nn.Module) -> str:
    """A digest of all weights and norm statistics, bit for bit."""
    state = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        whole = value.full_tensor() if hasattr(value, "full_tensor") else value
        state.update(key.replace("_checkpoint_wrapped_module.", "").encode())
        state.update(whole.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return state.hexdigest()


class DyingWriter(FileSystemWriter):
    """Kills its process while it writes its second checkpoint: before its tensors, after them, or after DCP's index."""

    where = ""
    written = 0

    def die(self, where: str) -> None:
        if where == DyingWriter.where and DyingWriter.written > 1:
            os.kill(os.getpid(), signal.SIGKILL)

    def write_data(self, plan: Any, planner: Any) -> Any:
        DyingWriter.written += 1
        self.die("before")
        done = super().write_data(plan, planner)
        done.wait()
        self.die("after")
        return done

    def finish(self, metadata: Any, results: Any) -> None:
        super().finish(metadata, results)
        self.die("index")


def run(
    folder: Path,
    overrides: Sequence[str] = (),
    *,
    resume: bool = False,
    die_at: int = -1,
    die_saving: str = "",
    slow: float = 0.0,
    die: int = -1,
    begin: str = "",
    hooks: Sequence[Hook] = (),
    backend: str = "",
) -> Outcome | None:
    """One process's part of a run. Writes the digest of the final weights to result-RANK in the folder.

    With `die` it ends after that step as if it had been killed, but its checkpoint was written; the answer is None. backend:
    what torch.compile hands its graphs to, for the whole process.
    """
    if backend:
        nn.Module.compile = partialmethod(nn.Module.compile, backend=backend)  # type: ignore[assignment]
    if die_saving:
        DyingWriter.where = die_saving
        checkpoint.FileSystemWriter = DyingWriter
    folder.mkdir(parents=True, exist_ok=True)
    rank = int(os.environ.get("RANK", 0))
    path = folder / f"toy-{rank}.yaml"
    path.write_text(RECIPE)
    recipe = load_recipe(str(path), ToyRecipe, overrides)

    def write(model: nn.Module) -> None:
        (folder / f"result-{rank}").write_text(digest(model))

    task = ToyTask(recipe, die_at, slow)
    options: dict[str, Any] = {"resume": resume, "last": write, "begin": begin, "hooks": hooks}
    if die < 0:
        return train(recipe, task, folder, **options)
    save = checkpoint.Checkpoints.save

    def saves(self: Any, step: int, tensors: Any, state: Any, *, wait: bool = False) -> None:
        save(self, step, tensors, state, wait=True)

    with mock.patch.object(checkpoint.Checkpoints, "save", saves), contextlib.suppress(_Died):
        train(recipe, task, folder, **{**options, "hooks": [_Dies(die)]})
    assert checkpoint.complete(folder / checkpoint.CHECKPOINTS), "without a checkpoint, what follows is a new run"
    return None


class _Died(Exception):
    pass


class _Dies(Hook):
    """Ends a run after a step as if it had been killed there, its checkpoint written."""

    def __init__(self, step: int) -> None:
        self.step = step

    def stepped(self, run: Run) -> None:
        if run.step > self.step:
            raise _Died


def _rank(
    program: str,
    environment: dict[str, str],
    log: Path,
    folder: Path,
    overrides: Sequence[str],
    options: dict[str, Any],
) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    module, function = program.split(":")
    getattr(importlib.import_module(module), function)(folder, overrides, **options)


class Ranks:
    """Processes of one run, each calling `program`(folder, overrides, …). `die_at` kills one of them (`victim`) with SIGKILL
    in that step, `die_saving` while it writes its second checkpoint."""

    def __init__(
        self,
        folder: Path,
        overrides: Sequence[str] = (),
        *,
        program: str = "support.toy_training:run",
        world: int = 1,
        victim: int = 0,
        die_at: int = -1,
        die_saving: str = "",
        **options: Any,
    ) -> None:
        context = forkserver()
        folder.mkdir(parents=True, exist_ok=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.folder, self.processes, self.logs = folder, [], []
        for rank in range(world):
            environment = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
            environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
            mine = options if rank != victim else options | {"die_at": die_at, "die_saving": die_saving}
            mine = {name: value for name, value in mine.items() if value not in (-1, "")}
            log = folder / f"log-{rank}.txt"
            process = context.Process(target=_rank, args=(program, environment, log, folder, tuple(overrides), mine))
            process.start()
            self.processes.append(process)
            self.logs.append(log)

    def wait(self, timeout: float = 240) -> list[int | None]:
        """The exit codes, once all have ended; what hangs is killed and fails the test."""
        end = time.monotonic() + timeout
        for process in self.processes:
            process.join(max(0.0, end - time.monotonic()))
        hung = [process for process in self.processes if process.is_alive()]
        for process in hung:
            process.kill()
            process.join()
        assert not hung, f"{len(hung)} of {len(self.processes)} processes hung\n" + self.told()
        return [process.exitcode for process in self.processes]

    def kill(self, folder: Path, step: int) -> list[int | None]:
        """Kill all processes at once when the log tells of `step`; their exit codes."""
        while step not in losses(folder) and all(process.is_alive() for process in self.processes):
            time.sleep(0.01)
        for process in self.processes:
            process.kill()
        return self.wait()

    def told(self) -> str:
        return "\n".join(log.read_text()[-3000:] for log in self.logs if log.exists())

    def digests(self) -> set[str]:
        """The digests of a run that must have ended well: one, if the processes agree."""
        assert self.wait() == [0] * len(self.processes), self.told()
        return {(self.folder / f"result-{rank}").read_text() for rank in range(len(self.processes))}


def saved(folder: Path, step: int) -> dict[str, Tensor]:
    """All tensors of a run's checkpoint, whole, without the random generators'."""
    reader = FileSystemReader(folder / "checkpoints" / f"step-{step:08d}")
    index = reader.read_metadata().state_dict_metadata
    tensors = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in index.items()
        if isinstance(entry, TensorStorageMetadata) and not name.startswith("random.")
    }
    load(tensors, storage_reader=reader, no_dist=True)
    return tensors


def losses(folder: Path) -> dict[int, float]:
    """Loss by step, from a run's log; a line that is being written is left out."""
    log = folder / "metrics.jsonl"
    lines = log.read_text().splitlines(keepends=True) if log.exists() else []
    rows = [json.loads(line) for line in lines if line.endswith("\n")]
    return {row["step"]: row["loss"] for row in rows if row["kind"] == "train"}
