"""Jitter of time stamps leaves samples alone, steps and dropouts are put right where they are, a drift is followed."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from javisc.compiler.media.stamps import SampleClock
from javisc.compiler.media.warp import warp
from javisc.compiler.reasons import Rejected
from support.media import BEATS, beep_times, sound
from support.wobble import SHAPES, off_tone, wobble

Floats = NDArray[np.float64]


def play(clock: SampleClock, source: NDArray[np.float32], times: list[Fraction], size: int) -> NDArray[np.float32]:
    """The whole line."""
    parts = [np.zeros(0, np.float32)]
    for n, time in enumerate(times):
        for placed in clock.push(source[None, n * size : (n + 1) * size], time):
            parts += [np.zeros(placed.silence, np.float32), placed.sound[0]]
    for placed in clock.finish():
        parts += [np.zeros(placed.silence, np.float32), placed.sound[0]]
    line = np.concatenate(parts)
    assert len(line) == clock.line
    return line


def stamps(seconds: Floats, unit: int = 90000) -> list[Fraction]:
    """Times as a container with `unit` ticks a second stores them."""
    return [Fraction(round(float(time) * unit), unit) for time in seconds]


@given(st.integers(0, 10_000), st.sampled_from([8000, 44100, 48000]), st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_rounded_time_stamps_change_nothing(start_ms: int, rate: int, seed: int) -> None:
    """Matroska rounds to a millisecond: no sample may be invented or lost for that."""
    source = np.random.default_rng(seed).standard_normal(1024 * 60).astype(np.float32)
    exact = np.array([float(Fraction(start_ms, 1000) + Fraction(n * 1024, rate)) for n in range(60)])
    out = play(SampleClock(rate), source, stamps(exact, 1000), 1024)
    head = round(Fraction(start_ms, 1000) * rate)
    assert len(out) == head + len(source) and not out[:head].any()
    assert np.array_equal(out[head:], source)


@given(
    st.sampled_from(sorted(SHAPES)),
    st.floats(0.002, 0.03),
    st.floats(0.05, 2.0),
    st.sampled_from([(16000, 1024), (44100, 1024), (48000, 960), (48000, 4096), (8000, 320)]),
    st.integers(0, 2**32 - 1),
)
@example("sine", 0.021, 2.0, (48000, 4096), 0)
@example("random", 0.015625, 1.0, (48000, 4096), 9720)  # the last two stamps lie far out by chance
@example("late packets", 0.003779153204618262, 0.9715003416912934, (16000, 1024), 3229822117)  # and no others
@example("random", 0.014445225141975404, 1.0, (16000, 1024), 249)  # the first two agree, at the jitter's edge
@settings(max_examples=40, deadline=None)
def test_jitter_of_any_shape_leaves_samples_alone(
    shape: str, size: float, period: float, kind: tuple[int, int], seed: int
) -> None:
    """Up to 30 ms and 2 s: the line is the source itself, wherever it begins."""
    rate, packet = kind
    count = 7 * rate // packet
    source = np.random.default_rng(seed).standard_normal(count * packet).astype(np.float32)
    at = np.arange(count) * packet / rate
    clock = SampleClock(rate)
    out = play(clock, source, stamps(1 + at + wobble(shape, at, size, period, seed)), packet)
    assert np.array_equal(out[len(out) - len(source) :], source)
    assert abs(len(out) - len(source) - rate) <= (size + 0.001) * rate
    assert clock.filled == clock.cut == clock.stretched == 0 and clock.wobble <= 2 * size + 0.001


def test_a_wobbling_tone_stays_a_tone() -> None:
    """Off-tone energy of 1 kHz, as it was first seen: -19 dB when stamps of a sine of 10 ms were followed."""
    rate, packet = 48000, 1024
    tone = (0.5 * np.sin(2 * np.pi * 1000 * np.arange(8 * rate // packet * packet) / rate)).astype(np.float32)
    at = np.arange(len(tone) // packet) * packet / rate
    out = play(SampleClock(rate), tone, stamps(1 + at + wobble("sine", at, 0.01, 0.9, 1)), packet)
    assert off_tone(out[rate + rate // 10 :], rate) < -100


def clicks(rate: int, packet: int, seconds: float, seed: int) -> tuple[NDArray[np.float32], list[float]]:
    """A sound with clicks, each in the middle of a packet, and when they are in the source."""
    count = int(seconds * rate) // packet
    source = np.zeros(count * packet, np.float32)
    places = [n * packet + packet // 2 for n in range(3, count - 3, max(round(0.37 * rate / packet), 1))]
    source[places] = 1
    return source, [place / rate for place in places]


def misplaced(
    moved: Callable[[float], float],
    rate: int,
    packet: int,
    unit: int = 90000,
    cut: tuple[float, float] = (0.0, 0.0),
    seconds: float = 9.0,
) -> tuple[list[float], SampleClock]:
    """By how many seconds each click is from where its packet's stamp says, and the clock; without those that a step cuts."""
    source, when = clicks(rate, packet, seconds, 0)
    at = np.arange(len(source) // packet) * packet / rate
    clock = SampleClock(rate)
    out = play(clock, source, stamps(np.array([time + 1 + moved(time) for time in at]), unit), packet)
    errors = []
    for time in when:
        if cut[0] <= time <= cut[1]:
            continue
        said = time + 1 + moved(int(time * rate) // packet * packet / rate)
        first = max(round((said - 0.03) * rate), 0)
        heard = (first + np.flatnonzero(np.abs(out[first : round((said + 0.03) * rate)]) > 0.3)) / rate - said
        assert heard.size, f"no click near {said} s"
        errors.append(float(heard[np.abs(heard).argmin()]))  # a step back brings others near
    return errors, clock


@given(
    st.floats(2.0, 6.0),
    st.floats(0.002, 0.5),
    st.booleans(),
    st.floats(-500e-6, 500e-6),
    st.floats(0.005, 0.4),
    st.sampled_from([(16000, 1024), (44100, 1152), (48000, 960), (48000, 4096)]),
    st.sampled_from([1000, 90000]),
)
@example(2.0, 0.018, False, 0.0, 0.1, (44100, 1152), 90000)
@example(2.0, 0.002, False, 0.0004772389493685554, 0.25, (16000, 1024), 1000)
@example(2.0, 0.002, False, 0.0004677538556337764, 0.25, (16000, 1024), 90000)
@settings(max_examples=40, deadline=None)
def test_steps_drift_and_dropouts_together(
    where: float, step: float, back: bool, drift: float, dropout: float, kind: tuple[int, int], unit: int
) -> None:
    """Every click that is not cut is within 2 ms of where its stamp says, from the step on.

    3 ms where stamps are whole milliseconds: a drift of half a permille and a step of 2 ms are told from their rounding later.
    """
    size = -step if back else step

    def moved(time: float) -> float:
        return drift * time + (size if time >= where else 0.0) + (dropout if time >= where + 1.5 else 0.0)

    errors, clock = misplaced(moved, *kind, unit, (where, where + step + 0.15) if back else (0, 0))
    assert max(map(abs, errors)) < (0.003 if unit == 1000 else 0.002), (errors, clock.filled, clock.cut)


@pytest.mark.parametrize("where", [0.3, 3.0, 8.4])
@pytest.mark.parametrize("step", [0.002, 0.005, 0.018, -0.003, -0.015, 0.2])
def test_a_step_is_put_right_where_it_is(where: float, step: float) -> None:
    """At the start, in the middle and close to the end; nothing is smeared out."""
    errors, clock = misplaced(lambda time: step if time >= where else 0.0, 48000, 1024, cut=(where, where + 0.05))
    assert max(map(abs, errors)) < 0.0002
    assert clock.filled / 48000 == pytest.approx(max(step, 0), abs=1e-4)
    assert clock.cut / 48000 == pytest.approx(max(-step, 0), abs=1e-4) and clock.stretched == 0


def test_dropouts_follow_each_other() -> None:
    """Each loses some more, less than the look-ahead apart."""
    lost = {2.0: 0.1, 2.4: 0.02, 2.9: 0.01, 3.2: 0.25, 5.0: 0.003}
    errors, clock = misplaced(lambda time: sum(size for at, size in lost.items() if time >= at), 44100, 1024)
    assert max(map(abs, errors)) < 0.0005 and clock.filled / 44100 == pytest.approx(sum(lost.values()), abs=0.001)


@given(
    st.sampled_from(sorted(SHAPES)),
    st.floats(0.002, 0.012),
    st.floats(0.1, 2.0),
    st.floats(0.06, 0.5),
    st.floats(-300e-6, 300e-6),
    st.integers(0, 2**32 - 1),
)
@example("sine", 0.002, 1.625, 0.5, 0.0, 28538)  # before the step, a piece of the sine is as straight as a drift
@example("square", 0.002, 0.8823648683929619, 0.0732931576409046, 0.0, 308849140)  # about as far as jitter may be
@settings(max_examples=30, deadline=None)
def test_jitter_on_a_step_and_a_drift(
    shape: str, size: float, period: float, step: float, drift: float, seed: int
) -> None:
    """A step that is larger than the jitter is found in it; no click is further off than the jitter is wide."""
    rate, packet, where = 48000, 1024, 4.0
    source, when = clicks(rate, packet, 9.0, 0)
    at = np.arange(len(source) // packet) * packet / rate
    true = 1 + at * (1 + drift) + step * (at >= where)
    clock = SampleClock(rate)
    out = play(clock, source, stamps(true + wobble(shape, at, size, period, seed)), packet)
    for time in when:
        said = np.interp(time, at, true) if abs(time - where) > 0.1 else None
        if said is not None:
            reach = 2 * size + 0.004
            part = np.abs(out[round((said - reach) * rate) : round((said + reach) * rate)])
            assert part.max() > 0.3, (time, clock.filled / rate, clock.cut / rate, clock.stretched / rate)
    assert clock.filled / rate == pytest.approx(step, abs=2 * size + 0.003)


@pytest.mark.parametrize("speed", ["999/1000", "1001/1000", "1003/1000"])
@pytest.mark.parametrize("unit", [1000, 90000])
def test_a_drifting_sample_count_follows_the_time_stamps(speed: str, unit: int) -> None:
    """A recorder whose samples are not as long as it claims: beeps must stay where the time stamps say."""
    rate, ratio = 44100, Fraction(speed)
    source = sound(rate, 30.0, tuple(BEATS[0] + n for n in range(29)))
    count = len(source) // 1024
    times = [Fraction(round(n * 1024 * ratio / rate * unit), unit) for n in range(count)]
    clock = SampleClock(rate)
    out = play(clock, source, times, 1024)
    expected = [(BEATS[0] + n) * float(ratio) for n in range(28)]
    assert np.abs(np.subtract(beep_times(out, rate, expected, 0.1), expected)).max() < 0.002
    assert clock.stretched and clock.filled == clock.cut == 0


def test_a_followed_drift_keeps_a_tone_clean() -> None:
    """The tone is another one, but one: energy further than 20 Hz from it is below -60 dB."""
    rate, packet = 48000, 1024
    tone = (0.5 * np.sin(2 * np.pi * 1000 * np.arange(12 * rate // packet * packet) / rate)).astype(np.float32)
    at = np.arange(len(tone) // packet) * packet / rate
    clock = SampleClock(rate)
    out = play(clock, tone, stamps(at * 1.0005), packet)
    assert clock.stretched > 0 and off_tone(out[rate // 10 :], rate, width=20) < -60


def test_gaps_become_silence_and_overlaps_are_cut() -> None:
    rate = 16000
    source = np.ones(1600 * 40, np.float32)
    times = [
        Fraction(n, 10) + (Fraction(1, 2) if n >= 4 else 0) - (Fraction(1, 20) if n >= 18 else 0) for n in range(40)
    ]
    clock = SampleClock(rate)
    out = play(clock, source, times, 1600)
    assert clock.filled == 8000 and clock.cut == 800
    assert not out[6400:14400].any() and out[:6400].all() and out[14400:].all()
    assert len(out) == round((times[-1] + Fraction(1, 10)) * rate)


def test_sound_before_zero_is_cut() -> None:
    clock = SampleClock(1000)
    out = play(clock, np.arange(1, 41, dtype=np.float32), [Fraction(n, 100) - Fraction(15, 1000) for n in range(4)], 10)
    assert out.tolist() == list(range(16, 41)) and clock.silence_head == clock.cut == 0


@pytest.mark.parametrize("seconds", [1, 60, 1800, 36000])
def test_a_leap_is_a_number_and_no_memory(seconds: int) -> None:
    """From a second to ten hours: the clock tells how long the silence is; it does not make it."""
    rate = 48000
    clock = SampleClock(rate)
    chunk = np.ones((1, 4800), np.float32)
    placed = []
    for n in range(60):
        placed += list(clock.push(chunk, Fraction(n, 10) + (seconds if n >= 10 else 0)))
    placed += list(clock.finish())
    assert [part.silence for part in placed if part.silence] == [seconds * rate]
    assert sum(part.sound.shape[1] for part in placed) == 60 * 4800


def test_a_leap_back_leaves_no_clock() -> None:
    clock = SampleClock(16000)
    with pytest.raises(Rejected, match=r"timestamps: .* leap back by 1800"):
        for n in range(100):
            list(clock.push(np.ones((1, 1600), np.float32), 2000 + Fraction(n, 10) - (1800 if n >= 10 else 0)))


def test_a_single_wrong_stamp_is_only_wrong() -> None:
    """Ten hours off, once: neither silence nor an end."""
    clock = SampleClock(16000)
    source = np.random.default_rng(0).standard_normal(1600 * 50).astype(np.float32)
    times = [Fraction(n, 10) + (36000 if n == 20 else -5 if n == 30 else 0) for n in range(50)]
    assert np.array_equal(play(clock, source, times, 1600), source) and clock.wobble == 36000


@given(st.floats(-0.01, 0.01), st.lists(st.integers(1, 700), min_size=3, max_size=12), st.integers(1, 3))
@settings(max_examples=30, deadline=None)
def test_resampling_is_continuous_from_chunk_to_chunk(speed: float, sizes: list[int], channels: int) -> None:
    """Against the definition: a slow wave read at the places themselves."""
    n = sum(sizes)
    wave = np.stack([np.sin(2 * np.pi * np.arange(n) * (k + 1) / 40) for k in range(channels)]).astype(np.float32)
    step, fraction, start = 1 / (1 + speed), 0.0, 0
    parts = []
    for size in sizes:
        chunk = wave[:, start : start + size]
        before = wave[:, max(start - 16, 0) : start] if start else np.repeat(chunk[:, :1], 16, axis=1)
        out, fraction = warp(chunk, before, [wave[:, start + size : start + size + 16]], fraction, step)
        parts.append(out)
        start += size
    out = np.concatenate(parts, axis=1)
    places = step * np.arange(out.shape[1])
    assert abs(out.shape[1] - n / step) <= 1
    ideal = np.stack([np.sin(2 * np.pi * places * (k + 1) / 40) for k in range(channels)])
    inner = (places > 17) & (places < n - 17)
    assert np.abs(out - ideal)[:, inner].max(initial=0) < 1e-4
