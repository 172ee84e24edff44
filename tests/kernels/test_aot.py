"""Every kernel × configuration compiles for sm_80 and sm_90, within shared memory, and spills nothing that is not excused."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from javisc.kernels import aot

TABLE = Path(__file__).parents[2] / "benchmarks/results/aot.md"


@pytest.mark.aot
@pytest.mark.slow
@pytest.mark.parametrize("op", aot.ops_with_kernels())
def test_every_configuration_compiles_without_an_unexcused_spill(op):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-P", "-m", "javisc.kernels.aot", "--json", "--op", op, "--processes", "1"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    rows = json.loads(done.stdout)
    assert {row["arch"] for row in rows} == {80, 90}
    assert all(row["registers"] and (row["excuse"] or not row["spill"]) for row in rows)


def test_every_spill_allowed_has_a_reason_and_the_table_lists_every_case():
    text = TABLE.read_text()
    for case in aot.cases():
        assert bool(case.excuse) == bool(case.spill_limit), case.name
        row = f"| {case.kernel.rpartition(':')[2]} | {case.label} | sm_{case.arch} | {case.warps} | {case.stages} |"
        assert row in text, f"{case.name} is not in {TABLE.name}; run python -P -m javisc.kernels.aot --write {TABLE}"
