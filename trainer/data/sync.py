"""SparseSync's batches from compiled shards: offset and window decided by metadata, the rest done in the decoding threads."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from javisc.manifests.errors import UserError
from javisc.trainer.data import draws
from javisc.trainer.data.assign import BucketTable, single_bucket
from javisc.trainer.data.catalog import Catalog
from javisc.trainer.data.loader import Loader, LoaderOptions
from javisc.trainer.data.reader import ReaderOptions
from javisc.trainer.data.sampler import Clip, Sampler, SamplerOptions
from javisc.trainer.data.windows import Window
from javisc.trainer.transforms.draws import SeededDraws
from javisc.trainer.transforms.sync_chain import FixedOffset, SyncTransforms, apply, plan
from javisc.trainer.transforms.sync_window import InfeasibleCrop, Lengths


@dataclass(frozen=True)
class SyncWindow:
    """The window policy of SparseSync's chains. `fixed` takes offset and start from the manifest where a row has them."""

    transforms: SyncTransforms
    fps: Fraction = Fraction(25)
    train: bool = True
    fixed: bool = False

    def feasible(self, numbers: Mapping[str, NDArray[np.int64]], count: int, stride: int) -> NDArray[np.bool_]:
        """Clips in which a crop fits at every offset of the grid, sound and picture."""
        margin = self.transforms.max_off_sec if self.transforms.do_offset else 0.0
        wanted = self.transforms.crop_len_sec + margin
        rates = np.maximum(numbers["audio_fps"], 1)
        return (numbers["num_frames"] >= wanted * float(self.fps)) & (numbers["num_samples"] >= wanted * rates)

    def windows(
        self,
        rows: NDArray[np.int64],
        numbers: Mapping[str, NDArray[np.int64]],
        reals: Mapping[str, NDArray[np.float64]],
        words: tuple[draws.Word, ...],
        count: int,
        stride: int,
    ) -> list[Window]:
        """One window per row, with the chain's own window (class and label included) as its detail."""
        seeds = draws.bits(*words, "window", rows) >> np.uint64(1)
        out = []
        for row, seed in zip(rows, seeds, strict=True):
            frames, samples, rate = (int(numbers[name][row]) for name in ("num_frames", "num_samples", "audio_fps"))
            lengths = Lengths(frames, samples, float(self.fps), rate)
            fixed = None
            if self.fixed and "offset_sec" in reals and not np.isnan(reals["offset_sec"][row]):
                fixed = FixedOffset(float(reals["offset_sec"][row]), float(reals["vstart_sec"][row]))
            try:
                made = plan(self.transforms, lengths, SeededDraws(int(seed)), train=self.train, fixed=fixed)
            except InfeasibleCrop as error:
                raise UserError(
                    f"row {row} of the rows that are used: {error}; "
                    "drop it with `javisc filter`, or mend its offset_sec and vstart_sec"
                ) from error
            out.append(Window(made.v_first, made.v_len, 1, made.a_first, made.a_len, made.offset_sec, made))
        return out


@dataclass(frozen=True)
class SyncBatch:
    """vis (B, T, 3, S, S) normalised; aud (B, 1, 257, Ta) standardised; target (B,) classes, -1 without offsets; names."""

    vis: torch.Tensor
    aud: torch.Tensor
    target: torch.Tensor
    keys: list[str]
    replaced: tuple[tuple[int, str], ...] = ()


@dataclass(frozen=True)
class SyncDataOptions:
    """Where SparseSync's batches come from. `split` keeps rows of that split; None keeps all."""

    batch_size: int = 10
    seed: int = 1337
    split: str | None = "train"
    train: bool = True
    fixed: bool = False
    threads: int = 2
    ahead: int = 2
    reader: ReaderOptions = field(default_factory=ReaderOptions)


class SyncBatches:
    """A source for the training loop: iterating gives the rest of the epoch, the state is the sampler's.

    Raises UserError: the datasets disagree in their frame rate, are not what the model takes, or hold no usable clip.
    """

    def __init__(
        self,
        datasets: Sequence[str | os.PathLike[str]],
        transforms: SyncTransforms,
        options: SyncDataOptions,
        *,
        rank: int = 0,
        world: int = 1,
        report: Callable[[int, str, str], None] | None = None,
    ) -> None:
        where = [] if options.split is None else [pl.col("split") == options.split]
        catalog = Catalog.open(datasets, where)
        rates = np.unique(catalog.reals["fps"])
        if len(rates) != 1:
            raise UserError(f"the datasets have {len(rates)} frame rates ({rates[:4]}): build them with one --fps")
        fps = Fraction(float(rates[0])).limit_denominator(1001)
        if min(int(catalog.numbers["height"].min()), int(catalog.numbers["width"].min())) < transforms.input_size:
            raise UserError(
                f"clips are smaller than input_size={transforms.input_size}: "
                f"build them with --short-side {transforms.input_size} or more"
            )
        policy = SyncWindow(transforms, fps, options.train, options.fixed)
        table: BucketTable = single_bucket(
            round(transforms.crop_len_sec * fps), transforms.input_size, transforms.input_size, options.batch_size
        )
        # In training every rank must have a batch in every step; evaluation must see every clip.
        sampler_options = SamplerOptions(seed=options.seed, windows=policy, tail="drop" if options.train else "split")
        self.transforms, self.train = transforms, options.train
        self.catalog = catalog
        self.loader = Loader(
            Sampler(catalog, table, sampler_options, rank=rank, world=world),
            LoaderOptions(threads=options.threads, ahead=options.ahead, fps=fps, reader=options.reader),
            transform=self._sample,
            report=report,
        )

    def _sample(self, picture: NDArray[np.uint8], sound: NDArray[np.float32], clip: Clip) -> Any:
        rate = int(self.catalog.numbers["audio_fps"][clip.row])
        video = torch.from_numpy(picture).permute(0, 3, 1, 2)
        wave = torch.from_numpy(sound.mean(axis=1))
        made = apply(self.transforms, video, wave, clip.window.detail, rate, SeededDraws(clip.seed), train=self.train)
        return made.vis, made.aud, -1 if made.window.offset_target is None else made.window.offset_target

    def __len__(self) -> int:
        """Batches left in the epoch."""
        return len(self.loader)

    def __iter__(self) -> Iterator[SyncBatch]:
        """The rest of the epoch."""
        for loaded in self.loader:
            if loaded.items:
                vis, aud, target = zip(*loaded.items, strict=True)
                keys = [str(label["key"]) for label in loaded.labels]
                yield SyncBatch(torch.stack(vis), torch.stack(aud), torch.tensor(target), keys, loaded.replaced)

    def state_dict(self) -> dict[str, Any]:
        """A few integers, the same on every rank."""
        return self.loader.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where another source stood. Raises UserError if it had other data or another seed."""
        self.loader.load_state_dict(state)

    def close(self) -> None:
        """Stop the threads."""
        self.loader.close()
