"""Pools for the prior's negatives, read from compiled datasets: masklets, separated sounds, unpaired sounds.

What a sample draws from a pool is a function of its own seed and of the pool's rows, so a resumed run draws the same. Nothing is
held but the pool's table of rows and a few megabytes of bytes lately read.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from javisc.compiler.inputs.masklets import part_of, read_geometry
from javisc.manifests.errors import UserError
from javisc.trainer.data.bytes import decode
from javisc.trainer.data.bytes.reader import CorruptSample, Reader, ReaderOptions
from javisc.trainer.data.index.catalog import Catalog
from javisc.trainer.data.sources.pool_names import SEPARATED, stem
from javisc.trainer.transforms.draws import Draws
from javisc.trainer.transforms.javisdit_audio_negatives import Span, loud_spans
from javisc.trainer.transforms.javisdit_video_negatives import Masklet

T = TypeVar("T")
Path = str | os.PathLike[str]
Report = Callable[[str, str, str], None]

#: What a dataset's catalog holds beside its usual strings, for its clips to be found in pools.
NAMES = ("relpath",)
#: The column of a pool that names the clip each row belongs to.
CLIP = "clip_key"
#: What `javisc build prior separate` says of a sound in which nothing is heard.
SILENT = '{"activity":[]}'
#: Draws for one sample before a pool is called broken.
ATTEMPTS = 8
#: A sound of a pool is read up to here: only crops of some seconds are taken from it.
MAX_SECONDS = 600
#: Bytes lately read that one pool keeps.
CACHE_BYTES = 16 << 20


def look_up(name: str, index: Mapping[str, T]) -> T | None:
    """The entry of a path's longest tail that the index has: roots may differ, so a/b/c is found as a/b/c, b/c or c."""
    parts = name.strip("/").split("/")
    for first in range(len(parts)):
        if (found := index.get("/".join(parts[first:]))) is not None:
            return found
    return None


class Shelf:
    """A pool's rows and their bytes: read and checked by the reader, the last few kept. Safe for many threads."""

    def __init__(self, path: Path, reader: Reader, report: Report | None) -> None:
        self.path = os.fspath(path)
        self.catalog = Catalog.open([path], strings=("key", "relpath", "label", CLIP))
        strings = self.catalog.strings
        self.names: list[str] = strings["relpath"].fill_null("").to_list()
        self.labels: list[str | None] = strings["label"].to_list()
        #: The clip that each row was made for, by its key, where `javisc build prior` made the pool.
        self.clips: list[str | None] = strings[CLIP].to_list() if CLIP in strings.columns else [None] * len(self.names)
        self.reader = reader
        self.report = report
        self.lock = threading.Lock()
        self.kept: OrderedDict[int, dict[str, bytes]] = OrderedDict()
        self.held = 0

    def __len__(self) -> int:
        return len(self.catalog)

    def read(self, row: int, exts: Sequence[str]) -> dict[str, bytes]:
        """A row's members, always the same ones of a row. Raises CorruptSample."""
        with self.lock:
            if (kept := self.kept.get(row)) is not None:
                self.kept.move_to_end(row)
                return kept
        url, members, digest = self.catalog.place(row, exts)
        data = self.reader.read(url, members, digest)
        if missing := [ext for ext in exts if ext not in data]:
            raise CorruptSample(f"{url}: {self.names[row]} has no .{missing[0]}")
        size = sum(map(len, data.values()))
        with self.lock:
            if row not in self.kept and size <= CACHE_BYTES // 2:
                self.kept[row], self.held = data, self.held + size
                while self.held > CACHE_BYTES:
                    _, oldest = self.kept.popitem(last=False)
                    self.held -= sum(map(len, oldest.values()))
        return data

    def sound(self, row: int) -> Tensor:
        """A row's sound, the mean of its channels, [samples] float32. Raises CorruptSample or DecodeError."""
        rate = int(self.catalog.numbers["audio_fps"][row])
        count = min(int(self.catalog.numbers["num_samples"][row]), MAX_SECONDS * rate)
        return torch.from_numpy(decode.samples(self.read(row, ["flac"])["flac"], 0, max(count, 0)).mean(axis=1))

    def attempt(self, rows: Iterable[int], make: Callable[[int], T]) -> T | None:
        """What `make` gives for the first row that can be read; the others are reported. None without rows."""
        tried = 0
        for row in rows:
            try:
                return make(row)
            except (CorruptSample, decode.DecodeError, ValueError, ArithmeticError, RecursionError) as error:
                tried += 1
                if self.report is not None:
                    self.report(self.path, self.names[row], str(error))
                if tried == ATTEMPTS:
                    raise UserError(
                        f"{self.path}: {ATTEMPTS} entries of the pool in a row cannot be read, the last: {error}; "
                        "run `javisc verify` on it and build it again"
                    ) from error
        return None

    def check_rate(self, rate: int) -> None:
        """Raise UserError unless every sound has `rate` samples a second."""
        rates = np.unique(self.catalog.numbers["audio_fps"])
        if rates.tolist() != [rate]:
            raise UserError(
                f"{self.path}: the pool's sounds have {', '.join(map(str, rates[:4]))} samples a second, the dataset {rate}: "
                f"build the pool with --sample-rate {rate}"
            )


