"""Batches of labelled sounds from compiled shards, for the classifier that pre-trains SparseSync's audio trunk."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from javisc.manifests.errors import UserError
from javisc.manifests.io import scan_many
from javisc.trainer.data.bytes.loader import Loader, LoaderOptions
from javisc.trainer.data.index import draws
from javisc.trainer.data.index.assign import single_bucket
from javisc.trainer.data.index.catalog import Catalog, split_of
from javisc.trainer.data.index.sampler import Clip, Sampler, SamplerOptions
from javisc.trainer.data.index.windows import Window
from javisc.trainer.data.sources.loading import LoaderSource
from javisc.trainer.data.sources.sync import SyncDataOptions
from javisc.trainer.transforms.draws import SeededDraws
from javisc.trainer.transforms.sync_chain import AudioClipTransforms, audio_clip

LABELLED = {"a label": pl.col("label").is_not_null()}


@dataclass(frozen=True)
class SoundWindow:
    """The beginning of every sound, `duration_sec` at most and no picture: what the chain tiles, crops and augments."""

    transforms: AudioClipTransforms

    def feasible(self, numbers: Mapping[str, NDArray[np.int64]], count: int, stride: int) -> NDArray[np.bool_]:
        """Sounds that are long enough for a crop once they are tiled."""
        tiled = numbers["num_samples"] * self.transforms.duration_sec
        return (numbers["flac_offset"] >= 0) & (tiled >= self.transforms.crop_len_sec * numbers["audio_fps"])

    def windows(
        self,
        rows: NDArray[np.int64],
        numbers: Mapping[str, NDArray[np.int64]],
        reals: Mapping[str, NDArray[np.float64]],
        words: tuple[draws.Word, ...],
        count: int,
        stride: int,
    ) -> list[Window]:
        """One window per row."""
        most = numbers["audio_fps"][rows] * self.transforms.duration_sec
        return [Window(0, 0, 1, 0, int(samples)) for samples in np.minimum(numbers["num_samples"][rows], most)]


@dataclass(frozen=True)
class SoundBatch:
    """aud (B, 1, 257, T) standardised log spectrograms; target (B,) classes; names."""

    aud: torch.Tensor
    target: torch.Tensor
    keys: list[str]
    replaced: tuple[tuple[int, str], ...] = ()


def labels_of(datasets: Sequence[str | os.PathLike[str]]) -> list[str]:
    """The labels that occur in the datasets, all splits together, in alphabetical order: a label's place is its class."""
    labels = scan_many(datasets)[1].select(pl.col("label").drop_nulls().unique().sort()).collect(engine="streaming")
    return labels["label"].to_list()


class SoundBatches(LoaderSource):
    """A source for the training loop: iterating gives the rest of the epoch, the state is the sampler's.

    Rows without a label are passed over. Raises UserError: sample rates differ, or no labelled sound is long enough.
    """

    def __init__(
        self,
        datasets: Sequence[str | os.PathLike[str]],
        labels: Sequence[str],
        transforms: AudioClipTransforms,
        options: SyncDataOptions,
        *,
        rank: int = 0,
        world: int = 1,
        report: Callable[[int, str, str], None] | None = None,
    ) -> None:
        catalog = Catalog.open(datasets, LABELLED, split=split_of(options.split, options.train, rank))
        rates = np.unique(catalog.numbers["audio_fps"][catalog.numbers["num_samples"] > 0])
        if len(rates) > 1:
            raise UserError(
                f"the datasets have {len(rates)} sample rates ({rates[:4]}): build them with one --sample-rate"
            )
        classes = {label: number for number, label in enumerate(labels)}
        self.classes = catalog.strings["label"].replace_strict(classes, return_dtype=pl.Int64).to_numpy()
        self.transforms, self.train, self.catalog = transforms, options.train, catalog
        # In training every batch is full and every rank has one in every step; evaluation must hear every clip.
        shaping = SamplerOptions(
            seed=options.seed,
            windows=SoundWindow(transforms),
            renditions=False,
            remainder="drop" if options.train else "keep",
            tail="drop" if options.train else "split",
        )
        self.loader = Loader(
            Sampler(catalog, single_bucket(1, 1, 1, options.batch_size), shaping, rank=rank, world=world),
            LoaderOptions(
                threads=options.threads,
                ahead=options.ahead,
                ready=options.ready,
                with_video=False,
                reader=options.reader,
            ),
            transform=self._sample,
            report=report,
        )

    def _sample(self, _: NDArray[np.uint8], sound: NDArray[np.float32], clip: Clip) -> Any:
        rate = int(self.catalog.numbers["audio_fps"][clip.row])
        wave = torch.from_numpy(sound.mean(axis=1))
        aud = audio_clip(self.transforms, wave, rate, SeededDraws(clip.seed), train=self.train)
        return aud, int(self.classes[clip.row])

    def __iter__(self) -> Iterator[SoundBatch]:
        """The rest of the epoch."""
        for loaded in self.loader:
            if loaded.items:
                aud, target = zip(*loaded.items, strict=True)
                keys = [str(label["key"]) for label in loaded.labels]
                yield SoundBatch(torch.stack(aud), torch.tensor(target), keys, loaded.replaced)
