"""A source over samples that can be made by number: synthetic sets, small sets in memory, and validation sets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from javisc.manifests.errors import UserError
from javisc.trainer.data.index import draws

Sample = TypeVar("Sample")


@dataclass(frozen=True)
class Many(Generic[Sample]):
    """A batch as it lies in a source: the samples and their names."""

    samples: list[Sample]
    keys: list[str]


class NumberedSource(Generic[Sample]):
    """Batches of one rank over samples 0 … length - 1, in an order that seed and epoch fix.

    `make(number, seed)` gives a sample; the seed is a function of (run seed, epoch, number). All ranks see one order of the
    epoch: each takes its own stretch of every step, and the samples that do not fill a step are left to the next epoch's order.
    Its state is (epoch, samples taken), so a run can go on with another number of ranks.
    """

    def __init__(
        self,
        length: int,
        make: Callable[[int, int], Sample],
        batch_size: int,
        *,
        seed: int,
        rank: int = 0,
        world: int = 1,
        name: Callable[[int], str] = str,
    ) -> None:
        if length < batch_size * world:
            raise UserError(
                f"{length} samples do not fill one step of {batch_size} on each of {world} processes: lower the batch size"
            )
        self.length, self.make, self.batch_size, self.seed = length, make, batch_size, seed
        self.rank, self.world, self.name = rank, world, name
        self.epoch, self.taken = 0, 0

    def __len__(self) -> int:
        return (self.length - self.taken) // (self.batch_size * self.world)

    def __iter__(self) -> Iterator[Many[Sample]]:
        order = draws.order(self.length, self.seed, "order", self.epoch)
        step = self.batch_size * self.world
        while self.taken + step <= self.length:
            first = self.taken + self.rank * self.batch_size
            numbers = [int(number) for number in order[first : first + self.batch_size]]
            seeds = [int(draws.bits(self.seed, "sample", self.epoch, number)[0]) >> 1 for number in numbers]
            samples = [self.make(number, seed) for number, seed in zip(numbers, seeds, strict=True)]
            self.taken += step
            if self.taken + step > self.length:
                self.epoch, self.taken = self.epoch + 1, 0
                yield Many(samples, [self.name(number) for number in numbers])
                return
            yield Many(samples, [self.name(number) for number in numbers])

    def close(self) -> None:
        """Nothing is read ahead here."""

    @property
    def rows(self) -> tuple[int, ...]:
        """Every rank's samples in the batch that was given last."""
        return (self.batch_size,) * self.world

    def state_dict(self) -> dict[str, Any]:
        """Epoch, samples taken in it, and what they were taken from."""
        return {"epoch": self.epoch, "taken": self.taken, "length": self.length, "seed": self.seed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where another source stood. Raises UserError if it had other samples or another seed."""
        for key, mine in (("length", self.length), ("seed", self.seed)):
            if state[key] != mine:
                raise UserError(
                    f"the checkpoint's data has {key} {state[key]}, this run's {mine}: resume with the same data"
                )
        self.epoch, self.taken = int(state["epoch"]), int(state["taken"])