class Masklets:
    """Objects of a pool built by `javisc build masklets` (a `MaskletPool`).

    `rule`: what counts as the object, pixels brighter than half ("corrected"), or all but black ones, codec noise included
    ("reference").
    """

    def __init__(self, shelf: Shelf, rule: str = "corrected") -> None:
        parts = [(row, part) for row, name in enumerate(shelf.names) if (part := part_of(name)) is not None]
        masks = {name: row for row, (kind, name) in parts if kind == "mask"}
        self.mask_of = {row: masks[name] for row, (kind, name) in parts if kind == "masklet" and name in masks}
        # Those of `javisc build prior masklets` bring their own mask, without loss.
        exact = shelf.catalog.numbers.get("mkv_offset", np.full(len(shelf), -1))
        self.mask_of |= {row: row for row, (kind, _) in parts if kind == "masklet" and exact[row] >= 0}
        if not self.mask_of:
            raise UserError(
                f"{shelf.path}: the pool holds no masklet with its mask; build it with `javisc build masklets`"
            )
        rows = np.fromiter(self.mask_of, np.int64)
        lengths = shelf.catalog.numbers["num_frames"][rows]
        order = np.argsort(lengths, kind="stable")
        self.rows, self.lengths = rows[order], lengths[order]
        self.shelf, self.level = shelf, 127 if rule == "corrected" else 0

    def masklet(self, draws: Draws, frames: int) -> Masklet | None:
        """One of the objects that are long enough, else the longest; the stretch of it is drawn too."""
        first, total = int(np.searchsorted(self.lengths, frames)), len(self.rows)
        if first == total:  # the longest, or the next one where that cannot be read
            places: Iterator[int] = iter(range(total - 1, -1, -1))
        else:
            places = (draws.integer(f"masklet.object.{attempt}", first, total - 1) for attempt in range(ATTEMPTS))
        rows = (int(self.rows[place]) for place in places)
        return self.shelf.attempt(rows, lambda row: self._read(row, draws, frames))

    def _read(self, row: int, draws: Draws, frames: int) -> Masklet:
        exact = self.mask_of[row] == row
        content = self.shelf.read(row, ["json", "mp4", *(["mkv"] if exact else [])])
        mask = content if exact else self.shelf.read(self.mask_of[row], ["mp4"])
        row_json = json.loads(content["json"])
        geometry = read_geometry(str(row_json.get("label") if isinstance(row_json, dict) else None))
        total = int(self.shelf.catalog.numbers["num_frames"][row])
        if len(geometry.boxes) != total:
            raise CorruptSample(f"{self.shelf.names[row]} has {total} frames and {len(geometry.boxes)} boxes")
        count = min(frames, total)
        first = draws.integer("masklet.window", 0, total - count)
        fps = Fraction(float(self.shelf.catalog.reals["fps"][row])).limit_denominator(1001)
        boxes = geometry.boxes[first : first + count]
        return Masklet(
            torch.from_numpy(decode.frames(content["mp4"], first, count, fps=fps)).permute(0, 3, 1, 2),
            torch.from_numpy(
                decode.masks(mask["mkv"], first, count)
                if exact
                else decode.frames(mask["mp4"], first, count, fps=fps)[..., 1] > self.level
            ),
            torch.tensor([box or (0, 0, 0, 0) for box in boxes], dtype=torch.float32),
            torch.tensor([box is not None for box in boxes]),
            (geometry.height, geometry.width),
        )


