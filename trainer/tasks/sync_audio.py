"""Pre-training SparseSync's audio trunk: a classifier of sounds, whose weights without the head start a sync model."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from javisc.manifests.errors import UserError
from javisc.trainer.data.index.catalog import Catalog, split_of
from javisc.trainer.data.sources.held_out import HeldOut
from javisc.trainer.data.sources.reading import ReadData
from javisc.trainer.data.sources.sync import SyncDataOptions
from javisc.trainer.data.sources.sync_audio import LABELLED, SoundBatch, SoundBatches, labels_of
from javisc.trainer.engine.config import Recipe
from javisc.trainer.engine.lockstep import in_step
from javisc.trainer.engine.moving import to_device
from javisc.trainer.engine.settings import setting
from javisc.trainer.forecast.flops import META, StepFlops, on_meta
from javisc.trainer.models.sync.config import TRUNK_SIZES
from javisc.trainer.models.sync.model import AudioClassifier
from javisc.trainer.task import CarryOver
from javisc.trainer.tasks.selector import metric_names, pooled_metrics
from javisc.trainer.transforms.sync_chain import AudioClipTransforms


@dataclass
class SyncAudioData:
    """The batches: rows with a `label`, of the manifest's splits. `valid_split` null measures nothing.

    `evaluate_at_most` batches per process are looked at, 0 meaning all.
    """

    paths: list[str] = setting([], "The datasets; --data sets it.")
    batch_size: int = setting(16, "Clips of a process in a batch.", least=1)
    valid_batch_size: int = setting(32, "The same, where it is measured.", least=1)
    train_split: str | None = setting(
        "train", "Rows that are trained on, by the manifest's column split; null takes all."
    )
    valid_split: str | None = setting("val", "Rows that are held out; null validates nothing.")
    evaluate_at_most: int = setting(0, "Batches of a validation, per process; 0 takes all.", least=0)
    threads: int = setting(2, "Threads that decode.", least=1)
    ahead: int = setting(2, "Batches that are read ahead.", least=1)
    ready: int = setting(1, "Finished batches that wait.", least=1)
    reader: ReadData = field(default_factory=ReadData)


@dataclass
class AudioClassifierConfig:
    """A ResNet-18 with a head; `size` is the sync model's `audio_trunk.size`."""

    classes: int = setting(308, "Labels that are told apart.", least=1)
    size: str = setting("full", "The trunk's size, as a sync model's `audio_trunk.size`.", choices=TRUNK_SIZES)


@dataclass
class SyncAudioRecipe(Recipe):
    """A recipe of task `sync-audio`."""

    data: SyncAudioData = field(default_factory=SyncAudioData)
    transforms: AudioClipTransforms = field(default_factory=AudioClipTransforms)
    model: AudioClassifierConfig = field(default_factory=AudioClassifierConfig)


