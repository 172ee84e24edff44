"""Every variant that the models' calls launch compiles for sm_80, sm_90 and sm_100, fits shared memory, spills nothing unexcused.
What is compiled is caught from the calls themselves, run on tensors without memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TABLE = Path(__file__).parents[2] / "benchmarks/results/aot.md"
OUTSIDE = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}

CAPTURE = """
import json
from javisc.kernels import aot
print(json.dumps([(v.name, v.label, v.arch) for arch in (80, 90, 100) for v in aot.variants(arch)]))
"""


def sections():
    """The table's parts by kernel: kernels of one family have variants of the same label."""
    return dict(part.split("\n", 1) for part in TABLE.read_text().split("\n## ")[1:])


@pytest.mark.aot
@pytest.mark.slow
@pytest.mark.parametrize("arch", [80, 90, 100])
def test_everything_that_is_launched_compiles_without_an_unexcused_spill(arch):
    command = [sys.executable, "-P", "-m", "javisc.kernels.aot", "--json", "--arch", str(arch)]
    done = subprocess.run(command, env=OUTSIDE, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    rows = json.loads(done.stdout)
    assert all(row["registers"] and row["instructions"] and (row["excuse"] or not row["spill"]) for row in rows)
    # Known good figures are in the table: no variant may need a tenth more instructions than there.
    known = {
        (kernel, *line.split(" | ")[:2]): int(line.split(" | ")[7])
        for kernel, part in sections().items()
        for line in part.splitlines()
        if " | sm_" in line
    }
    for row in rows:
        assert row["instructions"] <= 1.1 * known[row["kernel"], f"| {row['label']}", f"sm_{arch}"], row


def test_the_table_lists_every_variant_that_the_models_launch():
    done = subprocess.run(
        [sys.executable, "-P", "-c", CAPTURE], env=OUTSIDE, capture_output=True, text=True, check=True
    )
    launched = json.loads(done.stdout)
    for kernel, label, arch in launched:
        assert f"| {label} | sm_{arch} |" in sections()[kernel], (
            f"{kernel} {label}: run python -P -m javisc.kernels.aot --write {TABLE}"
        )
    assert {kernel for kernel, _, _ in launched} == set(sections()), "the table has kernels that nothing launches"
