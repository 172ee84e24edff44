"""Synchformer's outputs and gradients through the Triton kernels, run by Triton's interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.sync_parity import SYNCHFORMER


@pytest.mark.slow
def test_every_gradient_through_the_kernels() -> None:
    """In a process of its own: the interpreter is chosen before Triton is first imported. The whole model, of which the
    contrast's two towers are parts, on heads that the kernel can take."""
    if not SYNCHFORMER:
        pytest.skip("no fixtures (set JAVISC_PARITY)")
    here = Path(__file__)
    command = [sys.executable, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--timeout=540"]
    command += [str(here.with_name("test_synchformer_models.py")), "-k", "synchformer_tiny"]
    environment = os.environ | {"TRITON_INTERPRET": "1", "JAVISC_KERNELS": "attention=triton"}
    done = subprocess.run(command, cwd=here.parents[2], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "1 passed" in done.stdout, done.stdout[-2000:] + done.stderr[-2000:]
