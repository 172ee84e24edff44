"""Batches that are held out: their readers are built once in a run, and begin anew in every validation."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

from javisc.trainer.task import Source

Given = TypeVar("Given")


class HeldOut(Generic[Given]):
    """Sources by what `make` is called with, each as it was when it was made: the same batches every time."""

    def __init__(self, make: Callable[..., Source[Given]]) -> None:
        self.make = make
        self.built: dict[tuple[Hashable, ...], tuple[Source[Given], dict[str, Any]]] = {}

    def __call__(self, *key: Hashable) -> Source[Given]:
        """The source, at its beginning. Raises what making it raises."""
        if key not in self.built:
            source = self.make(*key)
            self.built[key] = source, source.state_dict()
        source, begin = self.built[key]
        source.load_state_dict(begin)
        return source

    def close(self) -> None:
        """Stop whatever reads ahead; a source that is asked for later is made again."""
        while self.built:
            self.built.popitem()[1][0].close()
