"""Fingerprints that survive re-encoding: perceptual hashes of frames and sub-fingerprints of the sound.

A frame's hash is the usual pHash (Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions", 2010): which of
the 8 × 8 lowest coefficients of a 32 × 32 picture's cosine transform lie above their median.

The sound's are those of Haitsma & Kalker, "A Highly Robust Audio Fingerprinting System" (ISMIR 2002): windows of 0.37
s, 33 bands of equal width on a logarithmic scale from 300 to 2000 Hz, and one bit per neighbouring pair of bands, the
sign of the change in time of their energy difference. The hop is 46 ms instead of 11.6 ms: a quarter of the table, and
clips of a few seconds still give dozens of words.
"""

from __future__ import annotations

import io
from typing import Any

import av
import numpy as np
import soundfile

from javisc.compiler.media.scaling import Scaler

#: Frames are hashed at these distances, seconds, and so many of them at most.
FRAME_STEP = 1.0
MAX_FRAMES = 16
#: Frames with less contrast (standard deviation of luma, 0 to 255) say nothing: their hash is noise.
FLAT = 6.0
WINDOW_SECONDS, HOP_SECONDS = 0.37, 0.046
BANDS = 33
MAX_SECONDS = 30.0
#: Two frames are alike at up to this Hamming distance of 64; two stretches of sound at up to this share of differing bits.
FRAME_DISTANCE = 10
BIT_ERRORS = 0.3
#: Shortest overlap that says anything: frames, and words of sound that are no silence (0.7 s).
LEAST_FRAMES, LEAST_WORDS = 1, 16
#: Words of sound that a clip is looked up by.
LOOKED_UP = 32


def _lowest(size: int, count: int) -> np.ndarray:
    """The first `count` rows of the orthonormal DCT-II of `size` points, (count, size)."""
    angle = np.pi / size * np.outer(np.arange(count), np.arange(size) + 0.5)
    rows = np.sqrt(2 / size) * np.cos(angle)
    rows[0] /= np.sqrt(2)
    return rows


_DCT = _lowest(32, 8)


def picture_hash(small: np.ndarray) -> int:
    """The 64-bit pHash of a grey picture (128, 128), the lowest frequency first; 0 for a flat one, which says nothing."""
    if small.std() < FLAT:
        return 0
    low = _DCT @ small.reshape(32, 4, 32, 4).mean(axis=(1, 3)) @ _DCT.T
    return int.from_bytes(np.packbits(low.ravel() > np.median(low)).tobytes(), "big")


def picture_prints(mp4: bytes) -> np.ndarray:
    """pHashes of the clip's frames, FRAME_STEP seconds apart from FRAME_STEP / 2 on: uint64 [n], 0 for flat frames.

    Raises av.FFmpegError if nothing decodes.
    """
    prints: list[int] = []
    scale = Scaler()
    with av.open(io.BytesIO(mp4), "r", format="mp4") as container:
        container.streams.video[0].codec_context.thread_count = 1
        wanted = FRAME_STEP / 2
        for frame in container.decode(video=0):
            if frame.time is None or frame.time < wanted:
                continue
            prints.append(
                picture_hash(scale(frame, width=128, height=128, format="gray", interpolation="AREA").to_ndarray())
            )
            wanted += FRAME_STEP
            if len(prints) == MAX_FRAMES:
                break
    return np.array(prints, np.uint64)


def sound_prints(samples: np.ndarray, rate: int) -> np.ndarray:
    """Sub-fingerprints of mono samples [n]: uint32 [words]; empty for sounds shorter than about half a second."""
    window, hop = round(WINDOW_SECONDS * rate), round(HOP_SECONDS * rate)
    if len(samples) < window + hop:
        return np.zeros(0, np.uint32)
    frames = np.lib.stride_tricks.sliding_window_view(samples.astype(np.float32), window)[::hop]
    edges = np.geomspace(300, 2000, BANDS + 1) * window / rate
    power = np.abs(np.fft.rfft(frames * np.hanning(window).astype(np.float32), axis=1)) ** 2
    total = np.concatenate([np.zeros((len(power), 1)), np.cumsum(power, axis=1, dtype=np.float64)], axis=1)
    whole = np.arange(total.shape[1])
    at_edges = np.stack(
        [np.interp(edges, whole, row) for row in total]
    )  # fractional bins: bands never share or lose energy
    energy = np.diff(at_edges, axis=1)
    step = np.diff(energy[:, :-1] - energy[:, 1:], axis=0)
    loud = energy.sum(axis=1)[1:] > 1e-7 * window * window
    words = (step > 0) @ (1 << np.arange(BANDS - 1, dtype=np.uint64))
    return np.where(loud, words, 0).astype(np.uint32)


