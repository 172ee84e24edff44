"""What the sources that read through a loader have in common: all but what their batches are."""

from __future__ import annotations

from typing import Any

from javisc.trainer.data.bytes.loader import Loader


class LoaderSource:
    """Length, place and end of a source for the training loop: its loader's."""

    loader: Loader

    def __len__(self) -> int:
        """Batches left in the epoch."""
        return len(self.loader)

    @property
    def rows(self) -> tuple[int, ...]:
        """Every rank's samples in the batch that was given last."""
        return self.loader.rows

    def state_dict(self) -> dict[str, Any]:
        """A few integers, the same on every rank."""
        return self.loader.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where another source stood. Raises UserError if it had other data or another seed."""
        self.loader.load_state_dict(state)

    def close(self) -> None:
        """Stop the threads."""
        self.loader.close()