class Sounds:
    """Other sounds to add and separated tracks to take away (a `SoundPool`), from a dataset of `javisc build audio`.

    Tracks named as AudioSep's (X.wav__sep__…) belong to the clip X, whose clock they share. Anything else is only added. Those in
    which nothing is heard are left out: a clip with silence added, or taken away, is the clip itself.
    """

    def __init__(self, shelf: Shelf) -> None:
        self.shelf = shelf
        origins = [
            stem(name.partition(SEPARATED)[0]) if clip is None else of_clip(clip)
            for name, clip in zip(shelf.names, shelf.clips, strict=True)
        ]
        # Sorted by origin, the tracks of one file lie together: drawing from all others needs no second try.
        heard = [row for row, label in enumerate(shelf.labels) if label != SILENT]
        if not heard and len(shelf):
            raise UserError(f"{shelf.path}: none of the pool's {len(shelf)} sounds is heard: give another")
        self.rows = np.asarray(sorted(heard, key=lambda row: (origins[row], shelf.names[row])), np.int64)
        self.spans: dict[str, Span] = {}
        for place, row in enumerate(self.rows):
            origin = origins[row]
            self.spans[origin] = (self.spans.get(origin, (place, 0))[0], place + 1)

    def source(self, draws: Draws, apart_from: str) -> tuple[Tensor, list[Span]] | None:
        """A sound of another file than the clip `apart_from`, and where it is active, by whole seconds."""
        first, last = look_up(apart_from, self.spans) or (0, 0)
        others = len(self.rows) - (last - first)
        if others == 0:
            return None
        places = (draws.integer(f"pool.sound.{attempt}", 0, others - 1) for attempt in range(ATTEMPTS))
        rows = (int(self.rows[place + (last - first) * (place >= first)]) for place in places)
        return self.shelf.attempt(rows, self._active)

    def separated(self, name: str) -> list[tuple[Tensor, list[Span]]]:
        """The tracks of a clip that can be read."""
        rows = [int(row) for row in self.rows[slice(*(look_up(name, self.spans) or (0, 0)))]]
        tracks = [self.shelf.attempt([row], self._active) for row in rows if SEPARATED in self.shelf.names[row]]
        return [track for track in tracks if track is not None]

    def _active(self, row: int) -> tuple[Tensor, list[Span]]:
        wave = self.shelf.sound(row)
        if (told := _activity(self.shelf.labels[row])) is not None:
            return wave, [(first, min(last, len(wave))) for first, last in told if first < min(last, len(wave))]
        rate = int(self.shelf.catalog.numbers["audio_fps"][row])
        return wave, loud_spans(wave, pieces=max(1, round(len(wave) / rate)))


def _activity(label: str | None) -> list[Span] | None:
    """Where a separated track is active, in samples, by its label; None where that does not tell."""
    if label is None or not label.startswith('{"activity":'):
        return None
    spans = json.loads(label)["activity"]
    if not isinstance(spans, list) or not all(
        isinstance(span, list) and len(span) == 2 and all(type(at) is int for at in span) for span in spans
    ):
        raise ValueError(f"{label[:80]} is no activity")
    return [(max(first, 0), last) for first, last in spans]


class Unpaired:
    """Sounds made from captions, from a dataset of `javisc build audio`, by the path that a clip's row names."""

    def __init__(self, shelf: Shelf) -> None:
        self.shelf = shelf
        self.rows = {stem(name): row for row, name in reversed(list(enumerate(shelf.names)))}
        self.by_clip = {of_clip(clip): row for row, clip in enumerate(shelf.clips) if clip is not None}

    def row(self, name: str) -> int | None:
        """The pool's row of a name without extension; what lies above the pool's root does not count."""
        return look_up(name, self.by_clip if name.startswith(of_clip("")) else self.rows)

    def sound(self, name: str) -> Tensor | None:
        """The sound of that name, [samples]; None if there is none or it cannot be read."""
        row = self.row(name)
        return None if row is None else self.shelf.attempt([row], self.shelf.sound)


