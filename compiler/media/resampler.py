"""Resampling by soxr VHQ, piece by piece; a resampler that has ended serves the next sound of its rates.

To design a filter anew costs a short sound a sixth of its resampling. One that was cleared gives the same samples as a new one.
"""

from __future__ import annotations

import numpy as np
import soxr
from numpy.typing import NDArray

from javisc.compiler.media.stamps import Sound

#: Resamplers that wait for sounds of their rates, at most.
SPARE = 4
_spare: dict[tuple[int, int, int], soxr.ResampleStream] = {}


class Resampler:
    """From `rate` to `target` samples a second of `channels`, float32."""

    def __init__(self, rate: int, target: int, channels: int) -> None:
        self._kind = (rate, target, channels)
        self._stream = _spare.pop(self._kind, None) or soxr.ResampleStream(
            rate, target, channels, dtype="float32", quality="VHQ"
        )

    def push(self, sound: Sound) -> Sound:
        """What becomes ready of the samples (channels, n) that come next."""
        return self._resampled(sound, last=False)

    def end(self) -> Sound:
        """The rest. Nothing can be pushed after it."""
        rest = self._resampled(np.zeros((self._kind[2], 0), np.float32), last=True)
        self._stream.clear()
        if len(_spare) >= SPARE:
            _spare.pop(next(iter(_spare)), None)
        _spare[self._kind] = self._stream
        del self._stream
        return rest

    def _resampled(self, sound: Sound, last: bool) -> Sound:
        made: NDArray[np.float32] = self._stream.resample_chunk(np.ascontiguousarray(sound.T), last=last)
        return made.T
