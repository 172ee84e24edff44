"""Where the material outside the repository lies: real clips, real annotation files, parity fixtures."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

SHARED = Path(os.environ.get("JAVISC_SHARED", Path(__file__).resolve().parents[3] / "shared"))
PARITY = Path(os.environ.get("JAVISC_PARITY", SHARED / "parity"))


def need(path: Path) -> Path:
    """Return `path`, or skip the test and say what is missing."""
    if not path.exists():
        pytest.skip(f"{path} is not here (set JAVISC_SHARED or JAVISC_PARITY to the folder that holds it)")
    return path
