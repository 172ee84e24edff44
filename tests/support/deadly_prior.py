"""A worker of `javisc build prior` that dies of one item, for tests of what survives that. Its key is in the file that
JAVISC_TEST_DEADLY names: processes of a cluster have the environment in which that was started."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from javisc.trainer.use.prior import worker


def make(**arguments: Any) -> dict[str, Any]:
    """As the real one, but one item is the process's end."""
    deadly = Path(os.environ["JAVISC_TEST_DEADLY"]).read_text()
    if any(item["key"] == deadly and deadly not in arguments["lost"] for item in arguments["items"]):
        os.kill(os.getpid(), signal.SIGKILL)
    return {**worker.make(**arguments), "process": os.getpid()}
