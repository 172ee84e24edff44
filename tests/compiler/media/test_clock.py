"""The grid's arithmetic against its definition."""

from __future__ import annotations

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from javisc.compiler.media.clock import Hold, Slots, nearest_tick, samples_for

RATES = st.sampled_from(
    [Fraction(24), Fraction(25), Fraction(30), Fraction(24000, 1001), Fraction(30000, 1001), Fraction(60), Fraction(1)]
)
TIMES = st.fractions(min_value=0, max_value=20, max_denominator=90000)


def test_three_frames_are_two_thousand_samples() -> None:
    assert [samples_for(n, 16000, Fraction(24)) for n in (1, 2, 3, 6, 240)] == [667, 1333, 2000, 4000, 160000]
    assert samples_for(24000, 16000, Fraction(24000, 1001)) == 16016000


@given(TIMES, RATES)
def test_a_tick_is_never_further_than_half_a_tick(time: Fraction, fps: Fraction) -> None:
    tick = nearest_tick(time, fps)
    assert abs(tick / fps - time) <= 1 / (2 * fps)
    assert nearest_tick(time + 7 / fps, fps) == tick + 7


@given(st.lists(TIMES, min_size=1, max_size=40, unique=True), RATES)
def test_every_tick_shows_what_the_source_last_showed(times: list[Fraction], fps: Fraction) -> None:
    """Definition: tick k shows the last frame presented before (k + 1/2) / fps; the first frame where there is none."""
    times = sorted({Fraction(0), *times})
    end = times[-1] + Fraction(1, 7)
    hold: Hold[int] = Hold(fps)
    shown = [pair for index, time in enumerate(times) for pair in hold.push(index, time)] + list(hold.finish(end))
    assert [tick for tick, _ in shown] == list(range(shown[0][0], shown[0][0] + len(shown)))
    assert len(shown) + shown[0][0] == max(nearest_tick(end, fps), nearest_tick(times[-1], fps) + 1)
    for tick, index in shown:
        before = [i for i, time in enumerate(times) if time < (tick + Fraction(1, 2)) / fps]
        assert index == (before[-1] if before else 0)
    first_shown = {}
    for tick, index in shown:
        for earlier in range(index + 1):
            first_shown.setdefault(earlier, tick)
    for index, time in enumerate(times[1:], 1):
        if index in first_shown:
            assert abs(first_shown[index] / fps - time) <= 1 / (2 * fps), (
                "an event's picture is off by more than half a tick"
            )


@given(delay=st.integers(0, 4), lost=st.sets(st.integers(3, 12), max_size=2))
def test_pictures_of_an_avi_take_their_packets_times_again_after_some_were_swallowed(
    delay: int, lost: set[int]
) -> None:
    """The decoder holds back `delay` pictures and swallows some: times are late by as many, and right again soon after."""
    slots, given_times, count = Slots(), dict[int, Fraction | None](), 48
    for packet in range(count + delay):
        if packet < count:
            slots.add(Fraction(packet, 25))
        if packet >= delay and packet - delay not in lost:
            given_times[packet - delay] = slots.next()
        if packet < count:
            slots.settle(delay)
    first = min(lost, default=count)
    assert all(time == Fraction(number, 25) for number, time in given_times.items() if number < first)
    for number, time in given_times.items():
        assert time is not None and 0 <= Fraction(number, 25) - time <= Fraction(len(lost), 25)
        if number > max(lost, default=0) + delay + 2 * Slots.PATIENCE:
            assert time == Fraction(number, 25)
    assert slots.next() is None


def test_a_packet_that_does_not_decode_takes_its_time_along() -> None:
    slots = Slots()
    for number in range(3):
        slots.add(Fraction(number))
    slots.drop()
    assert [slots.next(), slots.next(), slots.next()] == [0, 1, None]
    slots.drop()