class SyncAudioTask:
    """A classifier of labelled sounds: `loss` is the cross entropy of the label's class, all classes weighing the same."""

    def __init__(self, recipe: SyncAudioRecipe) -> None:
        if not recipe.data.paths:
            raise UserError("no dataset: add --data DS, a folder with labelled sounds that `javisc build` made")
        if recipe.parallel.strategy != "ddp":
            raise UserError(
                f"parallel.strategy={recipe.parallel.strategy}: a classifier this small is not sharded, set it to ddp"
            )
        self.recipe = recipe
        self._work = StepFlops(self.model, lambda model, batch: self.loss(model, batch, META))
        self.held_out: HeldOut[SoundBatch] = HeldOut(
            lambda split, rank, world: self._batches(split, recipe.data.valid_batch_size, rank, world, train=False)
        )

    @cached_property
    def labels(self) -> list[str]:
        """The data's labels; a label's place is its class. Raises UserError if the model has another number of classes."""
        labels = labels_of(self.recipe.data.paths)
        if len(labels) != self.recipe.model.classes:
            raise UserError(
                f"the data have {len(labels)} labels, model.classes={self.recipe.model.classes}: "
                + (
                    f"set model.classes={len(labels)}"
                    if labels
                    else "give datasets whose manifest has a column `label`"
                )
            )
        return labels

    def model(self) -> AudioClassifier:
        """The classifier, freshly initialised."""
        return AudioClassifier(self.recipe.model.classes, self.recipe.model.size)

    def build(self) -> AudioClassifier:
        """The same: it starts from nothing."""
        return self.model()

    def carry_over(self, model: nn.Module) -> CarryOver | None:
        return None

    def blocks(self, model: nn.Module) -> list[nn.Module]:
        """The trunk's stages."""
        layers = [getattr(model, f"layer{number}") for number in range(1, 5)]
        return [layer for layer in layers if any(True for _ in layer.parameters())]

    def source(self, rank: int, world: int) -> SoundBatches:
        """Training batches of one rank. Raises UserError if a class has no training clip, or if later there would be nothing to
        measure on."""
        data = self.recipe.data
        if self.recipe.run.validate_every and data.valid_split is not None:
            Catalog.open(data.paths, LABELLED, split=split_of(data.valid_split, False, rank))
        source = self._batches(data.train_split, data.batch_size, rank, world, train=True)
        if absent := set(range(len(self.labels))) - set(source.classes.tolist()):
            source.close()
            raise UserError(
                f"{len(absent)} labels have no clip in the split {data.train_split!r}, the first is "
                f"{self.labels[min(absent)]!r}: filter the dataset or set data.train_split"
            )
        return source

    def _batches(self, split: str | None, batch_size: int, rank: int, world: int, *, train: bool) -> SoundBatches:
        recipe, data = self.recipe, self.recipe.data
        options = SyncDataOptions(
            batch_size,
            recipe.seed,
            split,
            train,
            threads=data.threads,
            ahead=data.ahead,
            ready=data.ready,
            reader=data.reader.options(),
        )
        return SoundBatches(data.paths, self.labels, recipe.transforms, options, rank=rank, world=world)

    def close(self) -> None:
        """Stop what reads held-out clips."""
        self.held_out.close()

    def size(self, batch: SoundBatch) -> int:
        return len(batch.target)

    def keys(self, batch: SoundBatch) -> list[str]:
        return batch.keys

    def tokens(self, batch: SoundBatch) -> int:
        """Cells of the trunk's features: what a sync model's transformer would read."""
        with META, torch.no_grad():
            heard = self.model().features(*on_meta(batch.aud))
        return heard.numel() // heard.shape[1]

    def flops(self, batch: SoundBatch) -> float:
        return self._work(batch)

    def loss(self, model: nn.Module, batch: SoundBatch, device: torch.device) -> Tensor:
        _, logits = model(to_device(batch.aud, device))
        return F.cross_entropy(logits.float(), to_device(batch.target, device), reduction="sum")

    def metrics(self) -> tuple[str, ...]:
        """What `validate` measures."""
        names = () if self.recipe.data.valid_split is None else metric_names(self.recipe.model.classes)
        return tuple(name for name in names if not name.endswith("_tol1"))

    @torch.no_grad()
    def validate(self, model: nn.Module, rank: int, world: int, device: torch.device) -> dict[str, float]:
        """Loss, accuracies, mAP, mROCAUC and dprime on the centre crops of the held-out split."""
        data = self.recipe.data
        if data.valid_split is None:
            return {}
        logits: list[Tensor] = []
        targets: list[Tensor] = []
        source = self.held_out(data.valid_split, rank, world)
        for batch, _ in in_step(model, source, data.evaluate_at_most):
            logits.append(model(batch.aud.to(device))[1].float().cpu())
            targets.append(batch.target)
        # Classes of sounds have no neighbours.
        metrics = pooled_metrics(logits, targets, world)
        return {name: value for name, value in metrics.items() if not name.endswith("_tol1")}
