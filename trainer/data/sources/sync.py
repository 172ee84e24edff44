"""The sync models' batches from compiled shards: offset and window decided by metadata, the rest in the decoding threads."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from javisc.manifests.errors import UserError
from javisc.trainer.data.bytes.loaded import Loaded
from javisc.trainer.data.bytes.loader import Loader, LoaderOptions
from javisc.trainer.data.bytes.reader import ReaderOptions
from javisc.trainer.data.index import draws
from javisc.trainer.data.index.assign import BucketTable, single_bucket
from javisc.trainer.data.index.catalog import Catalog, split_of
from javisc.trainer.data.index.sampler import Clip, Sampler, SamplerOptions
from javisc.trainer.data.index.windows import Window
from javisc.trainer.data.sources.loading import LoaderSource
from javisc.trainer.engine.moving import to_device, together
from javisc.trainer.transforms.draws import SeededDraws
from javisc.trainer.transforms.sync_chain import FixedOffset, SyncTransforms, plan, plan_several
from javisc.trainer.transforms.sync_window import InfeasibleCrop, Lengths, position


@dataclass(frozen=True)
class SyncWindow:
    """The window policy of a sync model's chain. `fixed` takes offset and start from the manifest where a row has them.

    With `offsets` above 1, a training window is one picture crop and the stretch of sound that so many offset crops need.
    """

    transforms: SyncTransforms
    fps: Fraction = Fraction(25)
    train: bool = True
    fixed: bool = False
    offsets: int = 1

    def feasible(self, numbers: Mapping[str, NDArray[np.int64]], count: int, stride: int) -> NDArray[np.bool_]:
        """Clips in which a window fits whatever is drawn, sound and picture."""
        # A hair less: 1.44 s at 25 fps are 36 frames, whatever the product's last bit says.
        wanted = self.transforms.room_sec - 1e-9
        rates = np.maximum(numbers["audio_fps"], 1)
        heard = wanted + self.transforms.audio_advance_sec
        return (numbers["num_frames"] >= wanted * float(self.fps)) & (numbers["num_samples"] >= heard * rates)

    def windows(
        self,
        rows: NDArray[np.int64],
        numbers: Mapping[str, NDArray[np.int64]],
        reals: Mapping[str, NDArray[np.float64]],
        words: tuple[draws.Word, ...],
        count: int,
        stride: int,
    ) -> list[Window]:
        """One window per row, with the chain's own windows (class and label included) as its detail."""
        seeds = draws.bits(*words, "window", rows) >> np.uint64(1)
        out = []
        for row, seed in zip(rows, seeds, strict=True):
            frames, samples, rate = (int(numbers[name][row]) for name in ("num_frames", "num_samples", "audio_fps"))
            lengths = Lengths(frames, samples, float(self.fps), rate)
            fixed = None
            if self.fixed and "offset_sec" in reals and not np.isnan(reals["offset_sec"][row]):
                fixed = FixedOffset(float(reals["offset_sec"][row]), float(reals["vstart_sec"][row]))
            drawn = SeededDraws(int(seed))
            try:
                if self.train and self.offsets > 1:
                    made = plan_several(self.transforms, lengths, drawn, self.offsets)
                else:
                    made = [plan(self.transforms, lengths, drawn, train=self.train, fixed=fixed)]
            except InfeasibleCrop as error:
                remedy = (
                    "drop it with `javisc filter`, or mend its offset_sec and vstart_sec"
                    if fixed
                    else "drop it with `javisc filter`, or lower transforms.crop_len_sec, max_off_sec or audio_jitter_sec"
                )
                raise UserError(f"row {row} of the rows that are used: {error}; {remedy}") from error
            first, stop = min(one.a_first for one in made), max(one.a_first + one.a_len for one in made)
            offset = made[0].offset_sec if len(made) == 1 else None
            out.append(Window(made[0].v_first, made[0].v_len, 1, first, stop - first, offset, tuple(made)))
        return out


