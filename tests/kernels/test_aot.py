"""Every variant that the models' calls launch compiles for sm_80, sm_90 and sm_100, fits shared memory, spills nothing unexcused.
What is compiled is caught from the calls themselves, run on tensors without memory."""

import json
import os
import subprocess
import sys

import pytest

OUTSIDE = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}


@pytest.mark.aot
@pytest.mark.slow
@pytest.mark.parametrize("arch", [80, 90, 100])
def test_everything_that_is_launched_compiles_without_an_unexcused_spill(arch):
    command = [sys.executable, "-P", "-m", "javisc.kernels.aot", "--json", "--arch", str(arch)]
    done = subprocess.run(command, env=OUTSIDE, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    rows = json.loads(done.stdout)
    assert all(row["registers"] and row["instructions"] and (row["excuse"] or not row["spill"]) for row in rows)
