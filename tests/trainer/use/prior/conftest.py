"""What the tests of the prior's pools share: the demonstration's clips and tiny networks, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from support import demonstration, tiny_networks


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `raw` and `dataset`; read, never changed."""
    return demonstration.write(tmp_path_factory.mktemp("demonstration"))


@pytest.fixture(scope="session")
def networks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder for each kind of network, of a few thousand random weights."""
    root = tmp_path_factory.mktemp("networks")
    return {
        "generator": tiny_networks.audioldm2(root / "audioldm2"),
        "separator": tiny_networks.audiosep(root / "audiosep"),
        "segmenter": tiny_networks.sam2(root / "sam2"),
    }
