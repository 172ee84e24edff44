"""Every variant that the models' calls launch compiles for sm_80, sm_90 and sm_100, fits shared memory, spills nothing unexcused.
What is compiled is caught from the calls themselves, run on tensors without memory; what was compiled before is in the table."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TABLE = Path(__file__).parents[2] / "benchmarks/results/aot.md"
OUTSIDE = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}


def sections():
    """The table's parts by kernel: kernels of one family have variants of the same label."""
    return dict(part.split("\n", 1) for part in TABLE.read_text().split("\n## ")[1:])


LAUNCHED = """
import json, sys
from dataclasses import asdict
from javisc.kernels import aot
known = set(json.load(sys.stdin))
launched = [v for arch in (80, 90, 100) for v in aot.variants(arch)]
new = [v for v in launched if aot.key(v) not in known or v.name == "attention_delta"]
rows = aot.compile_all(new) if len(new) > 10 else map(aot.compile_variant, new)
print(json.dumps([[(v.name, v.label, v.arch) for v in launched], [asdict(row) for row in rows]]))
"""


def table():
    """The table's rows: kernel and cells."""
    return [
        (kernel, *line.split(" | "))
        for kernel, part in sections().items()
        for line in part.splitlines()
        if " | sm_" in line
    ]


@pytest.fixture(scope="module")
def seen():
    """What is launched, and what of it was compiled."""
    keys = [row[-1].removesuffix(" |") for row in table()]
    command = [sys.executable, "-P", "-c", LAUNCHED]
    done = subprocess.run(command, env=OUTSIDE, capture_output=True, text=True, input=json.dumps(keys))
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


@pytest.mark.aot
@pytest.mark.slow
def test_everything_that_is_launched_compiles_without_an_unexcused_spill(seen):
    """What the table has not from this very source and compiler is compiled; the rest it has, and of that one small kernel is
    compiled all the same, for each architecture, and must be what is written there."""
    _, rows = seen
    assert {row["arch"] for row in rows if row["kernel"] == "attention_delta"} == {80, 90, 100}
    known = {row[:3]: int(row[8]) for row in table()}
    for row in rows:
        assert (
            not row["problem"] and row["registers"] and row["instructions"] and (row["excuse"] or not row["spill"])
        ), row
        # No variant may need a tenth more instructions than the table says.
        assert row["instructions"] <= 1.1 * known[row["kernel"], f"| {row['label']}", f"sm_{row['arch']}"], row


def test_the_table_lists_every_variant_that_the_models_launch(seen):
    launched, _ = seen
    written = {row[:3] for row in table()}
    for kernel, label, arch in launched:
        assert (kernel, f"| {label}", f"sm_{arch}") in written, (
            f"{kernel} {label}: run python -P -m javisc.kernels.aot --write {TABLE}"
        )
    assert {kernel for kernel, _, _ in launched} == set(sections()), "the table has kernels that nothing launches"
