"""The whole model's loss and gradients through the Triton kernels, run by Triton's interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.parity import JAVISDIT
from support.shared import need


@pytest.mark.slow
def test_gradients_through_the_kernels() -> None:
    """In a process of its own: the interpreter is chosen before Triton is first imported."""
    need(JAVISDIT / "MANIFEST.json")
    here = Path(__file__)
    test = f"{here.with_name('test_javisdit_flow.py')}::test_training_gradients_of_the_whole_model"
    environment = os.environ | {"TRITON_INTERPRET": "1", "JAVISC_KERNELS": "triton"}
    command = [
        sys.executable,
        "-P",
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        "--timeout=540",
        test,
        "-k",
        "framemask",  # the case with masks takes the kernels' paths of the case without them, and theirs
    ]
    done = subprocess.run(command, cwd=here.parents[2], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "1 passed" in done.stdout, done.stdout[-2000:] + done.stderr[-2000:]
