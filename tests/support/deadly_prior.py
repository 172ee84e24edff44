"""A worker of `javisc build prior` that dies of one item, for tests of what survives that. Its key is in the file that
JAVISC_TEST_DEADLY names: processes of a cluster have the environment in which that was started."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from javisc.trainer.use.prior import worker


def make(**arguments: Any) -> bool:
    """As the real one, but one item is the process's end."""
    deadly = Path(os.environ["JAVISC_TEST_DEADLY"]).read_text()
    gone = {place for place, _, _ in arguments["lost"]}
    if any(item["key"] == deadly and place not in gone for place, item in arguments["items"]):
        os.kill(os.getpid(), signal.SIGKILL)
    with Path(os.environ["JAVISC_TEST_DEADLY"] + ".processes").open("a") as told:
        told.write(f"{os.getpid()}\n")
    return worker.make(**arguments)
