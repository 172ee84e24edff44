"""Kinds of event for learning sync: something visible happens at irregular times, and each time it is heard.

An act repeats one motion, stretched between consecutive events whose gaps are drawn at random: no rhythm gives the offset away
twice, and every second holds several events. What moves, how, and where differs from kind to kind; a change that is sudden at the
event and smooth elsewhere is all they share.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from javisc.compiler.demo.drawing import Picture, box, disc, ring
from javisc.compiler.demo.materials import GRAVITY, VIEW, Material

#: Seconds between events, the least and the most.
GAPS = (0.2, 0.8)


def event_times(dice: np.random.Generator, seconds: float) -> tuple[float, ...]:
    """Times from before 0 to after `seconds`, their gaps uniform in GAPS."""
    gaps = dice.uniform(*GAPS, size=int(seconds / GAPS[0]) + 4)
    times = np.cumsum(gaps) - gaps[0] * (1 + dice.uniform())
    return tuple(float(time) for time in times[: int(np.searchsorted(times, seconds)) + 1])


@dataclass(frozen=True)
class Act:
    """One thing of a kind, its material and its events. `place` (across, down) and `size` are shares of the picture.

    `seed` decides what changes from event to event. An event's number is that of the gap that it begins.
    """

    kind: str
    material: Material
    times: tuple[float, ...]
    place: tuple[float, float]
    size: float
    seed: int

    def phase(self, time: float) -> tuple[int, float, float]:
        """(number of the gap, seconds since its first event, its length)."""
        number = min(max(int(np.searchsorted(self.times, time, side="right")) - 1, 0), len(self.times) - 2)
        return number, time - self.times[number], self.times[number + 1] - self.times[number]

    def draw(self, picture: Picture, time: float, margin: int) -> None:
        """Draw the thing's state at `time` on a picture that has `margin` pixels more than is seen on every side."""
        height, width = picture.shape[0] - 2 * margin, picture.shape[1] - 2 * margin
        number, since, gap = self.phase(time)
        x, y = margin + self.place[0] * width, margin + self.place[1] * height
        getattr(self, f"_{self.kind}")(picture, x, y, height, number, since, gap)

    def _juggle(self, picture: Picture, x: float, y: float, height: int, number: int, since: float, gap: float) -> None:
        """A ball that a pad throws up again and again: h = g·t·(gap - t)/2."""
        radius, above = self.size * height, GRAVITY / 2 * since * (gap - since) * height / VIEW
        box(picture, x, y + radius + 0.02 * height, 1.3 * radius, 0.02 * height, (60, 60, 60))
        disc(picture, x, y - above, radius, radius, self.material.colour)

    def _shuttle(
        self, picture: Picture, x: float, y: float, height: int, number: int, since: float, gap: float
    ) -> None:
        """A ball sent from wall to wall, at another speed each time."""
        radius, reach = self.size * height, 0.22 * height
        share = since / gap if number % 2 else 1 - since / gap
        for side in (-1, 1):
            box(picture, x + side * (reach + radius), y, 0.02 * height, 2 * radius, (70, 60, 60))
        disc(picture, x + (2 * share - 1) * reach, y, radius, radius, self.material.colour)

    def _mallet(self, picture: Picture, x: float, y: float, height: int, number: int, since: float, gap: float) -> None:
        """A mallet that is lifted and strikes a bar."""
        radius, share = self.size * height, since / gap
        lift = np.sin(np.pi * share**1.7) * min(0.3, 0.6 * gap) * height
        box(picture, x, y + radius, 1.8 * radius, 0.03 * height, self.material.colour)
        box(picture, x + radius, y - lift - radius, 0.015 * height, radius, (90, 70, 50))
        disc(picture, x, y - lift, 0.8 * radius, 0.6 * radius, (190, 190, 180))

    def _bubble(self, picture: Picture, x: float, y: float, height: int, number: int, since: float, gap: float) -> None:
        """A bubble that swells until it bursts; another begins elsewhere."""
        spots = np.random.default_rng((self.seed, number)).uniform(-0.12, 0.12, (2, 2)) * height
        swollen = 1.9 * self.size * height
        radius = swollen * (since / gap) ** 0.5
        disc(picture, x + spots[0, 0], y + spots[0, 1], radius + 0.5, radius + 0.5, self.material.colour, 0.85)
        if since < 0.12 and number:
            before = np.random.default_rng((self.seed, number - 1)).uniform(-0.12, 0.12, (2, 2)) * height
            wide = swollen * (1 + 4 * since)
            ring(picture, x + before[0, 0], y + before[0, 1], wide, 0.03 * height, (240, 240, 240), 1 - since / 0.12)

    def _lamp(self, picture: Picture, x: float, y: float, height: int, number: int, since: float, gap: float) -> None:
        """A lamp that a switch turns on and off."""
        radius = 1.4 * self.size * height
        lit = np.asarray(self.material.colour) * (0.35 if number % 2 else 1.0) + (0 if number % 2 else 60)
        disc(picture, x, y, radius, radius, np.minimum(lit, 255))

    def _turn(self, picture: Picture, x: float, y: float, height: int, number: int, since: float, gap: float) -> None:
        """A clock's hand that jumps on by a step and rests."""
        radius = 2.2 * self.size * height
        steps = np.random.default_rng(self.seed).uniform(0.6, 1.5, len(self.times))
        angle = float(np.sum(steps[: number + 1])) * np.random.default_rng(self.seed).choice((-1, 1))
        disc(picture, x, y, radius, radius, (205, 205, 195))
        for share in np.linspace(0.1, 0.9, 7):
            spot = 0.18 * radius
            disc(
                picture,
                x + share * radius * np.cos(angle),
                y + share * radius * np.sin(angle),
                spot,
                spot,
                self.material.colour,
            )

    def _clap(self, picture: Picture, x: float, y: float, height: int, number: int, since: float, gap: float) -> None:
        """Two boards that part and are clapped together."""
        half = 1.3 * self.size * height
        apart = 0.16 * height * np.sin(np.pi * (since / gap) ** 1.4) * min(1.0, 1.6 * gap)
        for side in (-1, 1):
            box(picture, x + side * (apart + 0.03 * height), y, 0.03 * height, half, self.material.colour)

    def _pulse(self, picture: Picture, x: float, y: float, height: int, number: int, since: float, gap: float) -> None:
        """A drum's skin seen from above: it widens at once and calms down."""
        radius = 1.3 * self.size * height * (1 + 0.6 * np.exp(-since / 0.12))
        disc(picture, x, y, radius, radius, self.material.colour)
        ring(picture, x, y, 2.2 * self.size * height, 0.04 * height, (80, 70, 60), 1.0)

    def _rattle(self, picture: Picture, x: float, y: float, height: int, number: int, since: float, gap: float) -> None:
        """A bell that is knocked and trembles for a while."""
        sway = 0.08 * height * np.exp(-since / 0.15) * np.cos(2 * np.pi * 7 * since)
        box(picture, x, y - 2 * self.size * height, 0.02 * height, self.size * height, (60, 60, 60))
        disc(picture, x + sway, y, 1.1 * self.size * height, 1.4 * self.size * height, self.material.colour)

    def _hop(self, picture: Picture, x: float, y: float, height: int, number: int, since: float, gap: float) -> None:
        """A thing that hops to and fro between places on the ground."""
        spots = np.random.default_rng(self.seed).uniform(-0.2, 0.2, len(self.times) + 1) * height
        along = spots[number] + (spots[number + 1] - spots[number]) * since / gap
        above = 2.2 * since * (gap - since) * height
        half = self.size * height
        box(picture, x + along, y - above, 0.8 * half, half, self.material.colour)

    def _slide(self, picture: Picture, x: float, y: float, height: int, number: int, since: float, gap: float) -> None:
        """A drawer that creeps open and is pushed shut in a tenth of a second."""
        half, reach = 1.2 * self.size * height, 0.3 * height * min(1.0, 1.8 * gap)
        shut = min(0.1, gap / 2)
        open_ = since / (gap - shut) if since < gap - shut else (gap - since) / shut
        box(picture, x, y, half, 0.7 * half, (70, 55, 45))
        box(picture, x + reach * open_, y, half, 0.5 * half, self.material.colour)

    def _drop(self, picture: Picture, x: float, y: float, height: int, number: int, since: float, gap: float) -> None:
        """Blocks fall one after another, each from higher the longer the gap; the one that lay there sinks away."""
        half, left = self.size * height, gap - since
        above = min(GRAVITY / 2 * left * left, 1.2) * height / VIEW
        shift = np.random.default_rng((self.seed, number)).uniform(-0.05, 0.05, 2) * height
        sunk = 2.4 * half * min(1.0, since / min(gap, 0.5))
        lying = np.random.default_rng((self.seed, number - 1 if number else 99)).uniform(-0.05, 0.05, 2) * height
        box(picture, x + lying[0], y + sunk, half, half, self.material.colour, max(0.0, 1 - since / min(gap, 0.5)))
        box(picture, x + shift[0], y - above, half, half, self.material.colour)

    def _swing(self, picture: Picture, x: float, y: float, height: int, number: int, since: float, gap: float) -> None:
        """A pendulum that swings out to one side and knocks against a post when it comes back."""
        length, radius = 0.42 * height, 0.9 * self.size * height
        out = min(1.1, 2.0 * gap) * np.sin(np.pi * since / gap)
        top = y - length
        across, down = x + length * np.sin(out), top + length * np.cos(out)
        box(picture, x - radius - 0.03 * height, y, 0.03 * height, 2 * radius, (80, 80, 90))
        for share in np.linspace(0, 1, 9)[:-1]:
            disc(picture, x + share * (across - x), top + share * (down - top), 0.8, 0.8, (60, 60, 60))
        disc(picture, across, down, radius, radius, self.material.colour)


#: Kinds to train on, and kinds that are kept for the test.
LEARNT = ("juggle", "shuttle", "mallet", "bubble", "lamp", "turn", "clap", "pulse", "rattle", "hop", "slide")
HELD_OUT = ("drop", "swing")