def _check_crop(transforms: SyncTransforms, fps: Fraction) -> None:
    """Raise UserError unless a crop is a whole number of frames: the dataset's rate does not suit the recipe, no row's fault."""
    wanted = transforms.crop_len_sec
    if position(wanted, int(fps)) / int(fps) == wanted or not (transforms.do_offset or transforms.whole_fps is None):
        return
    near = [n / int(fps) for n in range(1, int(2 * wanted * fps) + 2) if n * 1000 % int(fps) == 0]
    below, above = (
        max((s for s in near if s < wanted), default=None),
        min((s for s in near if s > wanted), default=None),
    )
    fits = " or ".join(f"{seconds:g}" for seconds in (below, above) if seconds is not None)
    raise UserError(
        f"the dataset has {float(fps):g} frames per second: transforms.crop_len_sec={wanted:g} is no whole number of them; build "
        f"it with --fps 25, as `javisc build sync` does, or set transforms.crop_len_sec={fits}"
    )


def _check_lengths(catalog: Catalog, policy: SyncWindow) -> None:
    """Raise UserError if no clip is long enough."""
    if policy.feasible(catalog.numbers, 0, 1).any():
        return
    transforms, longest = policy.transforms, int(catalog.numbers["num_frames"].max()) / float(policy.fps)
    raise UserError(
        f"no clip of {len(catalog)} is long enough: transforms.crop_len_sec={transforms.crop_len_sec:g} and "
        f"max_off_sec={transforms.max_off_sec:g} need {transforms.room_sec:g} s of picture and sound, the longest picture has "
        f"{longest:.2f} s; use longer clips or lower these"
    )


@dataclass(frozen=True)
class SyncBatch:
    """vis (B, …) uint8, which `pictures` turns into what the model takes; aud (B·K, …) as it takes them; target (B·K,) classes,
    -1 without; names.

    K sounds of a clip lie together. `shift` (B·K,) is how many seconds later than the picture each really was taken, `starts` the
    pictures' first frames, by clip.
    """

    vis: torch.Tensor
    aud: torch.Tensor
    target: torch.Tensor
    shift: torch.Tensor
    keys: list[str]
    replaced: tuple[tuple[int, str], ...] = ()
    starts: tuple[int, ...] = ()
    transforms: SyncTransforms = field(default_factory=SyncTransforms)
    train: bool = True

    def pictures(self, device: torch.device) -> torch.Tensor:
        """vis on a device, float32: a byte a value goes there, and is normalised there."""
        return self.transforms.normalised(to_device(self.vis, device), train=self.train)


@dataclass(frozen=True)
class _Sample:
    """From a window's frames and sound to a clip's part of a batch; `rates` are all rows' samples a second."""

    transforms: SyncTransforms
    train: bool
    fps: float
    rates: NDArray[np.int64]

    def __call__(self, picture: NDArray[np.uint8], sound: NDArray[np.float32], clip: Clip) -> Any:
        rate = int(self.rates[clip.row])
        wave = torch.from_numpy(sound.mean(axis=1))
        vis = self.transforms.cropped(
            torch.from_numpy(picture).permute(0, 3, 1, 2), SeededDraws(clip.seed), train=self.train
        )
        sounds, targets, shifts = [], [], []
        for number, window in enumerate(clip.window.detail):
            first = window.a_first - clip.window.audio_first
            drawn = SeededDraws(clip.seed if number == 0 else int(draws.bits(clip.seed, "sound", number)[0]))
            piece = wave[first : first + window.a_len]
            sounds.append(self.transforms.sounds(piece, rate, drawn, train=self.train))
            label = self.transforms.label(window)
            targets.append(-1 if label is None else label)
            shifts.append(window.a_first / rate - window.v_first / self.fps)
        return vis.contiguous(), torch.stack(sounds), targets, shifts, clip.window.first


