"""Scoring and encoding that die of one clip, for tests of what survives that."""

from __future__ import annotations

import os
import signal
from typing import Any

from javisc.trainer.data.bytes.loader import Loader
from javisc.trainer.use import encode_part, score_worker

KEY = "00000002"
_made = Loader._made


def score_rows(rows: list[dict[str, Any]], options: dict[str, Any]) -> list[dict[str, Any]]:
    """As the real one, but the clip KEY is the worker's end."""
    if any(row["key"] == KEY for row in rows):
        os.kill(os.getpid(), signal.SIGKILL)
    return score_worker.score_rows(rows, options)


def make(**arguments: Any) -> bool:
    """As `encode_part.make`, but the clip KEY is the decoder's end, and so the process's."""

    def decode(self: Loader, batch: Any, clip: Any, *rest: Any) -> Any:
        if self.catalog.strings["key"][clip.row] == KEY:
            os.kill(os.getpid(), signal.SIGSEGV)
        return _made(self, batch, clip, *rest)

    Loader._made = decode  # type: ignore[method-assign]
    return encode_part.make(**arguments)
