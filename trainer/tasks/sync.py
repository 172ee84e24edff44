"""Training the sync selector: SparseSync from compiled shards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from javisc.manifests.errors import UserError
from javisc.trainer.data import draws
from javisc.trainer.data.sync import SyncBatch, SyncBatches, SyncDataOptions
from javisc.trainer.engine.checkpoint_io import read_pt
from javisc.trainer.engine.config import Recipe
from javisc.trainer.engine.settings import setting
from javisc.trainer.engine.weights import load_strictly, read_weights
from javisc.trainer.forecast.flops import Tally
from javisc.trainer.models.sync.alignment import PARTS
from javisc.trainer.models.sync.checkpoint import SyncCheckpoint, read_sync_checkpoint
from javisc.trainer.models.sync.config import AVSyncConfig
from javisc.trainer.models.sync.flops import sync_flops, sync_grids
from javisc.trainer.models.sync.metrics import sync_metrics
from javisc.trainer.models.sync.model import AVSync, to_channels_last
from javisc.trainer.models.sync.official import audio_trunk_state, visual_trunk_state
from javisc.trainer.task import CarryOver
from javisc.trainer.transforms.sync_chain import SyncTransforms


@dataclass
class SyncStart:
    """What the weights start from: a whole model, or the two trunks. Files are .pt of the reference or safetensors."""

    model: str | None = None
    visual_trunk: str | None = None
    audio_trunk: str | None = None
    #: Continue with the checkpoint's optimizer too, as the reference's fine-tuning does: its moments, its learning rate (this
    #: recipe's then has no effect) and its finished warm-up. False starts the optimizer fresh.
    carry_over: bool = False


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
    ahead: int = setting(2, "Batches that are read ahead.", least=1)
    offsets_per_clip: int = setting(1, "Sounds that each picture crop goes with.", least=1)
    cache_mb: int = setting(0, "Megabytes of decoded clips that each process keeps; 0 keeps none.", least=0)


@dataclass
class SyncRecipe(Recipe):
    """A recipe of task `sync`."""

    data: SyncData = field(default_factory=SyncData)
    transforms: SyncTransforms = field(default_factory=SyncTransforms)
    model: AVSyncConfig = field(default_factory=AVSyncConfig)
    start: SyncStart = field(default_factory=SyncStart)
    channels_last: bool = setting(True, "Keep pictures with their channels last in memory.")
    alignment_weight: float = setting(
        0.0,
        "Weight of a second loss, for new trunks: which moment of the sound belongs to each of the picture.",
        least=0,
    )
    offset_weight: float = setting(1.0, "Weight of the offset's cross entropy; 0 teaches the trunks alone.", least=0)


class SyncTask:
    """SparseSync over shards: `loss` is the cross entropy of the offset's class."""

    def __init__(self, recipe: SyncRecipe) -> None:
        transformer = recipe.model.head
        if transformer.classes != recipe.transforms.classes:
            raise UserError(
                f"the model has {transformer.classes} classes, transforms.classes={recipe.transforms.classes}: give both the same"
            )
        if recipe.data.iter_times > 1 and recipe.data.fixed_offsets:
            raise UserError(
                "data.iter_times > 1 needs data.fixed_offsets=false: with fixed crops all passes would be the same"
            )
        most = (transformer.classes + 1) // 2
        if not 1 <= recipe.data.offsets_per_clip <= most:
            raise UserError(
                f"data.offsets_per_clip={recipe.data.offsets_per_clip}: 1 to {most}, half of the classes, fit"
            )
        parts = recipe.model.correlation.n_head if recipe.model.correlation else PARTS
        if recipe.alignment_weight and transformer.width % parts:
            raise UserError(f"alignment_weight above 0 needs a width that {parts} divides, it is {transformer.width}")
        if not recipe.data.paths:
            raise UserError("no dataset: add --data DS, a folder that `javisc build sync` made")
        self.recipe = recipe

    def model(self) -> AVSync:
        """The model with fresh weights."""
        model = AVSync(self.recipe.model)
        return to_channels_last(model) if self.recipe.channels_last else model

    def build(self) -> AVSync:
        """The model with its starting weights."""
        model = self.model()
        start, wanted = self.recipe.start, self.recipe.model
        for name, trunk, own in (
            ("visual_trunk", wanted.visual_trunk, start.visual_trunk),
            ("audio_trunk", wanted.audio_trunk, start.audio_trunk),
        ):
            if not trunk.trained and not own and not start.model:
                raise UserError(
                    f"model.{name}.trained=false would keep random weights: give start.model or start.{name}, or train it"
                )
        if start.visual_trunk:
            load_strictly(model.vfeat_extractor, visual_trunk_state(_contents(start.visual_trunk)), start.visual_trunk)
        if start.audio_trunk:
            load_strictly(model.afeat_extractor, audio_trunk_state(_contents(start.audio_trunk)), start.audio_trunk)
        if start.model:
            load_strictly(model, whole_model_state(start.model), start.model)
        return model

    def carry_over(self, model: nn.Module) -> CarryOver | None:
        """The reference checkpoint's optimizer, where the recipe asks for it."""
        start = self.recipe.start
        if not start.carry_over:
            return None
        if not start.model or not start.model.endswith((".pt", ".pth")):
            raise UserError(
                "start.carry_over=true needs start.model=CHECKPOINT.pt of the reference: weights alone hold no optimizer"
            )
        return carried_over(read_sync_checkpoint(start.model), model)

    def blocks(self, model: nn.Module) -> list[nn.Module]:
        """The trunks' stages and the transformer's blocks."""
        assert isinstance(model, AVSync)
        return model.blocks()

    def source(self, rank: int, world: int) -> SyncBatches:
        """Training batches of one rank."""
        data = self.recipe.data
        options = SyncDataOptions(
            data.batch_size,
            self.recipe.seed,
            data.train_split,
            threads=data.threads,
            ahead=data.ahead,
            offsets_per_clip=data.offsets_per_clip,
            cache_bytes=data.cache_mb * 1_000_000,
        )
        return SyncBatches(data.paths, self.recipe.transforms, options, rank=rank, world=world)

    def size(self, batch: SyncBatch) -> int:
        return len(batch.target)

    def keys(self, batch: SyncBatch) -> list[str]:
        return batch.keys

    def tokens(self, batch: SyncBatch) -> int:
        """Context tokens of both streams."""
        return sum(
            grid.rows * grid.tokens for grid in sync_grids(self._shape, batch.vis.shape, batch.aud.shape, Tally())
        )

    def flops(self, batch: SyncBatch) -> float:
        return sync_flops(self._shape, batch.vis.shape, batch.aud.shape).total

    @cached_property
    def _shape(self) -> AVSync:
        """The model without values, for counting."""
        with torch.device("meta"):
            return AVSync(self.recipe.model)

    def loss(self, model: nn.Module, batch: SyncBatch, device: torch.device) -> Tensor:
        vis, aud = batch.vis.to(device, non_blocking=True), batch.aud.to(device, non_blocking=True)
        target, weight = batch.target.to(device), self.recipe.alignment_weight
        shift = batch.shift.to(device) / self.recipe.transforms.crop_len_sec if weight else None
        aligned, logits = model(vis, aud, shift=shift)
        # Weighed with 0, not left out: every parameter needs a gradient where processes join theirs.
        loss = self.recipe.offset_weight * F.cross_entropy(logits.float(), target, reduction="sum")
        return loss if aligned is None else loss + weight * len(target) * aligned

    def metrics(self) -> tuple[str, ...]:
        """What `validate` measures."""
        return () if self.recipe.data.valid_split is None else metric_names(self.recipe.model.head.classes)

    def validate(self, model: nn.Module, rank: int, world: int, device: torch.device) -> dict[str, float]:
        """The metrics over the held-out split, each process looking at its share; {} if the recipe names none."""
        split = self.recipe.data.valid_split
        return {} if split is None else self.evaluate(model, split, rank, world, device)

    @torch.no_grad()
    def evaluate(
        self, model: nn.Module, split: str | None, rank: int, world: int, device: torch.device
    ) -> dict[str, float]:
        """The metrics and the loss over a split, all logits of all processes and passes pooled."""
        data = self.recipe.data
        logits: list[Tensor] = []
        targets: list[Tensor] = []
        for turn in range(data.iter_times):
            # Every pass draws other crops; the same ones in every evaluation, so that a curve moves by the model alone.
            seed = int(draws.bits(self.recipe.seed, "evaluate", turn)[0]) & (2**31 - 1)
            options = SyncDataOptions(
                data.batch_size,
                seed,
                split,
                train=False,
                fixed=data.fixed_offsets,
                threads=data.threads,
                ahead=data.ahead,
            )
            source = SyncBatches(data.paths, self.recipe.transforms, options, rank=rank, world=world)
            try:
                for number, batch in enumerate(source, 1):
                    if isinstance(model, FSDPModule) and world > 1:
                        _same_steps(number, device)
                    logits.append(model(batch.vis.to(device), batch.aud.to(device))[1].float().cpu())
                    targets.append(batch.target)
                    if number == data.evaluate_at_most:
                        break
            finally:
                source.close()
        return pooled_metrics(logits, targets, world)


