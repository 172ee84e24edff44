"""What the loop asks of a thing to be trained, and of what feeds it. The loop knows no model and no dataset."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from javisc.trainer.data.index import draws

Batch = TypeVar("Batch")
Given = TypeVar("Given", covariant=True)


class Source(Protocol[Given]):
    """The batches of one rank. Its whole state is a few integers, the same on every rank.

    A loop over it gives the rest of the epoch, the next loop is the next epoch; a batch counts as taken once it was given.
    """

    def __iter__(self) -> Iterator[Given]: ...

    def __len__(self) -> int:
        """Batches left in the epoch."""

    @property
    def rows(self) -> Sequence[int]:
        """Samples, as `Task.size` counts them, of every rank's batch in the step of the batch given last: all ranks follow one
        plan, so none has to ask the others."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...

    def close(self) -> None:
        """Stop whatever reads ahead."""


@dataclass(frozen=True)
class CarryOver:
    """What an optimizer brings along from another run: moments by parameter name, its rate, its place in the schedule."""

    moments: dict[str, dict[str, Tensor]]
    lr: float
    steps: int
    scale: float | None = None
    growth: int = 0


class Task(Protocol[Batch]):
    """A model, its data and its loss."""

    def model(self) -> nn.Module:
        """The model before any file is read, frozen parts frozen; the dry run builds it where nothing is allocated."""

    def build(self) -> nn.Module:
        """The model on the CPU, initialised from torch's generator or from files."""

    def carry_over(self, model: nn.Module) -> CarryOver | None:
        """The optimizer's own start, if it is not a fresh one."""

    def blocks(self, model: nn.Module) -> list[nn.Module]:
        """The repeated parts: each is compiled, checkpointed and sharded by itself."""

    def source(self, rank: int, world: int) -> Source[Batch]:
        """Training batches of a rank."""

    def size(self, batch: Batch) -> int:
        """Samples in a batch; the gradient is the mean over all samples of a step, on however many ranks."""

    def tokens(self, batch: Batch) -> int:
        """Tokens that the model's transformer reads in a batch."""

    def keys(self, batch: Batch) -> list[str]:
        """Names of a batch's samples, for reports."""

    def loss(self, model: nn.Module, batch: Batch, device: torch.device) -> Tensor | Mapping[str, Tensor]:
        """The sum of the samples' losses, or several such sums by name, always the same ones: "loss" is trained on, all are
        logged. All randomness comes from torch's generators, which the loop has keyed."""

    def flops(self, batch: Batch) -> float:
        """Floating-point operations of forward and backward for a batch; 0 if unknown."""

    def validate(self, model: nn.Module, rank: int, world: int, device: torch.device) -> dict[str, float]:
        """Metrics on held-out data, equal on all ranks; {} if there is none. The model is in eval mode."""


@runtime_checkable
class Measures(Protocol):
    """What a task may add: the names that `validate` gives, so that a misspelt `run.metric` is found before the run."""

    def metrics(self) -> tuple[str, ...]:
        """Names of metrics; () where nothing is held out."""


@runtime_checkable
class Shaped(Protocol):
    """What a task may add, so that what its steps launch is known from the recipe alone."""

    def shallow(self) -> nn.Module:
        """The model with one layer of each kind."""

    def examples(self) -> Iterator[Any]:
        """Batches of every shape that training takes; their values are of no matter."""


@runtime_checkable
class Closes(Protocol):
    """What a task may add: the end of what it keeps open between validations."""

    def close(self) -> None:
        """Called when a run has ended, however it did."""


def endless(source: Source[Batch]) -> Generator[Batch, None, None]:
    """Epoch after epoch. Raises RuntimeError if an epoch is empty."""
    while True:
        empty = True
        for batch in source:
            empty = False
            yield batch
        if empty:
            raise RuntimeError("an epoch without batches: the dataset is smaller than one batch on every rank")


def key_random(*words: draws.Word) -> None:
    """Seed torch's generators from the words (seed, step, micro-batch, rank): noise and dropout then need no history."""
    torch.manual_seed(int(draws.bits(*words)[0]) & (2**63 - 1))
