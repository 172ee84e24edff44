"""The loader: the sampler's decisions become tensors. Reading, decoding and the graph run ahead of the consumer.

Nothing here decides anything: position and randomness live in the sampler, so what was read ahead can be thrown away and made
again. A sample whose bytes are corrupt is replaced by another of the same bucket, drawn from its own seed, and reported.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from javisc.manifests.errors import UserError
from javisc.trainer.data.bytes.clip_cache import ClipCache
from javisc.trainer.data.bytes.colour import Colour
from javisc.trainer.data.bytes.decode import DecodeError, each_frame, samples
from javisc.trainer.data.bytes.framing import Framing, framing
from javisc.trainer.data.bytes.graph import ClipInput, Graph, GraphOptions, Tensors
from javisc.trainer.data.bytes.loaded import Decoded, Loaded
from javisc.trainer.data.bytes.memory import BatchMemory
from javisc.trainer.data.bytes.one_pass import OnePass
from javisc.trainer.data.bytes.reader import CorruptSample, Reader, ReaderOptions
from javisc.trainer.data.bytes.workers import Workers, decoded
from javisc.trainer.data.index import draws
from javisc.trainer.data.index.catalog import Rendition
from javisc.trainer.data.index.sampler import Batch, Clip, Sampler

_log = logging.getLogger(__name__)

Room = NDArray[np.generic]
NO_FRAMES: NDArray[np.uint8] = np.zeros((0, 0, 0, 3), np.uint8)
#: Replacements tried for one corrupt sample before the dataset is called broken.
SUBSTITUTES = 8


def _warn(row: int, key: str, message: str) -> None:
    """Nothing is lost in silence: what a caller does not collect stands in the log."""
    _log.warning("sample %s (row %d) was replaced by another: %s", key, row, message)


@dataclass(frozen=True)
class LoaderOptions:
    """How batches are made.

    `threads` decode clips at once; `ahead` batches are being read or decoded, `ready` finished ones wait. `crop`: "centre", or
    "random" by the sample's own seed. `resize`: "cover" scales the picture until it covers the bucket, "none" crops from the
    picture as it is. `fps` and `gop` are the recipe's. `whole_sound` gives each clip's whole sound beside its window's.
    `with_video=False` reads the sound alone, for a `transform`, which then gets no frames. A loader with a transform keeps up to
    `cache_bytes` of decoded clips in memory; without a cache and with `processes`, `threads` processes decode and transform.
    """

    threads: int = 2
    ahead: int = 2
    ready: int = 1
    crop: str = "centre"
    resize: str = "cover"
    fps: Fraction = Fraction(24)
    gop: int = 12
    whole_sound: bool = False
    with_video: bool = True
    cache_bytes: int = 0
    processes: bool = False
    graph: GraphOptions = field(default_factory=GraphOptions)
    reader: ReaderOptions = field(default_factory=ReaderOptions)


class Loader:
    """Batches of one rank as tensors, from where the sampler stands.

        with Loader(sampler, options) as loader:
            for loaded in loader:          # one epoch
                ...
                torch.save(loader.state_dict(), ...)

    `report(row, key, message)` is called for every sample that had to be replaced; without it, a warning is logged.

    A `transform` takes the graph's place: it is called in the decoding threads with the window's frames (F, H, W, 3) uint8, its
    sound (L, channels) float32 and the clip, and what it returns becomes an item of the batch; it is pickled where processes
    decode. `finish` is called in the loader's own thread with each batch that has clips.
    """

    def __init__(
        self,
        sampler: Sampler,
        options: LoaderOptions | None = None,
        *,
        transform: Callable[[NDArray[np.uint8], NDArray[np.float32], Clip], Any] | None = None,
        finish: Callable[[Loaded], Any] | None = None,
        report: Callable[[int, str, str], None] | None = None,
    ) -> None:
        self.sampler = sampler
        self.options = options or LoaderOptions()
        if self.options.crop not in ("centre", "random") or self.options.resize not in ("cover", "none"):
            raise UserError(
                f"crop={self.options.crop}, resize={self.options.resize}: crop is centre or random, resize cover or none"
            )
        if transform is None and not self.options.with_video:
            raise ValueError("a loader without video needs a transform")
        self.report = report or _warn
        self.away_ends = False  # True: bytes that storage does not give end the work, and are held against no sample
        self.catalog = sampler.catalog
        self.reader = Reader(self.options.reader)
        self.transform, self.finish = transform, finish
        self.cache: ClipCache | None = None
        if transform is not None and self.options.cache_bytes:
            self.cache = ClipCache(
                self.catalog, self.reader, self.options.cache_bytes, self.options.fps, self.options.gop
            )
        self.workers: Workers | None = None
        if transform is not None and self.options.processes and self.options.with_video and self.cache is None:
            self.workers = Workers(self.options.threads, transform, self.options.fps, self.options.gop)
        #: A transform gets the clip's own pictures, and so does who crops from them as they are.
        self.renditions = sampler.options.renditions and transform is None and self.options.resize == "cover"
        self.unread: set[int] = set()  # rows whose renditions are damaged
        #: On the CPU pictures are finished in the decoding threads, each in its batch's memory.
        self.one_pass = transform is None and self.options.graph.device == "cpu"
        self.memory = BatchMemory(self.options.ahead + self.options.ready + 2)
        self.graph = None if transform is not None else Graph(self.options.graph, pictures=not self.one_pass)
        self.pool = ThreadPoolExecutor(self.options.threads, thread_name_prefix="javisc-decode")
        self.replaced = 0
        #: Every rank's clips in the batch that was given last.
        self.rows: tuple[int, ...] = ()

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the threads and close every file."""
        self.pool.shutdown(wait=True, cancel_futures=True)
        if self.workers is not None:
            self.workers.rest()
        self.reader.close()

    def state_dict(self) -> dict[str, Any]:
        """Where the consumer stands: batches made ahead do not count."""
        return self.sampler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state. Takes effect at the next loop."""
        self.sampler.load_state_dict(state)

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Loaded]:
        """The rest of the epoch. Raises UserError if the dataset is too broken to go on."""
        for loaded in self.taking(self.sampler.upcoming()):
            self.sampler.advance()
            self.rows = loaded.batch.rows
            yield loaded

    def taking(self, batches: Iterable[Batch]) -> Iterator[Loaded]:
        """Batches that the sampler decided, wherever it stands now. Raises UserError if the dataset is too broken to go on."""
        done: queue.Queue[Loaded | BaseException | None] = queue.Queue(maxsize=max(1, self.options.ready))
        stop = threading.Event()

        def put(item: Loaded | BaseException | None) -> None:
            while not stop.is_set():
                try:
                    done.put(item, timeout=0.1)
                    return
                except queue.Full:
                    continue

        def work() -> None:
            try:
                for loaded in self._batches(batches, stop):
                    put(loaded)
                    if stop.is_set():
                        return
                put(None)
            except BaseException as error:  # noqa: BLE001 (handed to the consumer, which raises it)
                put(error)

        worker = threading.Thread(target=work, name="javisc-loader", daemon=True)
        worker.start()
        try:
            while (item := done.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            stop.set()
            worker.join()
            if self.workers is not None:
                self.workers.rest()  # validation has a loader for each of its passes: none keeps processes for the next

    def _batches(self, batches: Iterable[Batch], stop: threading.Event) -> Iterator[Loaded]:
        waiting: deque[tuple[Batch, list[Future[Decoded]], Room | None]] = deque()
        reads: list[Future[dict[str, bytes]]] = []
        try:
            for batch in batches:
                if stop.is_set():
                    break
                room = self._room(batch)
                # Bytes are on their way before a thread is free to decode them; decoded clips that are kept need none.
                read = [self.reader.pool.submit(self._bytes, batch, c) for c in batch.clips if self.cache is None]
                reads = [*(one for one in reads if not one.done()), *read]
                made = [
                    self.pool.submit(self._decode_some, batch, clip, room, at, read[at] if read else None)
                    for at, clip in enumerate(batch.clips)
                ]
                waiting.append((batch, made, room))
                del room
                if len(waiting) > self.options.ahead:
                    yield self._first(waiting)
            while waiting and not stop.is_set():
                yield self._first(waiting)
        finally:
            _ = [one.cancel() for one in reads]
            # Clips under way are waited for: one that came to its worker later would start the processes anew.
            wait([future for _, futures, _ in waiting for future in futures if not future.cancel()])

    def _first(self, waiting: deque[tuple[Batch, list[Future[Decoded]], Room | None]]) -> Loaded:
        """The batch that is next; it waits on where one of its clips fails."""
        loaded = self._assemble(*waiting[0])
        waiting.popleft()
        return loaded

    def _room(self, batch: Batch) -> Room | None:
        """Where a batch's pictures are put as they are decoded: (B, 3, F, H, W) or (B, F, 3, H, W)."""
        if not (self.one_pass and batch.clips):
            return None
        bucket, graph = batch.bucket, self.options.graph
        channels, frames = (3, bucket.frames) if graph.layout == "CFHW" else (bucket.frames, 3)
        shape = (len(batch.clips), channels, frames, bucket.height, bucket.width)
        return self.memory.take(shape, graph.dtype)

    def _assemble(self, batch: Batch, futures: list[Future[Decoded]], room: Room | None) -> Loaded:
        decoded = [future.result() for future in futures]
        replaced = tuple(problem for item in decoded for problem in item.problems)
        for row, message in replaced:
            self.replaced += 1
            self.report(row, str(self.catalog.strings["key"][row]), message)
        clips = tuple(item.clip for item in decoded)
        batch = replace(batch, clips=clips)
        labels = self.catalog.labels([clip.row for clip in clips])
        items = tuple(item.made for item in decoded)
        sounds = tuple(torch.from_numpy(item.sound) for item in decoded if item.sound is not None)
        if self.graph is None:
            loaded = Loaded(batch, None, labels, replaced, items)
        elif items:
            video = None if room is None else torch.from_numpy(room)
            loaded = Loaded(batch, self.graph.run(items, video), labels, replaced, sounds=sounds)
        else:
            shape = (0, 3, batch.bucket.frames, batch.bucket.height, batch.bucket.width)
            loaded = Loaded(batch, Tensors(torch.zeros(shape)), labels, replaced)
        return replace(loaded, made=self.finish(loaded)) if self.finish is not None and items else loaded

    def _decode_some(
        self, batch: Batch, clip: Clip, room: Room | None, at: int, read: Future[dict[str, bytes]] | None
    ) -> Decoded:
        """Decode a clip, or one that stands in for it, whose pictures are the batch's number `at`; `read` are its bytes."""
        problems: list[tuple[int, str]] = []
        for attempt in range(SUBSTITUTES + 1):
            try:
                made = self._made(batch, clip, room, at, read)
                return Decoded(clip, made, problems, self._whole_sound(clip, made))
            except (CorruptSample, DecodeError) as error:
                if self.away_ends and isinstance(error.__cause__, OSError):
                    raise UserError(f"{error}; once it is there, the same command goes on") from error
                problems.append((clip.row, str(error)))
                other = self._substitute(batch, clip, attempt)
                if other is None:
                    raise UserError(
                        f"sample {self.catalog.strings['key'][clip.row]} cannot be used and no other fits its bucket "
                        f"{batch.bucket.name}: {error}; drop it with `javisc filter` or build it again"
                    ) from error
                clip, read = other, None
        raise UserError(
            f"{len(problems)} samples in a row cannot be read, the last: {problems[-1][1]}; "
            "run `javisc verify` on the dataset and build it again"
        )

    def _substitute(self, batch: Batch, clip: Clip, attempt: int) -> Clip | None:
        """Another clip of the epoch that fits the bucket, a function of the first one's seed; None if there is none."""
        bucket, numbers = batch.bucket, self.catalog.numbers
        policy, stride = self.sampler.options.windows, self.sampler.options.stride
        start = int(draws.integers(len(self.catalog), clip.seed, "substitute", attempt)[0])
        order = (start + np.arange(len(self.catalog))) % len(self.catalog)
        fits = policy.feasible({name: values[order] for name, values in numbers.items()}, bucket.frames, stride)
        fits &= order != clip.row
        if not fits.any():
            return None
        return self.sampler.batch(batch.epoch, batch.step, bucket, order[np.flatnonzero(fits)[:1]]).clips[0]

    def _smaller(self, batch: Batch, clip: Clip) -> Rendition | None:
        """The rendition that a clip's pictures are read from."""
        taken = self.renditions and clip.row not in self.unread
        return self.catalog.rendition(clip.row, batch.bucket.height, batch.bucket.width) if taken else None

    def _bytes(self, batch: Batch, clip: Clip) -> dict[str, bytes]:
        """A clip's members, by extension. Raises CorruptSample."""
        heard, seen = self.options.graph.with_audio or self.transform is not None, self.options.with_video
        exts = [*["flac"] * heard, *["mp4"] * seen]
        smaller = self._smaller(batch, clip)
        url, members, digest = self.catalog.place(clip.row, [ext for ext in exts if smaller is None or ext != "mp4"])
        data = self.reader.read(url, members, digest)
        try:
            data |= {} if smaller is None else self.reader.read(*self.catalog.beside(clip.row, smaller))
        except CorruptSample as error:
            if self.away_ends and isinstance(error.__cause__, OSError):
                raise
            _log.warning("%s; the clip's own pictures are read: `javisc repair` makes the rendition anew", error)
            self.unread.add(clip.row)
            return self._bytes(batch, clip)
        if missing := [ext for ext in exts if ext not in data]:
            raise CorruptSample(f"{url}: the sample has no .{missing[0]}")
        return data

    def _made(self, batch: Batch, clip: Clip, room: Room | None, at: int, read: Future[dict[str, bytes]] | None) -> Any:
        """The clip as the graph or the transform wants it, or already transformed."""
        window = clip.window
        if self.cache is not None and (kept := self.cache.window(clip.row, window)) is not None:
            assert self.transform is not None
            return self.transform(*kept, clip)
        data = self._bytes(batch, clip) if read is None else read.result()
        (url, members, _), smaller = self.catalog.place(clip.row, ("flac",)), self._smaller(batch, clip)
        sure = self.reader.options.verify and all(one.crc32 is not None for one in members)
        if not sure and self.graph is not None and "flac" in data:  # a sound that is damaged ends DALI's graph
            samples(data["flac"], 0, int(self.catalog.numbers["num_samples"][clip.row]))
        if self.transform is None and self.options.graph.device == "gpu":
            sizes = self.catalog.numbers if smaller is None else {"height": smaller.height, "width": smaller.width}
            height, width = (int(sizes[name][clip.row]) for name in ("height", "width"))
            return self._input(batch, clip, url, data["mp4"], (height, width), data.get("flac"))
        if room is not None:
            # The room itself is held until its slice is written: see `BatchMemory`.
            into = room[at] if self.options.graph.layout == "CFHW" else room[at].swapaxes(0, 1)
            return self._painted(batch, clip, url, data["mp4"], data.get("flac"), into)
        if self.workers is not None:
            return self.workers.made(data["mp4"], data["flac"], clip)
        assert self.transform is not None
        if self.options.with_video:
            return self.transform(*decoded(data["mp4"], data["flac"], clip, self.options.fps, self.options.gop), clip)
        return self.transform(NO_FRAMES, samples(data["flac"], window.audio_first, window.audio_count), clip)

    def _painted(self, batch: Batch, clip: Clip, url: str, mp4: bytes, flac: bytes | None, into: Room) -> ClipInput:
        """Decode the window's pictures into `into` (3, F, H, W), as the bucket has them."""
        options, window, inputs, paint = self.options.graph, clip.window, None, None

        def use(number: int, frame: Any) -> None:
            nonlocal inputs, paint
            if inputs is None or paint is None:
                inputs = self._input(batch, clip, url, NO_FRAMES, (frame.height, frame.width), flac)
                paint = OnePass(
                    frame.height,
                    frame.width,
                    Framing(inputs.resize, inputs.crop, inputs.anchor, inputs.mirror),
                    mean=(0, 0, 0) if options.dtype == "uint8" else options.mean,
                    std=(1, 1, 1) if options.dtype == "uint8" else options.std,
                    antialias=options.antialias,
                    colour=None if options.colour is None else inputs.colour,
                )
            try:
                paint(frame, into[:, number])
            except ValueError as error:
                raise CorruptSample(f"{url}: {error}") from error

        each_frame(
            mp4, window.first, window.count, use, fps=self.options.fps, gop=self.options.gop, stride=window.stride
        )
        assert inputs is not None
        return inputs

    def _whole_sound(self, clip: Clip, made: Any) -> NDArray[np.float32] | None:
        if not (self.options.whole_sound and isinstance(made, ClipInput) and made.audio is not None):
            return None
        return samples(made.audio, 0, int(self.catalog.numbers["num_samples"][clip.row]))

    def _input(
        self, batch: Batch, clip: Clip, url: str, picture: Any, shape: tuple[int, int], flac: bytes | None
    ) -> ClipInput:
        height, width = shape
        window = clip.window
        target = (batch.bucket.height, batch.bucket.width)
        try:
            size, anchor = framing(height, width, target, self.options.resize, self.options.crop, clip.seed)
        except ValueError as error:
            raise CorruptSample(f"{url}: {error}") from error
        return ClipInput(
            picture,
            window.first,
            window.count,
            window.stride,
            size,
            target,
            anchor,
            clip.mirror,
            flac,
            (window.audio_first, window.audio_count),
            Colour() if self.options.graph.colour is None else self.options.graph.colour.drawn(clip.seed),
        )
