"""Batches of clips for the models that learn in latent space: pictures, sound, log-mel and captions from compiled shards."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from javisc.manifests.errors import UserError
from javisc.trainer.data.bytes.graph import GraphOptions
from javisc.trainer.data.bytes.loaded import Loaded
from javisc.trainer.data.bytes.loader import Loader, LoaderOptions
from javisc.trainer.data.index.assign import BucketTable, Resolution
from javisc.trainer.data.index.buckets import ReferenceBuckets
from javisc.trainer.data.index.catalog import STRINGS, Catalog, split_of
from javisc.trainer.data.index.costs import joint_dit_cost
from javisc.trainer.data.index.sampler import Batch, Clip, Sampler, SamplerOptions
from javisc.trainer.data.index.windows import RandomWindow
from javisc.trainer.data.sources.loading import LoaderSource
from javisc.trainer.data.sources.pools import NAMES
from javisc.trainer.data.sources.reading import PictureData, ReadData
from javisc.trainer.engine.settings import setting, told
from javisc.trainer.models.text.captions import clean
from javisc.trainer.transforms.javisdit_mel import FLOOR, MelConfig, mel_input

_log = logging.getLogger(__name__)
#: What the reference's table says of a sound without a picture: its bucket, and through that its shifted times, follow from it.
DUMMY_HEIGHT, DUMMY_WIDTH = 720, 1280


def _is_bucket(held: Any) -> bool:
    """Whether a bucket is written as [probability, batch size], the probability one number or two."""

    def number(value: Any) -> bool:
        try:
            float(value)
        except (TypeError, ValueError):
            return False
        return not isinstance(value, bool)

    if not isinstance(held, list | tuple) or len(held) != 2 or type(held[1]) is not int:
        return False
    shares = held[0] if isinstance(held[0], list | tuple) else [held[0], 1.0]
    return len(shares) == 2 and all(map(number, shares))


@dataclass
class ClipData:
    """Where clips come from and how they are grouped: the settings `data.*` of the recipes of latent models.

    `buckets`: {resolution: {"frames": [probability or [of the resolution, of the length], batch size]}}; a resolution is a name
    of `aspects`, or one size as "HEIGHTxWIDTH". `aspects` keeps the ratios named of a resolution's table; none keeps all.
    `stride`: source frames per frame. `clean_captions` cleans them as sampling does (the reference does not in training).
    `mel_padding`: "zero", as the official weights saw, or "silence". `decoder`: gpu, cpu, or auto: where there is one.
    `shards_together`: as in `SamplerOptions`. `latents`: the field that is trained from in place of clips.
    """

    paths: list[str] = setting([], "The datasets; --data sets it.")
    latents: str | None = setting(
        None, "The field of the datasets that holds latents, which `javisc encode` made; null reads clips."
    )
    train_split: str | None = setting(
        "train", "Rows that are trained on, by the manifest's column split; null takes all."
    )
    valid_split: str | None = setting("val", "Rows that are held out; null validates nothing.")
    buckets: dict[str, dict[str, Any]] = setting(
        {}, '{RESOLUTION: {"FRAMES": [probability, or [of the resolution, of the length], batch size]}}.'
    )
    aspects: list[str] = setting([], "Ratios of a resolution's table that are kept; none keeps all.")
    stride: int = setting(1, "Source frames per frame.", least=1, most=1000)
    clean_captions: bool = setting(False, "Clean captions as sampling does; the reference does not in training.")
    mel_padding: str = setting(
        "zero",
        "How short sounds are filled; the official weights saw zero.",
        choices=("zero", "silence"),
    )
    decoder: str = setting(
        "auto", "Where pictures are decoded; auto takes the GPU where there is one.", choices=("auto", "gpu", "cpu")
    )
    renditions: bool = setting(True, "Read the smallest rendition of a clip that loses nothing in its bucket.")
    threads: int = setting(4, "Threads that decode.", least=1)
    ahead: int = setting(2, "Batches that are read ahead.", least=1)
    ready: int = setting(1, "Finished batches that wait.", least=1)
    reader: ReadData = field(default_factory=ReadData)
    picture: PictureData = field(default_factory=PictureData)
    shards_together: int = setting(0, "Shards whose clips are mixed; 0 mixes all.", least=0)

    def table(self) -> BucketTable:
        """The buckets. Raises UserError where they cannot be read."""
        if not any(self.buckets.values()):
            raise UserError("data.buckets={}: no bucket; give one at least, as data.buckets={48x64: {17: [1.0, 2]}}")
        for resolution, lengths in self.buckets.items():
            for frames, held in lengths.items():
                if not (frames.removeprefix("-").isdecimal() and _is_bucket(held)):
                    raise UserError(
                        f"data.buckets.{resolution}.{frames}={told(held)}: write FRAMES: [probability, batch size], the "
                        "probability a number or [of the resolution, of the length], as 17: [1.0, 2]"
                    )
        resolutions = ReferenceBuckets(self.buckets).resolutions()  # type: ignore[arg-type]
        for name, one in ((r.name, one) for r in resolutions for one in r.lengths):
            shares = one.keep_resolution, one.keep_length
            if one.frames < 1 or one.batch_size < 1 or not all(0 <= share <= 1 for share in shares):
                raise UserError(
                    f"data.buckets.{name}.{one.frames}: a probability is 0 to 1, frames and batch size are at least 1; change "
                    f"[{shares[0]:g} of the resolution, {shares[1]:g} of the length; {one.batch_size}]"
                )
        wanted = set(self.aspects)
        kept = []
        for r in resolutions:
            sizes = {key: size for key, size in r.sizes.items() if not wanted or key in wanted or len(r.sizes) == 1}
            if not sizes:
                raise UserError(
                    f"data.aspects: {r.name} has none of {', '.join(self.aspects)}; it has {', '.join(r.sizes)}"
                )
            kept.append(Resolution(r.name, r.pixels, sizes, r.lengths))
        return BucketTable(kept)


@dataclass(frozen=True)
class Clips:
    """A batch: `video` [B, 3, F, H, W] in -1 to 1 (None without), `sound` [B, n], `mel` [B, 1, frames, 64] on the CPU or the
    loader's device. `seeds` belong to the samples of this epoch: whatever is drawn for a row is drawn from its own. `loaded` is
    the loader's batch, with all that was decided.
    """

    video: Tensor | None
    sound: Tensor
    mel: Tensor
    captions: list[str]
    keys: list[str]
    seeds: list[int]
    frames: int
    height: int
    width: int
    fps: float
    loaded: Loaded


class ClipSource(LoaderSource):
    """A source for the training loop: iterating gives the rest of the epoch, the state is the sampler's.

    `split` keeps rows of that split, None all. In training every rank has a batch in every step; held-out clips (`train=False`)
    come from their middle, all but those of a last step that has fewer clips than ranks. `whole_sound` as in `LoaderOptions`,
    `finish` as in `Loader`; clips have the names that pools know them by. Raises UserError: no usable clip, too few for the
    ranks, or clips of several frame rates or sampling rates.
    """

    def __init__(
        self,
        data: ClipData,
        split: str | None,
        *,
        seed: int,
        rank: int = 0,
        world: int = 1,
        with_video: bool = True,
        train: bool = True,
        whole_sound: bool = False,
        finish: Callable[[Loaded], Any] | None = None,
        width: int = 1152,
    ) -> None:
        if not data.paths:
            raise UserError("no dataset: add --data DS, a folder that `javisc build` made")
        where = {"a sound": pl.col("flac_size") > 0} | ({"a picture": pl.col("mp4_size") > 0} if with_video else {})
        strings = (*STRINGS, *NAMES) if whole_sound else STRINGS
        self.catalog = Catalog.open(data.paths, where, split=split_of(split, train, rank), strings=strings)
        self.data, self.with_video, self.train = data, with_video, train
        self.fps = _one(self.catalog.reals["fps"], "frame rates", "--fps")
        self.sample_rate = int(_one(self.catalog.numbers["audio_fps"], "sampling rates", "--sample-rate"))
        if self.sample_rate != MelConfig.sample_rate:
            raise UserError(f"the sound has {self.sample_rate} Hz: build with --sample-rate {MelConfig.sample_rate}")
        if not with_video:
            self.catalog.numbers["height"] = np.full(len(self.catalog), DUMMY_HEIGHT)
            self.catalog.numbers["width"] = np.full(len(self.catalog), DUMMY_WIDTH)
        fps = Fraction(self.fps).limit_denominator(1001)
        self.mel = MelConfig(sample_rate=self.sample_rate, padding=data.mel_padding)
        options = SamplerOptions(
            seed=seed,
            stride=data.stride,
            mirror=data.picture.mirror if train else 0.0,
            shards_together=data.shards_together,
            windows=RandomWindow(fps, centre=not train),
            tail="drop" if train else "split",
            renditions=with_video and data.renditions,
            cost=joint_dit_cost(width, fps=self.fps / data.stride, audio_only=not with_video),
        )
        sampler = Sampler(self.catalog, data.table(), options, rank=rank, world=world)
        self._full = full_steps(sampler, split)
        if rank == 0 and self.catalog.renditions and (pictures := sampler.plan()[0].pictures_said):
            _log.info("pictures of split %s: %s", split, pictures)
        self.loader = Loader(
            sampler,
            LoaderOptions(
                threads=data.threads,
                ahead=data.ahead,
                ready=data.ready,
                crop=data.picture.crop if train else "centre",
                resize=data.picture.resize,
                reader=data.reader.options(),
                fps=fps,
                with_video=with_video,
                whole_sound=whole_sound,
                graph=self._graph(sampler),
            ),
            transform=None if with_video else self._sound,
            finish=finish,
        )

    def _graph(self, sampler: Sampler) -> GraphOptions:
        if self.data.decoder not in ("auto", "cpu", "gpu"):
            raise UserError(f"data.decoder={self.data.decoder!r}: it may be auto, cpu, gpu")
        gpu = self.data.decoder == "gpu" or (self.data.decoder == "auto" and torch.cuda.is_available())
        return GraphOptions(
            device="gpu" if gpu else "cpu",
            device_id=torch.cuda.current_device() if gpu else 0,
            max_batch_size=max(bucket.batch_size for bucket in sampler.table.buckets),
            threads=self.data.threads,
            antialias=self.data.picture.antialias,
            colour=self.data.picture.colour() if self.train else None,
            spectrum="audioldm",
            mel_padding=0.0 if self.data.mel_padding == "zero" else math.log(FLOOR),
            sample_rate=self.sample_rate,
        )

    def _sound(self, _: NDArray[np.uint8], sound: NDArray[np.float32], clip: Clip) -> tuple[Tensor, Tensor]:
        wave = torch.from_numpy(sound.mean(axis=1))
        return wave, mel_input(wave, self.mel, len(wave) / self.sample_rate)

    def __iter__(self) -> Iterator[Clips]:
        """The rest of the epoch."""
        for loaded in self.loader:
            if self.train or self._full[loaded.batch.step]:
                yield self._batch(loaded)

    def taking(self, batches: Iterable[Batch]) -> Iterator[Clips]:
        """Batches that the sampler decided."""
        for loaded in self.loader.taking(batches):
            yield self._batch(loaded)

    def _batch(self, loaded: Loaded) -> Clips:
        if self.with_video:
            assert loaded.audio is not None and loaded.spectrum is not None
            video, sound, mel = loaded.video, loaded.audio.mean(-1), loaded.spectrum[:, None]
        else:
            waves, mels = zip(*loaded.items, strict=True)
            video, sound, mel = None, torch.stack(waves), torch.stack(mels)
        bucket = loaded.batch.bucket
        return Clips(
            video,
            sound,
            mel,
            [self.caption(label) for label in loaded.labels],
            [str(label["key"]) for label in loaded.labels],
            [clip.seed for clip in loaded.batch.clips],
            bucket.frames,
            bucket.height,
            bucket.width,
            self.fps / self.data.stride,
            loaded,
        )

    def caption(self, label: dict[str, object]) -> str:
        """The caption a model reads: for sound alone that of the sound, where there is one."""
        text = (None if self.with_video else label.get("audio_text")) or label.get("text") or ""
        return clean(str(text)) if self.data.clean_captions else str(text)


def full_steps(sampler: Sampler, split: str | None) -> NDArray[np.bool_]:
    """[steps] whether every rank has a clip: ranks that compute together take these alone. UserError if there are none."""
    steps, _ = sampler.plan()
    full: NDArray[np.bool_] = np.all(steps.stop > steps.start, axis=1)
    if not full.any():
        clips, world = len(sampler.catalog), sampler.world
        raise UserError(f"{clips} clips of split {split!r} do not give each of {world} processes a batch")
    return full


def _one(values: NDArray[Any], what: str, option: str) -> float:
    found = np.unique(values)
    if len(found) != 1:
        raise UserError(f"the datasets have {len(found)} {what} ({found[:4]}): build them with one {option}")
    return float(found[0])
