"""What the parity sets of sync models hold beside their model fixtures; each file has a fixture `folder` over its sets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor


@pytest.fixture(scope="module")
def tables(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "transforms.json").read_text())


@pytest.fixture(scope="module")
def tensors(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "transforms.safetensors")