def evaluate_selector(
    model: AVSync,
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
    task = SyncTask(SyncRecipe(task="sync", seed=seed, data=data, transforms=transforms, model=model.config))
    return task.evaluate(model, split, 0, 1, next(model.parameters()).device)


def _same_steps(number: int, device: torch.device) -> None:
    """Sharded parameters are gathered in every forward pass, so all processes must take the same number of them."""
    step = torch.tensor([number], device=device)
    dist.all_reduce(step, dist.ReduceOp.MIN)
    if int(step.item()) != number:
        raise UserError(
            "the held-out split does not divide evenly over the processes: with fsdp2 set data.evaluate_at_most"
        )


def pooled_metrics(logits: Sequence[Tensor], targets: Sequence[Tensor], world: int) -> dict[str, float]:
    """Metrics and mean loss over all processes' logits. Raises UserError if there are none."""
    mine = (torch.cat(list(logits)), torch.cat(list(targets))) if logits else None
    parts: list[tuple[Tensor, Tensor] | None] = [None] * world
    if world > 1:
        dist.all_gather_object(parts, mine)
    else:
        parts = [mine]
    have = [part for part in parts if part is not None]
    if not have:
        raise UserError("the held-out split has no clip that fits: check data.valid_split and the clips' lengths")
    every, wanted = torch.cat([part[0] for part in have]), torch.cat([part[1] for part in have])
    return {**sync_metrics(every, wanted), "loss": float(F.cross_entropy(every, wanted)), "clips": float(len(wanted))}


def metric_names(classes: int) -> tuple[str, ...]:
    """What `pooled_metrics` measures of so many classes."""
    return tuple(pooled_metrics([torch.zeros(1, classes)], [torch.zeros(1, dtype=torch.long)], 1))


def carried_over(checkpoint: SyncCheckpoint, model: nn.Module) -> CarryOver:
    """A checkpoint's optimizer by this model's names: the reference numbers parameters in the order of the state dict.

    Raises UserError if the checkpoint has no optimizer or it is of another model.
    """
    optimizer, schedule, scaler = checkpoint.optimizer, checkpoint.lr_scheduler, checkpoint.scaler or {}
    parameters = list(model.named_parameters())
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


def _contents(path: str) -> dict[str, Tensor]:
    """A weight file's tensors: the reference's .pt with whatever it holds, or safetensors."""
    loaded = read_pt(path) if path.endswith((".pt", ".pth")) else read_weights(Path(path))
    if not isinstance(loaded, dict):
        raise UserError(f"{path} holds no weights by name")
    return loaded


def whole_model_state(path: str) -> dict[str, Tensor]:
    """A whole model's state dict from the reference's checkpoint, or from what a run of ours left (`best/`)."""
    return read_sync_checkpoint(path).model if path.endswith((".pt", ".pth")) else read_weights(Path(path))