class Pools:
    """The pools that a run draws from; each is the path of a compiled dataset or view, or None.

        with Pools(masklets="MASKLETS", sources="SEPARATED", unpaired="UNPAIRED") as pools: ...

    `rate`: samples a second of the clips' sound. `rule`: see `Masklets`. `report(pool, name, message)` is called for every entry
    that cannot be read; another is drawn, or the clip goes without.
    Raises UserError: a pool is empty, of another kind, or of another rate.
    """

    def __init__(
        self,
        masklets: Path | None = None,
        sources: Path | None = None,
        unpaired: Path | None = None,
        *,
        rate: int = 16000,
        rule: str = "corrected",
        reader: ReaderOptions | None = None,
        report: Report | None = None,
    ) -> None:
        self.reader = Reader(reader)
        shelves = [None if path is None else Shelf(path, self.reader, report) for path in (masklets, sources, unpaired)]
        for shelf in shelves[1:]:
            if shelf is not None:
                shelf.check_rate(rate)
        self.shelves = [shelf for shelf in shelves if shelf is not None]
        self.masklets = None if shelves[0] is None else Masklets(shelves[0], rule)
        self.sounds = None if shelves[1] is None else Sounds(shelves[1])
        self.unpaired = None if shelves[2] is None else Unpaired(shelves[2])

    def __enter__(self) -> Pools:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close every file."""
        self.reader.close()

    def sound_name(self, label: Mapping[str, object]) -> str:
        """What the pool of sounds calls a clip: by its key where `javisc build prior` made the pool, else by its path."""
        name = of_clip(label.get("key"))
        known = self.sounds is not None and name in self.sounds.spans
        return name if known else clip_name(label)

    def unpaired_name(self, label: Mapping[str, object]) -> str:
        """Where the pool has a clip's unpaired sound: what its row says, if that is in it, else by its key, else by its path."""
        pool, path = self.unpaired, label.get("unpaired_audio_path")
        if pool is None or not pool.by_clip or (path and pool.row(stem(str(path))) is not None):
            return unpaired_name(label)
        return of_clip(label.get("key"))

    def fingerprint(self) -> str:
        """A digest of all that decides what is drawn: a resumed run must find the same pools. Belongs into a source's state."""
        parts = [f"{kind.__class__.__name__}:" for kind in (self.masklets, self.sounds, self.unpaired)]
        digests = iter([shelf.catalog.fingerprint() for shelf in self.shelves])
        return hashlib.sha256(
            "\n".join(part if part.startswith("NoneType") else part + next(digests) for part in parts).encode()
        ).hexdigest()

    def check(self, catalog: Catalog) -> None:
        """Raise UserError if a pool that goes by names has nothing for any clip of a dataset (opened with `NAMES`)."""
        missing: dict[str, Callable[[Mapping[str, object]], bool]] = {}
        if (unpaired := self.unpaired) is not None:
            missing[unpaired.shelf.path] = lambda label: unpaired.row(self.unpaired_name(label)) is None
        if (sounds := self.sounds) is not None and any(SEPARATED in name for name in sounds.shelf.names):
            missing[sounds.shelf.path] = lambda label: look_up(self.sound_name(label), sounds.spans) is None
        for path, lacks in missing.items():
            if all(lacks(label) for label in catalog.strings.iter_rows(named=True)):
                label = catalog.strings.row(0, named=True)
                raise UserError(
                    f"{path}: the pool has nothing for any of {len(catalog)} clips: it goes by names, the first clip's is "
                    f"{clip_name(label)}, its unpaired sound's {unpaired_name(label)}; check which pool this is"
                )


def of_clip(key: object) -> str:
    """What a pool calls the clip of this key; no path begins so."""
    return f"{CLIP}:{key}"


def clip_name(label: Mapping[str, object]) -> str:
    """A clip's name in pools: its source's relative path without the extension."""
    if "relpath" not in label:
        raise ValueError("clips are found in pools by `relpath`: open the catalog with strings=(*STRINGS, *NAMES)")
    return stem(str(label["relpath"]))


def unpaired_name(label: Mapping[str, object]) -> str:
    """Where a clip's unpaired sound is: what its row says, else a sound that is named as the clip."""
    path = label.get("unpaired_audio_path")
    return stem(str(path)) if path else clip_name(label)
