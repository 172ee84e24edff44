"""Worker processes that decode and transform clips, so that training and decoding do not wait for one another's interpreter.

The training process reads the bytes; a worker makes of them what a loader's `transform` would, and shares the tensors' memory.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import pickle
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from javisc.manifests.errors import UserError
from javisc.trainer.data.bytes.decode import frames, samples
from javisc.trainer.data.index.sampler import Clip

Transform = Callable[[NDArray[np.uint8], NDArray[np.float32], Clip], Any]


def decoded(
    mp4: bytes, flac: bytes, clip: Clip, fps: Fraction, gop: int
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """A window's frames (F, H, W, 3) and samples (L, channels). Raises DecodeError."""
    window = clip.window
    picture = frames(mp4, window.first, window.count, fps=fps, gop=gop, stride=window.stride)
    return picture, samples(flac, window.audio_first, window.audio_count)


class Workers:
    """`count` processes, started as clips come; `transform` is pickled. They end with this process, however it ends."""

    def __init__(self, count: int, transform: Transform, fps: Fraction, gop: int) -> None:
        self.count, self.task = count, (transform, fps, gop)
        self.lock = threading.Lock()
        self.pool: ProcessPoolExecutor | None = None

    def made(self, mp4: bytes, flac: bytes, clip: Clip) -> Any:
        """What the transform makes of a clip. Raises DecodeError, or UserError if a worker dies."""
        try:
            with self.lock:
                if self.pool is None:
                    context = multiprocessing.get_context("forkserver")
                    context.set_forkserver_preload([__name__])
                    self.pool = ProcessPoolExecutor(
                        self.count, mp_context=context, initializer=_begin, initargs=self.task
                    )
                waiting = self.pool.submit(_work, mp4, flac, clip)  # raises, too, once one was killed while all rested
            return waiting.result()
        except BrokenProcessPool as error:
            raise UserError(
                "a process that decodes was killed, perhaps for want of memory, or of shared memory (/dev/shm): lower "
                "data.threads, or set data.processes=false"
            ) from error

    def rest(self) -> None:
        """End the processes; the next clip starts new ones."""
        with self.lock:
            pool, self.pool = self.pool, None
        if pool is not None:
            pool.shutdown(wait=True, cancel_futures=True)


_task: tuple[Transform, Fraction, int] | None = None


def _begin(transform: Transform, fps: Fraction, gop: int) -> None:
    global _task
    _task = (transform, fps, gop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the training process ends its workers
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        # A killed parent closes nothing that its workers wait for.
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _work(mp4: bytes, flac: bytes, clip: Clip) -> Any:
    assert _task is not None
    transform, fps, gop = _task
    try:
        return transform(*decoded(mp4, flac, clip, fps, gop), clip)
    except Exception as error:
        try:
            pickle.loads(pickle.dumps(error))  # noqa: S301 (our own bytes)
        except Exception:  # noqa: BLE001 (an error that cannot travel would pass for a killed process)
            raise RuntimeError(f"{type(error).__name__}: {error}") from error
        raise
