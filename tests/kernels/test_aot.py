"""Every variant that the models' calls launch compiles for sm_80, sm_90 and sm_100 within the budgets that the table writes down.
What is compiled is caught from the calls themselves, run on tensors without memory; what was compiled before from the very same
source is not compiled again (`python -P -m javisc.kernels.aot --check benchmarks/results/aot.csv` compiles all of it)."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from javisc.kernels import aot

TABLE = Path(__file__).parents[2] / "benchmarks/results/aot.csv"
OUTSIDE = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
#: Of a recipe's buckets those at both ends; the calls are held to what its training steps launch there.
ENDS = 'data.buckets={144p: {"51": [1.0, 16]}, 480p: {"51": [1.0, 2]}, 720p: {"51": [1.0, 1]}}'
LAUNCHED = """
import json, sys
from dataclasses import asdict, replace
from javisc.kernels import aot, calls
from javisc.trainer.forecast.variants import variants
from javisc.trainer.tasks import registry
known = set(json.load(sys.stdin))
launched = {aot.key(v): v for arch in (80, 90, 100) for v in aot.variants(arch)}
new = {k: v for k, v in launched.items() if k not in known or v.name == "attention_delta"}
rows = aot.compile_all(list(new.values())) if len(new) > 10 else map(aot.compile_variant, new.values())
steps = variants(*registry.load("jav", [sys.argv[1]]), 90)
def kinds(sizes, arch, dtype):
    found = set()
    for call in calls.calls(sizes):
        with aot.capturing(arch) as seen:
            call.run(aot.torch.device("meta"), dtype)
        found |= {(v.name, v.label) for v in seen}
    return found
half, whole = aot.torch.bfloat16, aot.torch.float32
ungated = {(v.name, v.label, v.arch) for v in launched.values() if v.arch < 100} - {
    (*kind, arch) for arch in (80, 90) for kind in kinds(calls.GATE, arch, half)
}
ungated |= {(*kind, 90) for kind in kinds(calls.MODELS, 90, whole) - kinds(calls.GATE, 90, whole)}
print(json.dumps({
    "launched": [(v.name, v.label, v.arch) for v in launched.values()],
    "rows": [asdict(replace(row, key=k)) for k, row in zip(new, rows)],
    "ungated": sorted(ungated),
    "steps": [(v.name, v.label, aot.key(v) in launched) for v in steps],
}))
"""


@pytest.fixture(scope="module")
def seen():
    """What is launched, what of it was compiled, and what training steps of the recipe launch."""
    keys = [row.key for row in aot.read(TABLE)]
    command = [sys.executable, "-P", "-c", LAUNCHED, ENDS]
    done = subprocess.run(command, env=OUTSIDE, capture_output=True, text=True, input=json.dumps(keys))
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


@pytest.mark.aot
@pytest.mark.slow
def test_everything_that_is_launched_compiles_within_its_budget(seen):
    """What the table has not from this very source and compiler is compiled; the rest it has, and of that one small kernel is
    compiled all the same, for each architecture, and must be what is written there."""
    rows, budgets = [aot.Resources(**row) for row in seen["rows"]], aot.read(TABLE)
    assert {row.arch for row in rows if row.kernel == "attention_delta"} == {80, 90, 100}
    for row in rows:
        assert row.registers and row.instructions and row.blocks and (row.excuse or not row.spill), row
        assert not (said := aot.beyond(row, budgets)), f"{row.kernel} {row.label} sm_{row.arch}: {said}"


def test_the_calls_launch_what_training_steps_of_the_recipe_launch(seen):
    """The recipe's own model and batches, run on fake tensors: kernels, types, constants and alignments are those of the calls,
    which are what is compiled, judged and timed."""
    assert len(seen["steps"]) > 10
    assert not [step for step in seen["steps"] if not step[2]]


def test_the_gate_judges_every_variant_that_the_models_launch(seen):
    """What the benchmark compares with float64 on a device: not a kernel, constant or type less, in bfloat16 and float32."""
    assert not seen["ungated"]


def test_the_table_lists_every_variant_that_the_models_launch(seen):
    written = {(row.kernel, row.label, row.arch) for row in aot.read(TABLE)}
    launched = {tuple(variant) for variant in seen["launched"]}
    assert launched <= written, f"run python -P -m javisc.kernels.aot --write {TABLE}"
    assert written <= launched, "the table has what nothing launches"


ROW = aot.Resources("kernel", "bf16", 90, 8, 2, 128, 0, 80 * 1024, 2, 1000, 300, {"BAR": 10}, key="0")


@pytest.mark.parametrize(
    "change, said",
    [
        ({}, ""),
        ({"registers": 140, "instructions": 1100}, ""),
        ({"registers": 142}, "registers 142"),
        ({"spill": 8}, "spill 8"),
        ({"shared": 82 * 1024}, "shared"),
        ({"blocks": 1}, "blocks of a multiprocessor 1, at least 2"),
        ({"instructions": 1101}, "instructions 1101"),
        ({"loop": 331}, "loop 331"),
        ({"kinds": {"BAR": 12}}, "barriers 12"),
        ({"problem": "CompilationError"}, "CompilationError"),
        ({"label": "fp32"}, "not in the table"),
    ],
)
def test_a_budget_is_held_in_every_number(change, said, tmp_path):
    with (tmp_path / "table.csv").open("w") as stream:
        aot.write([ROW, replace(ROW, arch=80, blocks=1)], stream)
    budgets = aot.read(tmp_path / "table.csv")
    assert budgets == [ROW, replace(ROW, arch=80, blocks=1)]
    found = aot.beyond(replace(ROW, **change), budgets)
    assert said in found and bool(said) == bool(found)


@pytest.mark.parametrize(
    "arch, warps, registers, shared, blocks",
    [
        (90, 8, 128, 81920, 2),  # registers and shared memory both allow two
        (90, 8, 129, 81920, 1),  # a register more does not
        (90, 4, 126, 40960, 4),
        (90, 4, 126, 100 * 1024, 2),
        (80, 1, 32, 0, 32),
        (80, 8, 32, 0, 8),
    ],
)
def test_blocks_that_a_multiprocessor_holds(arch, warps, registers, shared, blocks):
    assert aot.resident(arch, warps, registers, shared) == blocks
