"""Samples on the clock of their time stamps, seen with a look-ahead: what returns is jitter, what stays is a step.

Stamps of capture devices and of some muxers swing around samples that are in truth contiguous. A deviation that the stamps of
the next seconds take back leaves samples alone; one that stays is filled or cut at the very packet where it begins; a slow one
is a drift and is followed by resampling.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from javisc.compiler.media.warp import MARGIN, warp
from javisc.compiler.reasons import Rejected

Sound: TypeAlias = NDArray[np.float32]

#: Sound that waits until the stamps after it are known, seconds: longer than the longest period of jitter (2 s).
LOOK = 2.25
#: Deviations up to this are how containers round, seconds.
ROUNDING = 0.001
#: Stamps whose spread is below this tell the place of their samples, seconds.
QUIET = 0.0015
#: A lasting deviation from here on is filled or cut; below it, it is followed by resampling, seconds.
LEAP = 0.0018
#: From here on a step is told by its first stamp, whatever the container rounds to, seconds.
CLEAR = 0.004
#: Jitter is never further than this from the samples: what is must stay for `SOON` alone to be a step, seconds.
FAR, SOON = 0.075, 0.3
#: A step comes within this many seconds; what takes longer is a drift.
ABRUPT = 0.12
#: At the end of the sound, a step is believed if this much follows it, seconds.
BELIEVED = 0.12
#: Where stamps have swung, a step at the end needs so many of them beyond the swing: two or three are by chance.
FEW = 4
#: Stamps that agree for so long at the start say where the sound begins: anyhow, and if what follows never comes back, seconds.
BEGINS, BEGINS_ONCE = 0.2, 0.1
#: Stamps that agree for so long tell a step even if they go back later: longer than half a period of jitter, seconds.
STAYS = 1.25
#: Stamps of this share of the sound may say otherwise.
STRAYS = 0.05
#: A line is laid through stamps from this many seconds on.
STRAIGHT = 0.4
#: Resampling never changes the speed by more than this, and catches up within this many seconds.
MAX_SPEED, CATCH_UP = 0.01, 1.0
#: Resampling ends below this deviation (seconds) and this speed.
SETTLED, STEADY = 0.0003, 0.00004
#: A step back by more than this many seconds leaves no common clock.
MAX_BACK = 30.0


class Placed(NamedTuple):
    """What comes next on the line: so many samples of silence, then sound (channels, n)."""

    silence: int
    sound: Sound


@dataclass
class _Chunk:
    """Contiguous samples, `at` samples from the start of the source, and where their stamp says they are."""

    sound: Sound
    at: int
    ahead: Fraction | None  # stamp less `at`, in samples
    seconds: float

    @property
    def samples(self) -> int:
        return self.sound.shape[1]


class _Stamps:
    """The stamps that wait: how far each is from the line (seconds), when it comes, and how much sound it stands for."""

    def __init__(
        self, deviations: NDArray[np.float64], seconds: NDArray[np.float64], weights: NDArray[np.float64]
    ) -> None:
        self.deviations, self.seconds, self.weights = deviations, seconds, weights
        self.length = float(seconds[-1] + weights[-1])
        away = np.abs(deviations - deviations[0]) > QUIET
        #: For how long they say what the first one says, seconds.
        self.agree = float(seconds[int(away.argmax())]) if away.any() else self.length

    def median(self, which: NDArray[np.bool_] | slice = slice(None)) -> float:
        """The deviation that halves the sound."""
        return median(self.deviations[which], self.weights[which])


class SampleClock:
    """Puts chunks of one sample rate on a gapless line of samples, whose sample n is heard at n / rate.

    `line` is where the line stands and `started` whether sound is on it already. `filled`, `cut` and `stretched` are samples,
    `wobble` the largest deviation of a stamp that was left alone, seconds.
    """

    def __init__(self, rate: int, line: int = 0, started: bool = False) -> None:
        self.rate = rate
        self.line = line
        self.silence_head = 0
        self.filled = 0
        self.cut = 0
        self.stretched = 0.0
        self.wobble = 0.0
        self._queue: deque[_Chunk] = deque()
        self._waiting = 0.0
        self._next = 0  # source samples that have come
        self._origin: float | None = None
        self._continues = started
        self._offset = 0.0  # line less source, samples, where the queue begins, after what is still to fill or cut
        self._to_fill = 0
        self._to_cut = 0
        self._head = False
        self._fraction = 0.0
        self._speed = 0.0
        self._slope = 0.0
        #: (when in the source, stamp less place in samples, deviation from the line, length of sound) of stamps gone by; seconds
        self._past: deque[tuple[float, float, float, float]] = deque()
        self._context: Sound | None = None

    @property
    def fresh(self) -> bool:
        """True as long as nothing has come that ends after zero: what does not is left out without a trace."""
        return self._origin is None and not self._queue and not self._continues

    def push(self, sound: Sound, time: Fraction | None) -> Iterator[Placed]:
        """Add `sound` (channels, n), heard at `time` seconds (None: right after the last); yield what is settled by it.

        Raises `Rejected` where the stamps leap back too far.
        """
        if not sound.shape[1]:
            return
        ahead = None if time is None else time * self.rate - self._next
        if self.fresh and ahead is not None and round(ahead) + sound.shape[1] <= 0:
            return  # wholly before zero
        self._queue.append(_Chunk(sound, self._next, ahead, sound.shape[1] / self.rate))
        self._next += sound.shape[1]
        self._waiting += self._queue[-1].seconds
        while self._waiting - self._queue[0].seconds > LOOK:
            yield from self._settle(last=False)

    def finish(self) -> Iterator[Placed]:
        """Yield what still waits."""
        while self._queue:
            yield from self._settle(last=True)

    def _settle(self, last: bool) -> Iterator[Placed]:
        """Place the first chunk of the queue."""
        if self._origin is None:
            self._begin()
        chunk = self._queue[0]
        if chunk.ahead is not None:
            deviation = (float(chunk.ahead) - self._offset) / self.rate
            self._speed = self._follow(chunk, last) if self._speed or abs(deviation) > ROUNDING else 0.0
            now, deviation = chunk.at / self.rate, (float(chunk.ahead) - self._offset) / self.rate
            self.wobble = max(self.wobble, abs(deviation))
            self._past.append((now, float(chunk.ahead), deviation, chunk.seconds))
            while self._past[0][0] < now - LOOK:
                self._past.popleft()
        self._queue.popleft()
        self._waiting -= chunk.seconds
        yield from self._place(chunk)

    # -- where the sound begins

    def _begin(self) -> None:
        aheads = [(chunk.ahead, chunk.at, chunk.seconds) for chunk in self._queue if chunk.ahead is not None]
        first = aheads[0][0] + Fraction(self._start_of(aheads)) if aheads else Fraction(self.line)
        self._origin = float(first)
        if self._continues:  # the sample rate changed: the line goes on, and a deviation is judged as any other
            self._offset = float(self.line)
            self._past.append((0.0, self._offset, 0.0, ABRUPT))
            return
        start = round(first)
        self._offset = float(start)
        self.silence_head = self._to_fill = max(start, 0)
        self._to_cut = max(-start, 0)
        self._head = True

    def _start_of(self, aheads: list[tuple[Fraction, int, float]]) -> float:
        """By how many samples the sound begins later than its first stamp says: 0 unless the stamps swing."""
        first, begin, _ = aheads[0]
        stamps = _Stamps(
            np.array([float(ahead - first) / self.rate for ahead, _, _ in aheads]),
            np.array([(at - begin) / self.rate for _, at, _ in aheads]),
            np.array([seconds for _, _, seconds in aheads]),
        )
        after = stamps.deviations[stamps.seconds >= stamps.agree]
        stays = bool((after > QUIET).all() or (after < -QUIET).all())
        if stays and len(stamps.deviations) - len(after) < FEW and len(after) > 1:
            # So few agree at the edge of jitter by chance: then what follows swings, too, within its reach.
            stays = bool(np.abs(after).min() > FAR or np.median(np.abs(np.diff(after))) <= QUIET)
        if stamps.agree >= min(BEGINS, stamps.length) or (stays and stamps.agree >= BEGINS_ONCE):
            return 0.0
        return stamps.median() * self.rate

    # -- what deviates

    def _follow(self, chunk: _Chunk, last: bool) -> float:
        """Judge the deviation of `chunk`: begin a fill or a cut where it is a step; return the speed to resample with."""
        stamped = [(float(part.ahead), part.at, part.seconds) for part in self._queue if part.ahead is not None]
        ahead, at, weights = np.array(stamped).T
        stamps = _Stamps((ahead - self._offset) / self.rate, (at - at[0]) / self.rate, weights)
        lasts = self._lasts(stamps, last)
        if lasts:
            first = float(stamps.deviations[0])
            level = self._level(stamps)
            lasts = first / level >= 0.5 if level else False  # else the step is still to come
            if lasts and abs(level) >= LEAP and (abs(first) > FAR or self._abrupt(float(ahead[0]), level)):
                self._leap(round(level * self.rate))
                return self._slope
        return self._drift(stamps, lasts)

    def _abrupt(self, ahead: float, level: float) -> bool:
        """True if the stamps shortly before the first one (`ahead` samples) were most of `level` seconds away from it."""
        since = self._queue[0].at / self.rate - ABRUPT
        before = [stamp for stamp in self._past if stamp[0] >= since] or list(self._past)[-1:]
        if not before:
            return False
        jump = max(abs(ahead - was) for _, was, _, _ in before) / self.rate
        usual = float(np.median([deviation for _, _, deviation, _ in before]))
        return (abs(level) >= CLEAR and jump >= abs(level) / 2) or (level - usual) / level >= LEAP / (LEAP + ROUNDING)

    def _lasts(self, stamps: _Stamps, last: bool) -> bool:
        """True if the first stamp's deviation is no jitter: the stamps to come do not take it back."""
        first = float(stamps.deviations[0])
        sign = 1.0 if first > 0 else -1.0
        away = sign * stamps.deviations
        if abs(first) > FAR and bool((away[stamps.seconds < SOON] > FAR).all()):
            return True
        if stamps.agree >= STAYS:
            return True
        swing = 0.0
        if last and stamps.length < LOOK - 0.25:  # what would take it back may lie beyond the end
            if stamps.length < BELIEVED:
                return False
            if self._past:
                _, _, swung, seconds = np.array(self._past).T
                swing = max(median(sign * swung, seconds, 1 - STRAYS), 0.0)
                if len(stamps.deviations) < FEW and (sign * swung).max() > ROUNDING:
                    return False
        return float(stamps.weights[away > ROUNDING + swing].sum()) >= (1 - STRAYS) * float(stamps.weights.sum())

    def _level(self, stamps: _Stamps) -> float:
        """What the stamps say from the first on: as long as they agree, their median; where they swing, that of all."""
        swung = np.array([deviation for _, _, deviation, _ in self._past] or [0.0])
        if stamps.agree >= (BEGINS_ONCE if np.ptp(swung) <= 2 * QUIET else BEGINS) or stamps.agree >= stamps.length:
            return stamps.median(stamps.seconds < min(stamps.agree, SOON))
        return stamps.median()

    def _leap(self, samples: int) -> None:
        if -samples > MAX_BACK * self.rate:
            raise Rejected("timestamps", f"the sound's time stamps leap back by {-samples / self.rate:.3f} s")
        self._offset += samples
        missing = self._to_fill - self._to_cut + samples
        self._to_fill, self._to_cut = max(missing, 0), max(-missing, 0)

    def _drift(self, stamps: _Stamps, lasts: bool) -> float:
        """The speed to resample with, 0 for none: along the line through the stamps to come, up to the next leap."""
        if not self._speed and not lasts:
            return 0.0
        jumps = np.abs(np.diff(stamps.deviations)) > QUIET
        end = int(jumps.argmax()) + 1 if jumps.any() else len(stamps.seconds)
        seconds, deviations = stamps.seconds[:end], stamps.deviations[:end]
        offset, straight = 0.0, False
        if seconds[-1] >= STRAIGHT:
            slope, offset = np.polyfit(seconds, deviations, 1).tolist()
            straight = bool(np.abs(deviations - offset - slope * seconds).max() <= QUIET)
            straight = straight and (seconds[-1] >= STAYS or self._came_along(slope, offset, STAYS - seconds[-1]))
        if straight:
            self._slope = max(-MAX_SPEED, min(MAX_SPEED, slope))
        else:  # they swing, or leap soon: go on as before, and correct only what they all say
            offset = stamps.median() if lasts else 0.0
        if abs(offset) < SETTLED and abs(self._slope) < STEADY:
            self._slope = 0.0
            return 0.0
        wanted = max(-MAX_SPEED, min(MAX_SPEED, self._slope + offset / CATCH_UP))
        return wanted if not self._speed else self._speed + 0.25 * (wanted - self._speed)

    def _came_along(self, slope: float, offset: float, seconds: float) -> bool:
        """True if the stamps of the last `seconds` lie on it, too: a short piece of slow jitter is as straight as a drift."""
        now = self._queue[0].at / self.rate
        when, aheads, _, _ = np.array(self._past or [(now, 0.0, 0.0, 0.0)]).T
        deviations = (aheads - self._offset) / self.rate
        jumps = np.flatnonzero(np.abs(np.diff(deviations)) > QUIET)
        begin = int(jumps[-1]) + 1 if jumps.size else 0
        begin = max(begin, int(np.searchsorted(when, now - seconds)) - 1)
        if now - when[begin] < seconds:
            return False
        return bool(np.abs(deviations[begin:] - offset - slope * (when[begin:] - now)).max() <= QUIET)

    # -- the line

    def _place(self, chunk: _Chunk) -> Iterator[Placed]:
        sound = chunk.sound
        if self._to_cut:
            gone = min(self._to_cut, sound.shape[1])
            self._to_cut -= gone
            self.cut += 0 if self._head else gone
            sound = sound[:, gone:]
        if not sound.shape[1]:
            return
        silence, self._to_fill = self._to_fill, 0
        self.filled += 0 if self._head else silence
        self._head = False
        if self._speed or self._fraction:
            sound = self._warped(sound)
        else:
            self._remember(sound)
        self.line += silence + sound.shape[1]
        yield Placed(silence, sound)

    def _remember(self, sound: Sound) -> None:
        """Keep the last samples: resampling needs what came before."""
        last = sound[:, -MARGIN:]
        if last.shape[1] < MARGIN and self._context is not None:
            last = np.concatenate([self._context, last], axis=1)[:, -MARGIN:]
        self._context = last.copy()

    def _warped(self, sound: Sound) -> Sound:
        n = sound.shape[1]
        step = 1 / (1 + self._speed)
        if not self._speed:  # back to the source's own samples
            step = (n - self._fraction) / max(round(n - self._fraction), 1)
        before = self._context if self._context is not None else np.repeat(sound[:, :1], MARGIN, axis=1)
        after = [chunk.sound[:, :MARGIN] for chunk in islice(self._queue, MARGIN)]
        out, fraction = warp(sound, before, after, self._fraction, step)
        self._remember(sound)
        change = out.shape[1] - (n - self._fraction + fraction)
        self._fraction = fraction
        self._offset += change
        self.stretched += abs(change)
        return out


def median(values: NDArray[np.float64], weights: NDArray[np.float64], share: float = 0.5) -> float:
    """The value that halves the weights, or has `share` of them at or below it."""
    order = np.argsort(values, kind="stable")
    heap = np.cumsum(weights[order])
    return float(values[order][int(np.searchsorted(heap, heap[-1] * share))])
