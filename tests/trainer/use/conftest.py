"""What tests of the commands that use networks share: the demonstration's clips and tiny networks, made once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support import demonstration, tiny_networks
from support.warm import in_this_process, warm


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `raw` and `dataset`; read, never changed."""
    return demonstration.write(tmp_path_factory.mktemp("demonstration"))


@pytest.fixture(scope="session")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an AudioLDM2 of a few thousand random weights; read, never changed."""
    return tiny_networks.audioldm2(tmp_path_factory.mktemp("audioldm2"))


@pytest.fixture(scope="session")
def separator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An AudioSep's, likewise."""
    return tiny_networks.audiosep(tmp_path_factory.mktemp("audiosep"))


@pytest.fixture(scope="session")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SAM 2's, likewise."""
    return tiny_networks.sam2(tmp_path_factory.mktemp("sam2"))


@pytest.fixture(scope="session")
def networks(generator: Path, separator: Path, segmenter: Path) -> dict[str, Path]:
    """A folder for each kind of network."""
    return {"generator": generator, "separator": separator, "segmenter": segmenter}


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts are made in the test's process: processes are for the tests that kill and count them."""
    in_this_process(monkeypatch)


@pytest.fixture
def warmed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The workers of this machine's pools have torch imported when they start."""
    warm(monkeypatch)


@pytest.fixture(scope="module")
def all_here() -> Iterator[None]:
    """The same for what a module makes once."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        in_this_process(monkeypatch)
        yield
