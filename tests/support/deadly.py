"""Scoring that kills its worker at one clip, for tests of what survives that."""

from __future__ import annotations

import os
import signal
from typing import Any

from javisc.trainer.use import score_worker


def score_rows(rows: list[dict[str, Any]], options: dict[str, Any]) -> list[dict[str, Any]]:
    """As the real one, but the clip 00000002 is the worker's end."""
    if any(row["key"] == "00000002" for row in rows):
        os.kill(os.getpid(), signal.SIGKILL)
    return score_worker.score_rows(rows, options)
