"""What would be spread over processes, done in the test's own: processes are for tests that kill and count them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from javisc.compiler.run.calls import Call, Outcome
from javisc.manifests.entries import named


def spread(job: Any, calls: Any, **_: Any) -> Iterator[Outcome]:
    """As `run.spread.spread`: each call in turn, with arguments as another process would get them."""
    for tag, arguments, limit in calls:
        value = named(job.function)(**json.loads(json.dumps(arguments)))
        yield Outcome(Call(tag, job.function, arguments, limit), value=value)
