"""Times of pictures in whole numbers against the definition in fractions."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from javisc.compiler.media.clock import nearest_tick
from javisc.compiler.media.edits import Edit
from javisc.compiler.media.pictures import END_TOLERANCE, PictureClock
from javisc.compiler.reasons import Rejected

BASES = st.sampled_from([Fraction(1, 90000), Fraction(1, 1000), Fraction(1001, 30000), Fraction(1, 15360)])
#: Steps of the time stamps in 1/30 s: even, uneven, and now and then back.
STEPS = st.lists(st.sampled_from([1, 1, 1, 1, 2, 3, 0, -1, -2]), min_size=1, max_size=40)
TIMES = st.fractions(min_value=0, max_value=1, max_denominator=1000)
EDITS = st.one_of(
    st.just(Edit()),
    st.builds(lambda at, shift: Edit(shift - at, at), TIMES, TIMES),
    st.builds(lambda at, end: Edit(Fraction(0), at, at + end), TIMES, TIMES),
)


def clock_of(base: Fraction, edit: Edit) -> PictureClock:
    container = SimpleNamespace(format=SimpleNamespace(name="mov,mp4,m4a,3gp,3g2,mj2"))
    stream: Any = SimpleNamespace(average_rate=Fraction(30), guessed_rate=None, time_base=base, container=container)
    return PictureClock(stream, edit, None, Fraction(300))


@settings(deadline=None, max_examples=150)
@given(BASES, STEPS, EDITS, st.integers(-20, 20), st.booleans())
def test_times_and_what_is_told_of_them(base: Fraction, steps: list[int], edit: Edit, begin: int, halved: bool) -> None:
    """halved: midway the unit changes, as that of a deinterlacer's pictures does, which begins where the first comb is seen."""
    stamps = [begin * round(Fraction(1, 30) / base)]
    for step in steps:
        stamps.append(stamps[-1] + step * round(Fraction(1, 30) / base))
    clock = clock_of(base, edit)
    placed, last, early = [], None, None
    expected: list[Fraction] = []
    unordered = 0
    for number, stamp in enumerate(stamps):
        half = halved and number >= len(stamps) // 2
        frame: Any = SimpleNamespace(pts=stamp * (2 if half else 1), time_base=base / (2 if half else 1), duration=1)
        clock.stamp(frame)
        placed += [time for _, time in clock.place(frame)]
        time = stamp * base + edit.shift
        if edit.end is not None and time > edit.end - END_TOLERANCE:
            continue
        if edit.start is not None and time < edit.start and not expected:
            early = frame
            continue
        if early is not None and edit.start is not None and time > edit.start:
            expected.append(edit.start)
        clipped = early is not None and bool(expected)
        early = None
        if expected and time <= expected[-1]:
            unordered += 1
            continue
        expected.append(time)
        last = (frame.duration * frame.time_base, clipped)
    placed += [time for _, time in clock.rest()]
    if early is not None and edit.start is not None:
        expected.append(edit.start)
        last = (early.duration * early.time_base, False)
    assert placed == expected and clock.unordered == unordered and clock.count == len(expected)
    if not expected:
        return
    begun_by_edit = (
        edit.start is not None
        and expected[0] == edit.start
        and all(stamp * base + edit.shift != edit.start for stamp in stamps)
    )
    counted = expected[1:] if begun_by_edit and len(expected) > 1 else expected
    intervals = [after - before for before, after in pairwise(counted)]
    assert clock.first == expected[0] and clock.last == expected[-1]
    assert last is not None
    assert clock.end == (
        expected[-1] + last[0] if edit.end is None else min(expected[-1] + last[0], max(edit.end, expected[-1]))
    )
    assert clock.variable == bool(intervals and max(intervals) - min(intervals) > 2 * base + Fraction(1, 1000))
    rate = clock.fps
    assert rate == (float((len(counted) - 1) / (counted[-1] - counted[0])) if intervals else None)
    assert clock._intervals == dict(Counter(intervals))


@given(st.lists(st.integers(1, 5), min_size=2, max_size=30))
def test_a_last_picture_without_a_duration_stands_as_long_as_most_do(steps: list[int]) -> None:
    clock, stamp = clock_of(Fraction(1, 1000), Edit()), 0
    for step in [0, *steps]:
        stamp += step
        frame: Any = SimpleNamespace(pts=stamp, time_base=Fraction(1, 1000), duration=0)
        clock.stamp(frame)
        assert [time for _, time in clock.place(frame)] == [Fraction(stamp, 1000)]
    usual = Counter(steps).most_common(1)[0][0]  # of several that are as common the first
    assert clock.end == Fraction(stamp + usual, 1000)


def test_a_leap_back_is_refused_and_a_hold_too_long() -> None:
    for stamps in ([0, 1, 2, 3, 2000, 3, 4], [0, 1, 2, 400_000]):
        clock = clock_of(Fraction(1, 1000), Edit())
        said = ""
        try:
            for stamp in stamps:
                frame: Any = SimpleNamespace(pts=stamp, time_base=Fraction(1, 1000), duration=0)
                clock.stamp(frame)
                list(clock.place(frame))
        except Rejected as error:
            said = error.reason
        assert said == "timestamps"


@given(
    st.fractions(-50, 50, max_denominator=10**6), st.sampled_from([Fraction(24), Fraction(24000, 1001), Fraction(1, 3)])
)
def test_the_nearest_tick_is_the_floor_of_half_a_tick_later(time: Fraction, fps: Fraction) -> None:
    assert nearest_tick(time, fps) == (time * fps + Fraction(1, 2)).__floor__()
