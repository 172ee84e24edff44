"""Scenes whose picture and sound are in sync by construction: balls under gravity that sound when they hit.

A scene is decided by a seed and a kind. Motion is solved in closed form, so that the times of the hits are exact numbers
and not what a simulation step happened to see; pictures and sound are drawn from the same motion. `bounce` drops balls on
a floor; `rally` sends them between two walls; the other kinds (`acts`) are for learning sync: irregular events of many sorts.
Distractors move and make no sound, calls sound and are not seen; the camera shakes; a hum lies under all.

    made = scene(seed=3, seconds=4.0)
    made.hits                    # what happens when, exactly
    frames = made.pictures()     # (height, width, 3) uint8, one per frame
    wave = made.sound(44100)     # float32
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from javisc.compiler.demo.acts import HELD_OUT, LEARNT, Act, event_times
from javisc.compiler.demo.drawing import Picture, disc
from javisc.compiler.demo.materials import GRAVITY, MATERIALS, VIEW, Material

KINDS = ("bounce", "rally")
#: Below this speed (m/s) a hit is neither seen nor heard; a ball then lies still.
_QUIET = 0.25
#: Speed (m/s) of a hit that sounds at full loudness.
_LOUD = 5.5


@dataclass(frozen=True)
class Hit:
    """One sounding event: when (seconds), which ball, and how fast it was (m/s)."""

    time: float
    ball: int
    speed: float


@dataclass(frozen=True)
class Ball:
    """A ball and its motion along the axis on which it hits: arcs between hits.

    starts[i] is when arc i begins; at that moment the ball is at `heights[i]` from the surface it hits, with `speeds[i]`
    away from it. `side` is where it is across that axis (metres), `drift` its speed there.
    """

    material: Material
    radius: float
    side: float
    drift: float
    starts: tuple[float, ...]
    heights: tuple[float, ...]
    speeds: tuple[float, ...]
    pull: float

    def along(self, time: float) -> float:
        """Distance from the surface at `time`, metres: h + v·t - g·t²/2 within an arc."""
        arc = max(0, int(np.searchsorted(self.starts, time, side="right")) - 1)
        since = time - self.starts[arc]
        return max(0.0, self.heights[arc] + self.speeds[arc] * since - self.pull * since * since / 2)


#: A ball and its hits: (time, speed).
Motion = tuple[Ball, list[tuple[float, float]]]


def bouncing(material: Material, radius: float, side: float, drift: float, drop: float, seconds: float) -> Motion:
    """A ball dropped from `drop` metres. Returns it and its hits (time, speed): t₀ = √(2h/g), then 2·v·eⁿ/g apart."""
    starts, heights, speeds = [0.0], [drop], [0.0]
    hits = []
    time, speed = float(np.sqrt(2 * drop / GRAVITY)), float(np.sqrt(2 * drop * GRAVITY))
    while time < seconds:
        if speed >= _QUIET:
            hits.append((time, speed))
        speed = speed * material.restitution if speed >= _QUIET else 0.0
        starts.append(time)
        heights.append(0.0)
        speeds.append(speed)
        if speed == 0.0:
            break
        time += 2 * speed / GRAVITY
    return Ball(material, radius, side, drift, tuple(starts), tuple(heights), tuple(speeds), GRAVITY), hits


def rallying(material: Material, radius: float, side: float, gap: float, speed: float, seconds: float) -> Motion:
    """A ball that rolls between two walls `gap` metres apart without friction, hitting them every gap/speed seconds.

    `along` is its way folded onto [0, gap]: out with +speed, back with -speed.
    """
    starts, heights, speeds, hits = [0.0], [gap / 2], [speed], []
    time, out = gap / (2 * speed), True
    while time < seconds:
        hits.append((time, speed))
        starts.append(time)
        heights.append(gap if out else 0.0)
        speeds.append(-speed if out else speed)
        time, out = time + gap / speed, not out
    return Ball(material, radius, side, 0.0, tuple(starts), tuple(heights), tuple(speeds), 0.0), hits


@dataclass(frozen=True)
class _Drifter:
    """A thing that moves about in the upper half and is silent."""

    place: NDArray[np.float64]
    pace: NDArray[np.float64]
    phase: NDArray[np.float64]
    colour: NDArray[np.int64]

    @classmethod
    def drawn(cls, dice: np.random.Generator) -> _Drifter:
        return cls(
            dice.uniform(0.15, 0.85, 2), dice.uniform(0.3, 1.1, 2), dice.uniform(0, 6.28, 2), dice.integers(60, 200, 3)
        )

    def at(self, time: float) -> tuple[float, float]:
        """Where it is, as shares of width and height."""
        across, down = self.place + 0.1 * np.sin(self.pace * 2 * np.pi * time + self.phase)
        return float(across), 0.5 * float(down)


@dataclass(frozen=True)
class Scene:
    """A clip to be: balls, silent distractors, camera and light, all from one seed."""

    seed: int
    kind: str
    seconds: float
    fps: Fraction
    size: tuple[int, int]
    balls: tuple[Ball | Act, ...]
    hits: tuple[Hit, ...]
    distractors: int
    shake: float
    #: Sounds that nothing in the picture makes; deviation of the pictures' noise (of 255) and of the sound's.
    calls: int = 0
    grain: float = 0.0
    hiss: float = 0.0015
    #: Quarter turns of a (square) picture.
    turned: int = 0

    @property
    def frames(self) -> int:
        return round(self.seconds * self.fps)

    @property
    def caption(self) -> str:
        names = [f"a {ball.material.name} ball" for ball in self.balls]
        who, many = ", ".join([*names[:-2], " and ".join(names[-2:])]), len(names) > 1
        if self.kind not in KINDS:
            return f"{self.kind}: {', '.join(name.removesuffix(' ball') for name in names)}"
        if self.kind == "bounce":
            return (
                f"{who} {'bounce' if many else 'bounces'} on the floor and {'click' if many else 'clicks'} at every hit"
            )
        return f"{who} {'run' if many else 'runs'} to and fro between two walls, knocking against them"

    def pictures(self) -> Iterator[Picture]:
        """The frames, each the state at exactly its own time n/fps: (height, width, 3) RGB."""
        height, width = self.size
        dice = np.random.default_rng((self.seed, 1))
        base = _backdrop(dice, height + 32, width + 32, self.kind)
        shake = dice.uniform(0.6, 2.2, (2, 3)), dice.uniform(0, 2 * np.pi, (2, 3))
        silent = [_Drifter.drawn(dice) for _ in range(self.distractors)]
        for index in range(self.frames):
            time = float(index / self.fps)
            picture = base.copy()
            for drifter in silent:
                across, down = drifter.at(time)
                disc(
                    picture, across * width + 16, down * height + 16, 0.03 * height, 0.03 * height, drifter.colour, 0.6
                )
            for thing in self.balls:
                if isinstance(thing, Act):
                    thing.draw(picture, time, 16)
                else:
                    self._draw(picture, thing, time)
            sway = np.mean(np.sin(2 * np.pi * shake[0] * time + shake[1]), axis=1)
            top, left = (16 + round(float(np.clip(self.shake * move, -15, 15))) for move in sway)
            seen = picture[top : top + height, left : left + width]
            if self.grain:
                seen = np.clip(seen + dice.normal(0, self.grain, (height, width, 1)), 0, 255).astype(np.uint8)
            yield np.rot90(seen, self.turned) if self.turned else seen

    def _draw(self, picture: Picture, ball: Ball, time: float) -> None:
        height, width = self.size
        scale = height / VIEW
        along, radius = ball.along(time), ball.radius * scale
        # Close to the surface the ball flattens: the eye's cue for the moment of the hit.
        squash = 1.0 - 0.25 * max(0.0, 1.0 - along / 0.04)
        if self.kind == "bounce":
            x = 16 + (_folded(ball.side + ball.drift * time, width / scale - 2 * ball.radius) + ball.radius) * scale
            y = 16 + height * 0.88 - along * scale - radius * squash
            disc(
                picture,
                x,
                16 + height * 0.885,
                radius * (1.1 - 0.2 * min(along, 1.5)),
                radius * 0.18,
                (20, 20, 20),
                0.5,
            )
            disc(picture, x, y, radius / squash, radius * squash, ball.material.colour, 1.0)
        else:
            x, y = 16 + width * 0.1 + radius + along * scale, 16 + ball.side * height
            disc(picture, x, y, radius, radius, ball.material.colour, 1.0)

    def sound(self, rate: int) -> NDArray[np.float32]:
        """The sound, mono, -1 to 1: each hit starts a chord of decaying modes at its exact (sub-sample) time.

        The microphone is where the camera is and sound takes no time, so that sound and picture mean the same moment.
        """
        count = round(self.seconds * rate)
        wave = np.zeros(count)
        dice = np.random.default_rng((self.seed, 2))
        for hit in self.hits:
            material = self.balls[hit.ball].material
            first = int(np.ceil(hit.time * rate))
            times = np.arange(first, min(count, first + int(6 * material.ring * rate))) / rate - hit.time
            loud = min(1.0, hit.speed / _LOUD) ** 1.5
            for number, mode in enumerate(material.modes):
                pitch = material.pitch * mode
                if pitch < 0.45 * rate:
                    ringing = np.exp(-times / material.ring * (1 + number)) * np.cos(2 * np.pi * pitch * times)
                    wave[first : first + len(times)] += 0.35 * loud / (1 + number) * ringing
            knock = dice.standard_normal(len(times)) * np.exp(-times / 0.002)
            wave[first : first + len(times)] += 0.25 * loud * knock
        clock = np.arange(count) / rate
        for _ in range(self.calls):
            # A bird's call: it swells and sinks within half a second, gliding in pitch; nothing about it is sudden.
            start, pitch, glide = (
                dice.uniform(0, max(0.0, self.seconds - 0.5)),
                dice.uniform(600, 3000),
                dice.uniform(-800, 800),
            )
            since = np.clip((clock - start) / 0.5, 0, 1)
            wave += 0.12 * np.sin(np.pi * since) ** 2 * np.sin(2 * np.pi * (pitch + glide * since) * clock)
        hum = 0.002 * np.sin(2 * np.pi * 50 * clock) + self.hiss * dice.standard_normal(count)
        return np.clip(wave + hum, -1, 1).astype(np.float32)


def scene(
    seed: int,
    *,
    kind: str = "bounce",
    seconds: float = 4.0,
    fps: Fraction | int = 25,
    size: tuple[int, int] = (240, 320),
    balls: int | None = None,
    distractors: int | None = None,
    shake: float | None = None,
) -> Scene:
    """A scene from a seed. kind: one of KINDS. size: height and width, pixels. shake: pixels. None: the seed decides.

    Raises ValueError for an unknown kind.
    """
    if kind not in KINDS:
        raise ValueError(f"kind {kind!r}: allowed are {', '.join(KINDS)}")
    dice = np.random.default_rng((seed, 0))
    count = balls if balls is not None else int(dice.integers(1, 4))
    width = VIEW * size[1] / size[0]
    made: list[Ball] = []
    hits: list[Hit] = []
    for index, material in enumerate(dice.permutation(len(MATERIALS))[:count]):
        stuff = MATERIALS[int(material)]
        radius = float(dice.uniform(0.09, 0.16))
        if kind == "bounce":
            side = float((index + dice.uniform(0.3, 0.7)) / count * (width - 2 * radius))
            ball, found = bouncing(
                stuff, radius, side, float(dice.uniform(-0.35, 0.35)), float(dice.uniform(0.7, 1.45)), seconds
            )
        else:
            gap = 0.8 * width - 2 * radius
            side = float((index + 0.5) / count * 0.8 + 0.1)
            ball, found = rallying(stuff, radius, side, gap, gap / float(dice.uniform(0.45, 1.1)), seconds)
        made.append(ball)
        hits += [Hit(time, index, speed) for time, speed in found]
    return Scene(
        seed,
        kind,
        seconds,
        Fraction(fps),
        size,
        tuple(made),
        tuple(sorted(hits, key=lambda hit: hit.time)),
        distractors if distractors is not None else int(dice.integers(0, 4)),
        shake if shake is not None else float(dice.uniform(0, 5)),
    )


def act_scene(
    seed: int,
    kind: str,
    *,
    seconds: float = 5.0,
    fps: Fraction | int = 25,
    size: tuple[int, int] = (64, 64),
    plain: bool = False,
) -> Scene:
    """A scene of one kind of act, for learning sync: one or two things, silent distractors, calls, shake, noise.

    `plain` leaves out all but the things. Raises ValueError for an unknown kind.
    """
    if kind not in (*LEARNT, *HELD_OUT):
        raise ValueError(f"kind {kind!r}: allowed are {', '.join((*LEARNT, *HELD_OUT))}")
    dice = np.random.default_rng((seed, 3))
    count = int(dice.integers(1, 3))
    acts: list[Act] = []
    hits: list[Hit] = []
    for index, number in enumerate(dice.permutation(len(MATERIALS))[:count]):
        known = MATERIALS[int(number)]
        pitched = 2 ** dice.uniform(-0.7, 0.7)
        red, green, blue = (int(part) for part in np.clip(dice.normal(known.colour, 25), 20, 255))
        stuff = replace(
            known,
            pitch=known.pitch * float(pitched),
            colour=(red, green, blue),
        )
        times = event_times(dice, seconds)
        place = ((index + float(dice.uniform(0.4, 0.6))) / count, float(dice.uniform(0.5, 0.75)))
        acts.append(Act(kind, stuff, times, place, float(dice.uniform(0.08, 0.13)), int(dice.integers(1 << 30))))
        hits += [Hit(time, index, float(dice.uniform(3, _LOUD))) for time in times if 0 <= time < seconds]
    noisy = 0.0 if plain else 1.0
    return Scene(
        seed,
        kind,
        seconds,
        Fraction(fps),
        size,
        tuple(acts),
        tuple(sorted(hits, key=lambda hit: hit.time)),
        distractors=int(noisy * dice.integers(0, 4)),
        shake=noisy * float(dice.uniform(0, 0.02)) * size[0],
        calls=int(noisy * dice.integers(0, 4)),
        grain=noisy * float(dice.uniform(0, 6)),
        hiss=0.0015 + noisy * float(dice.uniform(0, 0.015)),
        turned=int(dice.integers(4)) if size[0] == size[1] else 0,
    )


def _folded(place: float, room: float) -> float:
    """A place reflected back and forth inside [0, room]."""
    turn = place % (2 * room)
    return turn if turn <= room else 2 * room - turn


def _backdrop(dice: np.random.Generator, height: int, width: int, kind: str) -> Picture:
    """Wall, floor and some texture, so that the encoder has a picture and the shaking camera something to show."""
    rows = np.linspace(0, 1, height)[:, None, None]
    wall, ground = dice.uniform(90, 200, 3), dice.uniform(50, 130, 3)
    picture = wall * (1 - 0.4 * rows) * np.ones((1, width, 1))
    if kind == "bounce":
        picture[int(height * 0.83) :] = ground
    else:
        picture[:, : int(width * 0.1)] = ground
        picture[:, int(width * 0.9) :] = ground
    coarse = dice.normal(0, 10, (height // 8 + 1, width // 8 + 1, 1))
    picture = picture + np.kron(coarse, np.ones((8, 8, 1)))[:height, :width]
    return np.clip(picture, 0, 255).astype(np.uint8)