def prints(mp4: bytes | None, flac: bytes | None) -> tuple[np.ndarray, np.ndarray]:
    """Both kinds of one sample, empty where it has no such member."""
    sound = np.zeros(0, np.uint32)
    if flac is not None:
        with soundfile.SoundFile(io.BytesIO(flac)) as file:
            samples = file.read(round(MAX_SECONDS * file.samplerate), dtype="float32", always_2d=True)
            sound = sound_prints(samples.mean(axis=1), file.samplerate)
    return picture_prints(mp4) if mp4 is not None else np.zeros(0, np.uint64), sound


def buckets(pictures: np.ndarray, sound: np.ndarray) -> np.ndarray:
    """Where a sample is looked up: the halves of its frame hashes and a content-chosen few of its words; uint64, distinct.

    Frames alike in up to a bit or two share a half (the pigeonhole gives certainty for one, several frames give many
    chances); the words with the least mixed value are the same few in a shifted copy. Words of almost one sign are common to
    many sounds, and are taken only where there are too few others.
    """
    known = pictures[pictures != 0]
    halves = np.concatenate([known >> np.uint64(32), (known & np.uint64(0xFFFFFFFF)) | np.uint64(1 << 32)])
    words = np.unique(sound[sound != 0])
    ones = np.bitwise_count(words)
    common = (ones < 6) | (ones > 26)
    mixed = (words.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(32)
    least = words[np.lexsort((mixed, common))[:LOOKED_UP]].astype(np.uint64)
    return np.unique(np.concatenate([halves, least | np.uint64(1 << 33)]))


def pictures_alike(a: np.ndarray, b: np.ndarray) -> bool:
    """True if, at some shift of whole steps, three quarters of the frames that overlap are alike and at least half of the
    shorter overlaps."""
    if not len(a) or not len(b):
        return False
    for shift in range(-len(a) + 1, len(b)):
        x, y = a[max(0, -shift) :], b[max(0, shift) :]
        length = min(len(x), len(y))
        told = (x[:length] != 0) & (y[:length] != 0)
        if told.sum() < max(LEAST_FRAMES, -(-min(len(a), len(b)) // 2)):
            continue
        apart = np.bitwise_count(x[:length][told] ^ y[:length][told])
        if (apart <= FRAME_DISTANCE).mean() >= 0.75:
            return True
    return False


def sounds_alike(a: np.ndarray, b: np.ndarray) -> bool:
    """True if, at a shift that equal words suggest, at most BIT_ERRORS of the bits differ over half of the sound that has less.

    Silence says nothing: it is neither alike nor different.
    """
    words = np.intersect1d(a[a != 0], b[b != 0])
    if not len(words):
        return False
    shifts: dict[int, int] = {}
    for word in words.tolist():
        for i in np.flatnonzero(a == word)[:4]:
            for j in np.flatnonzero(b == word)[:4]:
                shifts[int(j - i)] = shifts.get(int(j - i), 0) + 1
    least = max(LEAST_WORDS, min(np.count_nonzero(a), np.count_nonzero(b)) // 2)
    for shift in sorted(shifts, key=lambda key: -shifts[key])[:8]:
        x, y = a[max(0, -shift) :], b[max(0, shift) :]
        length = min(len(x), len(y))
        told = (x[:length] != 0) & (y[:length] != 0)
        if told.sum() >= least and np.bitwise_count(x[:length][told] ^ y[:length][told]).mean() <= BIT_ERRORS * (
            BANDS - 1
        ):
            return True
    return False


def too_poor(pictures: np.ndarray, sound: np.ndarray) -> tuple[bool, bool]:
    """Whether pictures, and sound, are too poor to be told from others by their fingerprints: flat frames, silence."""
    return int(np.count_nonzero(pictures)) < LEAST_FRAMES, int(np.count_nonzero(sound)) < LEAST_WORDS


def prints_of_rows(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Fingerprints of located rows, for a worker process: {row, pictures, sound, error}."""
    from javisc.manifests.members import MemberReader

    told: list[dict[str, Any]] = []
    with MemberReader() as reader:
        for row in rows:
            try:
                pictures, sound = prints(reader.read(row, "mp4"), reader.read(row, "flac"))
                told.append(
                    {"row": row["__row"], "pictures": pictures.tolist(), "sound": sound.tolist(), "error": None}
                )
            except (av.FFmpegError, soundfile.LibsndfileError, ValueError, IndexError) as error:
                told.append({"row": row["__row"], "pictures": [], "sound": [], "error": str(error)[:200]})
    return told
