"""What training any sync model shares: its batches, its metrics, weights to start from, an optimizer that is carried over."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from javisc.manifests.errors import UserError
from javisc.trainer.data.index import draws
from javisc.trainer.data.index.catalog import Catalog, split_of
from javisc.trainer.data.sources.held_out import HeldOut
from javisc.trainer.data.sources.reading import ReadData
from javisc.trainer.data.sources.sync import SyncBatch, SyncBatches, SyncDataOptions
from javisc.trainer.engine.checkpoint_io import read_pt
from javisc.trainer.engine.config import Recipe
from javisc.trainer.engine.lockstep import in_step
from javisc.trainer.engine.settings import setting
from javisc.trainer.engine.weights import read_weights
from javisc.trainer.models.sync.checkpoint import SyncCheckpoint, read_sync_checkpoint
from javisc.trainer.models.sync.metrics import sync_metrics
from javisc.trainer.task import CarryOver
from javisc.trainer.transforms.sync_chain import SyncTransforms

#: How the reference's files end; anything else is read as safetensors.
PICKLED = (".pt", ".pth", ".pyth")


@dataclass
class SyncData:
    """The batches. Splits are the manifest's; `fixed_offsets` takes evaluation crops from its columns where it has them.

    `iter_times` passes over the held-out data are pooled: more than one needs random crops. `evaluate_at_most` batches per
    pass and process are looked at, 0 meaning all. In training, each of `batch_size` picture crops goes with `offsets_per_clip`
    sounds at different offsets. `cache_mb` megabytes (10^6) of decoded clips are kept in memory by each process.
    """

    paths: list[str] = setting([], "The datasets; --data sets it.")
    batch_size: int = setting(10, "Clips of a process in a batch.", least=1)
    train_split: str | None = setting(
        "train", "Rows that are trained on, by the manifest's column split; null takes all."
    )
    valid_split: str | None = setting("val", "Rows that are held out; null validates nothing.")
    fixed_offsets: bool = setting(True, "Take evaluation crops from the manifest's columns where it has them.")
    iter_times: int = setting(1, "Passes over the held-out data that are pooled.", least=1)
    evaluate_at_most: int = setting(0, "Batches of a validation, per pass and process; 0 takes all.", least=0)
    threads: int = setting(2, "Threads that decode.", least=1)
    processes: bool = setting(
        False, "Decode and augment in data.threads processes beside the training one, where data.cache_mb is 0."
    )
    ahead: int = setting(2, "Batches that are read ahead.", least=1)
    ready: int = setting(1, "Finished batches that wait.", least=1)
    reader: ReadData = field(default_factory=ReadData)
    offsets_per_clip: int = setting(1, "Sounds that each picture crop goes with.", least=1)
    cache_mb: int = setting(0, "Megabytes of decoded clips that each process keeps; 0 keeps none.", least=0)


@dataclass
class SelectorRecipe(Recipe):
    """What the recipes of all sync models share. Each adds its model and where it starts, and may have transforms of its own."""

    data: SyncData = field(default_factory=SyncData)
    transforms: SyncTransforms = field(default_factory=SyncTransforms)


class SelectorTask:
    """A model (vis, aud) → (…, logits) over shards, and how well it tells what it was asked."""

    def __init__(self, recipe: Any, classes: int) -> None:
        recipe.transforms.check()
        if recipe.data.iter_times > 1 and recipe.data.fixed_offsets:
            raise UserError(
                "data.iter_times > 1 needs data.fixed_offsets=false: with fixed crops all passes would be the same"
            )
        if recipe.data.processes and recipe.data.cache_mb:
            raise UserError(
                f"data.processes=true with data.cache_mb={recipe.data.cache_mb}: decoded clips are kept in one process; set "
                "data.processes=false or data.cache_mb=0"
            )
        most = (classes + 1) // 2
        if not 1 <= recipe.data.offsets_per_clip <= most:
            raise UserError(
                f"data.offsets_per_clip={recipe.data.offsets_per_clip}: 1 to {most}, half of the classes, fit"
            )
        if not recipe.data.paths:
            raise UserError("no dataset: add --data DS, a folder that `javisc build sync` made")
        self.recipe, self.classes = recipe, classes
        self.held_out = passes(recipe.data, recipe.transforms, recipe.seed)

    def blocks(self, model: nn.Module) -> list[nn.Module]:
        """The model's repeated parts."""
        blocks: list[nn.Module] = model.blocks()  # type: ignore[operator]
        return blocks

    def carried(
        self, model: nn.Module, order: Callable[[SyncCheckpoint], Sequence[str]] | None = None
    ) -> CarryOver | None:
        """The optimizer of start.model, where the recipe asks for it. `order`: see `carried_over`. Raises UserError."""
        start = self.recipe.start
        if not start.carry_over:
            return None
        if not start.model or not start.model.endswith(PICKLED):
            raise UserError(
                "start.carry_over=true needs start.model=CHECKPOINT.pt of the reference: weights alone hold no optimizer"
            )
        checkpoint = read_sync_checkpoint(start.model)
        return carried_over(checkpoint, model, order(checkpoint) if order else None)

    def source(self, rank: int, world: int) -> SyncBatches:
        """Training batches of one rank. Raises UserError now if later there would be nothing to measure on."""
        data = self.recipe.data
        if self.recipe.run.validate_every and data.valid_split is not None:
            Catalog.open(data.paths, split=split_of(data.valid_split, False, rank))
        options = SyncDataOptions(
            data.batch_size,
            self.recipe.seed,
            data.train_split,
            threads=data.threads,
            ahead=data.ahead,
            offsets_per_clip=data.offsets_per_clip,
            cache_bytes=data.cache_mb * 1_000_000,
            ready=data.ready,
            processes=data.processes,
            reader=data.reader.options(),
        )
        return SyncBatches(data.paths, self.recipe.transforms, options, rank=rank, world=world)

    def close(self) -> None:
        """Stop what reads held-out clips."""
        self.held_out.close()

    def size(self, batch: SyncBatch) -> int:
        return len(batch.target)

    def keys(self, batch: SyncBatch) -> list[str]:
        return batch.keys

    def metrics(self) -> tuple[str, ...]:
        """What `validate` measures."""
        return () if self.recipe.data.valid_split is None else metric_names(self.classes)

    def validate(self, model: nn.Module, rank: int, world: int, device: torch.device) -> dict[str, float]:
        """The metrics over the held-out split, each process looking at its share; {} if the recipe names none."""
        split = self.recipe.data.valid_split
        return {} if split is None else self.evaluate(model, split, rank, world, device)

    def predictions(
        self, model: nn.Module, split: str | None, rank: int, world: int, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """Logits [N, classes] and targets [N] over a split, those of all processes and passes. Raises UserError if there are
        none."""
        return predictions(model, self.recipe.data, self.held_out, split, rank, world, device)

    def evaluate(
        self, model: nn.Module, split: str | None, rank: int, world: int, device: torch.device
    ) -> dict[str, float]:
        """The metrics and the loss over a split, all logits of all processes and passes pooled."""
        return measured(*self.predictions(model, split, rank, world, device))


@torch.no_grad()
def predictions(
    model: nn.Module,
    data: SyncData,
    sources: HeldOut[SyncBatch],
    split: str | None,
    rank: int,
    world: int,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """`SelectorTask.predictions` for a model that has no recipe."""
    logits: list[Tensor] = []
    targets: list[Tensor] = []
    for _, batch, counts in held_out(model, data, sources, split, rank, world):
        found = model(batch.pictures(device), batch.aud.to(device))[1].float().cpu()
        if counts:
            logits.append(found)
            targets.append(batch.target)
    every, wanted = pooled((torch.cat(logits), torch.cat(targets)) if logits else None, world)
    return every, wanted


def passes(data: SyncData, transforms: SyncTransforms, seed: int) -> HeldOut[SyncBatch]:
    """The passes over held-out data, by split, process, number of processes and pass."""

    def one(split: str | None, rank: int, world: int, turn: int) -> SyncBatches:
        # Every pass draws other crops; the same ones in every evaluation, so that a curve moves by the model alone.
        drawn = int(draws.bits(seed, "evaluate", turn)[0]) & (2**31 - 1)
        options = SyncDataOptions(
            data.batch_size,
            drawn,
            split,
            train=False,
            fixed=data.fixed_offsets,
            threads=data.threads,
            ahead=data.ahead,
            ready=data.ready,
            processes=data.processes,
            reader=data.reader.options(),
        )
        return SyncBatches(data.paths, transforms, options, rank=rank, world=world)

    return HeldOut(one)


def held_out(
    model: nn.Module, data: SyncData, sources: HeldOut[SyncBatch], split: str | None, rank: int, world: int
) -> Iterator[tuple[int, SyncBatch, bool]]:
    """(pass, batch, whether it counts) of this process's share of a split. Where the model is sharded, all take the same
    number of forward passes: what comes of a batch that does not count is thrown away."""
    for turn in range(data.iter_times):
        for batch, counts in in_step(model, sources(split, rank, world, turn), data.evaluate_at_most):
            yield turn, batch, counts


def evaluate_selector(
    model: nn.Module,
    transforms: SyncTransforms,
    paths: Sequence[str],
    split: str | None,
    *,
    fixed: bool = True,
    times: int = 1,
    batch_size: int = 10,
    threads: int = 2,
    seed: int = 1337,
) -> dict[str, float]:
    """A trained selector's metrics on a split of compiled datasets, in this process. Raises UserError."""
    data = SyncData(list(paths), batch_size, valid_split=split, fixed_offsets=fixed, iter_times=times, threads=threads)
    if times > 1 and fixed:
        raise UserError("--iter-times above 1 needs --random-crops: with fixed crops all passes would be the same")
    transforms.check()
    sources = passes(data, transforms, seed)
    try:
        return measured(*predictions(model, data, sources, split, 0, 1, next(model.parameters()).device))
    finally:
        sources.close()


def pooled(mine: tuple[Tensor, ...] | None, world: int) -> tuple[Tensor, ...]:
    """All processes' tensors, each kind in a row. Raises UserError if no process has any."""
    parts: list[tuple[Tensor, ...] | None] = [None] * world
    if world > 1:
        dist.all_gather_object(parts, mine)
    else:
        parts = [mine]
    have = [part for part in parts if part is not None]
    if not have:
        raise UserError("the held-out split has no clip that fits: check data.valid_split and the clips' lengths")
    return tuple(torch.cat(kind) for kind in zip(*have, strict=True))


def pooled_metrics(logits: Sequence[Tensor], targets: Sequence[Tensor], world: int) -> dict[str, float]:
    """Metrics and mean loss over all processes' logits. Raises UserError if there are none."""
    return measured(*pooled((torch.cat(list(logits)), torch.cat(list(targets))) if logits else None, world))


def measured(every: Tensor, wanted: Tensor) -> dict[str, float]:
    """Metrics and mean loss of logits [N, classes] and targets [N]."""
    return {**sync_metrics(every, wanted), "loss": float(F.cross_entropy(every, wanted)), "clips": float(len(wanted))}


def metric_names(classes: int) -> tuple[str, ...]:
    """What `pooled_metrics` measures of so many classes."""
    return tuple(pooled_metrics([torch.zeros(1, classes)], [torch.zeros(1, dtype=torch.long)], 1))


def carried_over(checkpoint: SyncCheckpoint, model: nn.Module, order: Sequence[str] | None = None) -> CarryOver:
    """A checkpoint's optimizer by this model's names: the reference numbers parameters in the order of its own model.

    `order`: the parameters' names in that order, where this model's is another. Raises UserError if the checkpoint has no
    optimizer or it is of another model.
    """
    optimizer, schedule, scaler = checkpoint.optimizer, checkpoint.lr_scheduler, checkpoint.scaler or {}
    named = dict(model.named_parameters())
    parameters = [(name, named[name]) for name in (order or named)]
    try:
        assert optimizer is not None and schedule is not None
        group = optimizer["param_groups"][0]
        numbers = [int(number) for number in group["params"]]
        if len(numbers) != len(parameters):
            raise UserError(f"{checkpoint.source} optimizes {len(numbers)} tensors, the model has {len(parameters)}")
        moments: dict[str, dict[str, Tensor]] = {}
        for number, (name, p) in zip(numbers, parameters, strict=True):
            state = optimizer["state"].get(number)
            if state is None:
                continue
            moments[name] = {"step": torch.as_tensor(float(state["step"]))}
            for key in ("exp_avg", "exp_avg_sq"):
                if state[key].shape != p.shape:
                    raise UserError(
                        f"{checkpoint.source}: the optimizer's {key} of tensor {number} does not fit {name}"
                    )
                moments[name][key] = state[key]
        rate = schedule["_schedulers"][0]["base_lrs"][0] if "_schedulers" in schedule else group["lr"]
        scale = scaler.get("scale")
        growth = int(scaler.get("_growth_tracker", 0))
        return CarryOver(
            moments, float(rate), int(schedule["last_epoch"]), None if scale is None else float(scale), growth
        )
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, AssertionError) as error:
        raise UserError(
            f"{checkpoint.source} holds no optimizer and schedule of the reference: set start.carry_over=false"
        ) from error


def contents(path: str) -> dict[str, Tensor]:
    """A weight file's tensors: the reference's .pt with whatever it holds, or safetensors."""
    loaded = read_pt(path) if path.endswith(PICKLED) else read_weights(Path(path))
    if not isinstance(loaded, dict):
        raise UserError(f"{path} holds no weights by name")
    return loaded


def whole_model_state(path: str) -> dict[str, Tensor]:
    """A whole model's state dict from the reference's checkpoint, or from what a run of ours left (`best/`)."""
    return read_sync_checkpoint(path).model if path.endswith(PICKLED) else read_weights(Path(path))
