"""What the tests of the prior's pools share: the demonstration's clips and tiny networks, made once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts are made in the test's process, which has torch already: processes are what test_engines and test_killed are for."""
    from javisc.compiler.run.pool import Call, Outcome
    from javisc.trainer.use.prior import run, worker

    def spread(job: Any, calls: Any, **named: Any) -> Iterator[Outcome]:
        for tag, arguments, limit in calls:
            value = worker.make(**json.loads(json.dumps(arguments)))
            yield Outcome(Call(tag, job.function, arguments, limit), value=value)

    monkeypatch.setattr(run, "spread", spread)
