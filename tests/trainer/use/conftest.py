"""What tests of the commands that use networks share."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from javisc.compiler.run import parts
from javisc.compiler.run.pool import Call, Outcome
from javisc.manifests.entries import named


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts are made in the test's process, which has torch already: processes are for the tests that kill them."""

    def spread(job: Any, calls: Any, **_: Any) -> Iterator[Outcome]:
        for tag, arguments, limit in calls:
            value = named(job.function)(**json.loads(json.dumps(arguments)))
            yield Outcome(Call(tag, job.function, arguments, limit), value=value)

    monkeypatch.setattr(parts, "spread", spread)
