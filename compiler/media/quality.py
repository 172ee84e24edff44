"""Quality columns, computed while a clip is decoded anyway. `manifests.schema.QUALITY` says what each one means."""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray

from javisc.compiler.media import loudness
from javisc.compiler.media.luma import Luma

SILENT_WINDOW = 0.05
SILENT_RMS = 10 ** (-60 / 20)
FULL_SCALE = 1 - 2**-14
#: Samples of a spectrum, and their window.
SPECTRUM = 2048
_TAPER = np.hanning(SPECTRUM).astype(np.float32)
#: Less than this is no change of a tile.
UNCHANGED = 1 / 255


class Clipping:
    """Share of source samples that sit in runs of two or more at full scale."""

    def __init__(self) -> None:
        self.samples = 0
        self.clipped = 0

    def push(self, source: NDArray[np.float32]) -> None:
        """Add decoded samples (channels, n), before mixing and resampling."""
        self.samples += source.size
        if max(source.max(initial=0), -source.min(initial=0)) >= FULL_SCALE:
            hot = np.abs(source) >= FULL_SCALE
            same = hot[:, 1:] & hot[:, :-1] & (source[:, 1:] * source[:, :-1] > 0)
            run = np.zeros_like(hot)
            run[:, 1:] |= same
            run[:, :-1] |= same
            self.clipped += int(run.sum())

    @property
    def ratio(self) -> float:
        return self.clipped / self.samples if self.samples else 0.0


def sound_columns(blocks: list[NDArray[np.int16]], rate: int, clipping: Clipping) -> dict[str, object]:
    """loudness, silence_ratio, clipping_ratio, bandwidth and silent of compiled samples in blocks of shape (n, channels)."""
    meter = loudness.Meter(rate)
    window = max(round(SILENT_WINDOW * rate), 1)
    size = SPECTRUM
    spectrum = np.zeros(size // 2 + 1)
    silent = windows = 0
    rest = np.zeros(0, np.float32)
    for block in blocks:
        sound = block.astype(np.float32) * np.float32(1 / 32768)
        meter.push(sound)
        power = np.concatenate([rest, np.einsum("nc,nc->n", sound, sound) / np.float32(sound.shape[1])])
        whole = len(power) // window * window
        rms = np.sqrt(power[:whole].reshape(-1, window).mean(axis=1))
        silent += int((rms < SILENT_RMS).sum())
        windows += len(rms)
        rest = power[whole:]
        mono = sound[:, 0] if sound.shape[1] == 1 else sound.mean(axis=1)
        frames = mono[: len(mono) // size * size].reshape(-1, size)
        bins = np.fft.rfft(frames * _TAPER, axis=1)
        parts = bins.view(bins.real.dtype)
        spectrum += np.einsum("fk,fk->k", parts, parts).reshape(-1, 2).sum(axis=1)
    if len(rest):
        silent += int(np.sqrt(rest.mean()) < SILENT_RMS)
        windows += 1
    total = spectrum[1:].sum()
    bandwidth = None
    if total > 0:
        edge = int(np.searchsorted(np.cumsum(spectrum[1:]), 0.99 * total)) + 1
        bandwidth = edge * rate / size
    ratio = silent / windows if windows else 1.0
    return {
        "loudness": meter.integrated(),
        "silence_ratio": ratio,
        "clipping_ratio": clipping.ratio,
        "bandwidth": bandwidth,
        "silent": ratio == 1.0,
    }


SILENT_COLUMNS: dict[str, object] = {
    "loudness": None,
    "silence_ratio": 1.0,
    "clipping_ratio": 0.0,
    "bandwidth": None,
    "silent": True,
}


class PictureStatistics:
    """Still, black, cuts and motion from small luma images."""

    def __init__(self) -> None:
        self.source_frames = 0
        self.repeats = 0
        self.frames = 0
        self.black = 0
        self.cuts = 0
        self.moved = 0.0
        self._source: Luma | None = None
        self._shown: Luma | None = None
        self._change = 0.0
        self._dark = 0
        #: Decoded frames that follow each other and their mean change: they are shown one after the other a little later.
        self._known: deque[tuple[Luma, Luma, float]] = deque(maxlen=4)

    def source(self, luma: Luma) -> None:
        """Add a decoded frame."""
        before = self._source
        if before is not None and before.shape == luma.shape:
            change = np.abs(luma - before)
            mean = _mean(change)
            self.repeats += int(_unchanged(change, mean))
            self._known.append((before, luma, mean))
        self.source_frames += 1
        self._source = luma

    def shown(self, luma: Luma) -> None:
        """Add a frame of the compiled video."""
        self.frames += 1
        if luma is self._shown:
            self.black += self._dark
            self._change = 0.0
            return
        self._dark = int(np.count_nonzero(luma < 0.1) >= 0.98 * luma.size)
        self.black += self._dark
        if self._shown is not None and self._shown.shape == luma.shape:
            change = self._changed(self._shown, luma)
            self.moved += change
            self.cuts += int(min(change, abs(change - self._change)) > 0.1)
            self._change = change
        self._shown = luma

    def _changed(self, before: Luma, after: Luma) -> float:
        """The mean change from one frame to another."""
        for one, other, mean in self._known:
            if one is before and other is after:
                return mean
        return _mean(np.abs(after - before))

    def columns(self) -> dict[str, object]:
        """The picture's part of QUALITY."""
        still = self.repeats / (self.source_frames - 1) if self.source_frames > 1 else 1.0
        return {
            "still_ratio": still,
            "black_ratio": self.black / self.frames if self.frames else 0.0,
            "scene_cuts": self.cuts,
            "motion": self.moved / (self.frames - 1) if self.frames > 1 else 0.0,
            "still": still == 1.0,
        }


def _mean(values: Luma) -> float:
    """What `values.mean()` gives, in half the time."""
    return float(np.add.reduce(values, axis=None) / np.float32(values.size))


def _unchanged(change: Luma, mean: float) -> bool:
    """True if no tile of an 8 x 8 grid changes by UNCHANGED on average: small moving things count as much as large ones.

    mean: of all the change. Sums that are made otherwise decide where they are clear; else `_largest` does.
    """
    if mean == 0:
        return True
    height, width = change.shape
    rows, columns = max(height // 8, 1), max(width // 8, 1)
    if height % rows == width % columns == 0 and mean > UNCHANGED * 1.001:
        return False  # one of the tiles is above the mean
    down, across = height // rows, width // columns
    lines = np.add.reduce(change[: down * rows, : across * columns].reshape(down, rows, across * columns), axis=1)
    largest = float(np.add.reduce(lines.reshape(down, across, columns), axis=2).max()) / (rows * columns)
    return largest < UNCHANGED if abs(largest - UNCHANGED) > 1e-3 * UNCHANGED else _largest(change) < UNCHANGED


def _largest(change: Luma) -> float:
    """The largest mean among the tiles of an 8 x 8 grid: the definition."""
    rows, columns = max(change.shape[0] // 8, 1), max(change.shape[1] // 8, 1)
    whole = change[: change.shape[0] // rows * rows, : change.shape[1] // columns * columns]
    return float(whole.reshape(whole.shape[0] // rows, rows, -1, columns).mean(axis=(1, 3)).max())
