"""Imported by the server from which the processes of the stages are forked: imports once what they share, as far as it is there.
None of it touches a device or starts a thread."""

from __future__ import annotations

import contextlib
import importlib
import os

os.environ["PYTHONPATH"] = os.environ.pop("JAVISC_PYTHONPATH", "")  # what it was before this module had to be found
for _name in ("checkout", "torch", "triton", "kernel_stages", "javisc.kernels.calls", "javisc.trainer.tasks.registry"):
    with contextlib.suppress(Exception):  # the stage that needs it says what is wrong
        importlib.import_module(_name)
