"""The benchmark's gate fails what is wrong, whatever else is right; its budget and its log hold; the variants it judges are those
that the models launch; and kernels stand on torch, triton and the standard library alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from javisc.kernels.attention import attention
from javisc.kernels.attention.reference import attention_reference

ROOT = Path(__file__).parents[2]
OUTSIDE = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}


@pytest.fixture
def gate(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import gate

    return gate.gate


class Changed(torch.autograd.Function):
    """Changes nothing but the gradient that passes through."""

    @staticmethod
    def forward(ctx, x, change):
        ctx.change = change
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return ctx.change(grad), None


def draw(dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    return {name: torch.randn(1, 6, 1, 16, generator=generator).to(dtype).requires_grad_() for name in "qkv"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gate_passes_what_is_right(gate, dtype):
    found = gate(lambda **x: attention(**x, backend="triton"), attention_reference, draw(dtype))
    assert found["passed"] and set(found["errors"]) == {"out0", "dq", "dk", "dv"} and found["bits"]


#: Wrong kernels, by what they do to the gradient of the output. Gradients of ones hide all of them but the third.
MUTANTS = {
    "flipped": lambda g: g.flip(1),
    "shifted by a row": lambda g: g.roll(1, 1),
    "dropped": lambda g: g * 0,
    "negated": lambda g: -g,
    "one row forgotten": lambda g: torch.cat([g[:, :-1], 0 * g[:, -1:]], 1),
    "columns turned": lambda g: g.roll(1, -1),
    "taken as ones": torch.ones_like,
    "not written": lambda g: torch.full_like(g, float("nan")),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_gate_fails_a_kernel_that_misreads_the_outputs_gradient(gate, mutant):
    def wrong(**inputs):
        return Changed.apply(attention(**inputs, backend="torch"), MUTANTS[mutant])

    found = gate(wrong, attention_reference, draw())
    assert not found["passed"] and found["errors"]["out0"] < 1e-5


def test_the_gate_fails_unwritten_outputs_and_bits_that_change(gate):
    def unwritten(**inputs):
        out = attention(**inputs, backend="torch")
        hole = torch.empty_like(out)  # poisoned
        return torch.where(torch.arange(6)[:, None, None] < 5, out, hole)

    assert not gate(unwritten, attention_reference, draw())["passed"]
    calls = []

    def restless(**inputs):
        calls.append(1)
        return attention(**inputs, backend="torch") * (1 + 1e-6 * (len(calls) % 2))

    found = gate(restless, attention_reference, draw())
    assert not found["bits"] and not found["passed"] and max(found["errors"].values()) < 1e-5


VARIANTS = """
from javisc.kernels import aot, calls
def kinds(sizes, arch):
    found = set()
    for call in calls.calls(sizes):
        with aot.capturing(arch) as seen:
            call.run(aot.torch.device("meta"))
        found |= {(v.name, v.label) for v in seen}
    return found
for arch in (80, 90):
    missing = {m for m in kinds(calls.MODELS, arch) - kinds(calls.GATE, arch) if m[0] != "selector_merge"}
    assert not missing, (arch, missing)
"""


def test_the_gate_judges_every_variant_that_the_models_launch():
    subprocess.run([sys.executable, "-P", "-c", VARIANTS], env=OUTSIDE, check=True)


ALONE = """
import importlib.util, runpy, sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        top, _, rest = name.partition(".")
        if top in {"click", "rich", "pyarrow", "av", "safetensors", "webdataset"} or (
            top == "javisc" and rest.split(".")[0] != "kernels"
        ):
            raise ModuleNotFoundError(name)
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name == "javisc" else real(name, package)
sys.meta_path.insert(0, Refuse())
sys.argv = ["kernels.py", "--stage", "ceilings", "--tiny", "--results", sys.argv[1]]
try:
    runpy.run_path("benchmarks/kernels.py", run_name="__main__")
finally:
    from javisc.kernels import attention, calls, survey
    survey.load_ops()
    print(attention.__file__)
"""


def test_the_benchmark_runs_where_javisc_is_not_installed(tmp_path):
    done = subprocess.run(
        [sys.executable, "-P", "-c", ALONE, str(tmp_path / "log")],
        cwd=ROOT,
        env=OUTSIDE,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert str(ROOT) in done.stdout
    cells = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert [c["cell"] for c in cells] == ["ceilings/device", "ceilings/copy", "ceilings/product"]


@pytest.mark.slow
def test_a_rehearsal_logs_every_cell_keeps_what_it_has_and_calls_missing_peers_not_measured(tmp_path):
    log, report = tmp_path / "log", tmp_path / "report.md"
    command = [sys.executable, "-P", "-W", "ignore", "benchmarks/kernels.py", "--budget", "400", "--results", str(log)]
    command += ["--resume", "--out", str(report), "--only", "gate", "selector_attention"]
    kept = {"cell": "gate/attention, spatial, tiny/bfloat16", "passed": True, "errors": {}, "marker": 7}
    log.write_text(json.dumps(kept) + '\n{"cell": "gate/attention, sp')  # and a line that an end cut short
    done = subprocess.run(command, cwd=ROOT, env=OUTSIDE, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    cells = {}
    for line in log.read_text().splitlines():
        if line.endswith("}"):
            cells[json.loads(line)["cell"]] = json.loads(line)
    assert cells["gate/attention, spatial, tiny/bfloat16"]["marker"] == 7
    gates = [c for n, c in cells.items() if n.startswith("gate/")]
    assert len(gates) == 26 and all(c["passed"] for c in gates)
    ours = cells["selector_attention/selector_attention, 1 clips, 20 keys/javisc"]
    assert len(ours["both"]) == 3 and ours["flops"][0] == 4 * 16 * 20 * 64
    assert "not measured" in cells["selector_attention/selector_attention, 1 clips, 20 keys/xformers"]
    text = report.read_text()
    assert "Gate: 26 of 26 calls pass." in text and "missed" not in text
    again = subprocess.run(
        [c for c in command if c != "--resume"], cwd=ROOT, env=OUTSIDE, capture_output=True, text=True
    )
    assert again.returncode == 2 and "give --resume" in again.stderr