@dataclass(frozen=True)
class SyncDataOptions:
    """Where a sync model's batches come from. `split` keeps rows of that split; None keeps all.

    `offsets_per_clip` sounds go with each picture crop in training; `cache_bytes` of decoded clips are kept in memory.
    `processes`: as in `LoaderOptions`.
    """

    batch_size: int = 10
    seed: int = 1337
    split: str | None = "train"
    train: bool = True
    fixed: bool = False
    threads: int = 2
    ahead: int = 2
    ready: int = 1
    offsets_per_clip: int = 1
    cache_bytes: int = 0
    processes: bool = False
    reader: ReaderOptions = field(default_factory=ReaderOptions)


class SyncBatches(LoaderSource):
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
        catalog = Catalog.open(datasets, split=split_of(options.split, options.train, rank))
        rates = np.unique(catalog.reals["fps"])
        if len(rates) != 1:
            raise UserError(f"the datasets have {len(rates)} frame rates ({rates[:4]}): build them with one --fps")
        fps = Fraction(float(rates[0])).limit_denominator(1001)
        if transforms.whole_fps not in (None, fps):
            raise UserError(
                f"the datasets have {float(fps):g} frames a second, the model's segments {transforms.whole_fps}: "
                f"build them with --fps {transforms.whole_fps}"
            )
        heard = np.unique(catalog.numbers["audio_fps"][catalog.numbers["num_samples"] > 0])
        if transforms.whole_rate is not None and list(heard) != [transforms.whole_rate]:
            raise UserError(
                f"the datasets have {', '.join(map(str, heard[:4]))} samples a second, the model's segments "
                f"{transforms.whole_rate}: build them with that rate"
            )
        if min(int(catalog.numbers["height"].min()), int(catalog.numbers["width"].min())) < transforms.input_size:
            raise UserError(
                f"clips are smaller than input_size={transforms.input_size}: "
                f"build them with --short-side {transforms.input_size} or more"
            )
        _check_crop(transforms, fps)
        policy = SyncWindow(transforms, fps, options.train, options.fixed, options.offsets_per_clip)
        _check_lengths(catalog, policy)
        table: BucketTable = single_bucket(
            round(transforms.window_sec * fps), transforms.input_size, transforms.input_size, options.batch_size
        )
        # In training every rank must have a batch in every step; evaluation must see every clip.
        sampler_options = SamplerOptions(
            seed=options.seed, windows=policy, tail="drop" if options.train else "split", renditions=False
        )
        self.transforms, self.train = transforms, options.train
        #: Sounds that go with a clip.
        self.sounds = options.offsets_per_clip if options.train else 1
        self.catalog = catalog
        self.loader = Loader(
            Sampler(catalog, table, sampler_options, rank=rank, world=world),
            LoaderOptions(
                threads=options.threads,
                ahead=options.ahead,
                ready=options.ready,
                fps=fps,
                reader=options.reader,
                cache_bytes=options.cache_bytes,
                processes=options.processes,
            ),
            transform=_Sample(transforms, options.train, float(fps), catalog.numbers["audio_fps"]),
            finish=self._batch,
            report=report,
        )

    def _batch(self, loaded: Loaded) -> SyncBatch:
        vis, aud, target, shift, starts = zip(*loaded.items, strict=True)
        return SyncBatch(
            together(vis),
            together([sound for sounds in aud for sound in sounds]),
            torch.tensor([one for some in target for one in some]),
            torch.tensor([one for some in shift for one in some]),
            [str(label["key"]) for label in loaded.labels],
            loaded.replaced,
            starts,
            self.transforms,
            self.train,
        )

    def __iter__(self) -> Iterator[SyncBatch]:
        """The rest of the epoch."""
        for loaded in self.loader:
            if loaded.items:
                assert isinstance(loaded.made, SyncBatch)
                yield loaded.made

    @property
    def rows(self) -> tuple[int, ...]:
        """Every rank's sounds in the batch that was given last."""
        return tuple(self.sounds * clips for clips in self.loader.rows)
