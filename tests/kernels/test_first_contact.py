"""The first call on a machine with a GPU, rehearsed without one: every stage runs, an end at any moment leaves what was measured,
and what hangs, crashes or is not installed costs itself alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from support.films import Films

ROOT = Path(__file__).parents[2]
OUTSIDE = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "JAVISC_KERNELS")}
#: Of the whole call a step of one family, three forms of tables, no other programs: what would show the same again is left out.
STAGES = (
    "ceilings compile gate attention norms prior_attention bidirectional_attention temporal_attention selector_attention block "
    "load step/jav encode score sweep/attention sweep/temporal_attention sweep/norms"
)
KERNELS = [sys.executable, "-P", "-W", "ignore", "benchmarks/kernels.py"]
BLOCK = "block/144p 51 frames, 16 clips/javisc"
Cells = dict[str, dict[str, Any]]


def cells(path: Path) -> Cells:
    """Every line must be whole."""
    return {cell["cell"]: cell for cell in map(json.loads, path.read_text().splitlines())}


def call(*command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, env=OUTSIDE | variables, capture_output=True, text=True, check=False)


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


#: Only what torch and triton themselves need can be imported; javisc is not installed.
BARE = """
import importlib.util, sys
absent = {
    "click", "rich", "polars", "pyarrow", "av", "soxr", "soundfile", "safetensors", "webdataset", "omegaconf", "scipy",
    "transformers", "diffusers", "xformers", "yaml", "obstore", "PIL", "torchvision", "torchaudio", "tensorboard",
}
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in absent:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Refuse())
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name in {"javisc", *absent} else real(name, package)
"""


@pytest.fixture(scope="module")
def killed(films: Films, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], str, Path]:
    """The call killed where only torch and triton can be imported, after its gate and a block; then made again and left alone:
    lines and report that the kill left, and the folder."""
    out = tmp_path_factory.mktemp("contact")
    (out / "sitecustomize.py").write_text(BARE)
    command = ["bash", "benchmarks/first_contact.sh", "1100", str(out), str(films.dataset), "--only"]
    variables = {"PYTHON": sys.executable}
    process = subprocess.Popen(
        [*command, "gate", "block", "score"],
        cwd=ROOT,
        env=OUTSIDE | variables | {"PYTHONPATH": str(out)},
        stderr=subprocess.DEVNULL,
    )
    log = out / "cells.jsonl"
    while process.poll() is None and not (log.exists() and f'"{BLOCK}"' in log.read_text()):
        time.sleep(0.05)
    process.kill()
    process.wait()
    left, report = log.read_text().splitlines(), (out / "report.md").read_text()
    with log.open("a") as file:
        file.write('{"cell": "gate/attention, cut sh')  # as an end in the middle of a line would
    done = call(*command, *STAGES.split(), **variables)
    assert done.returncode == 0, done.stderr[-3000:]
    return left, report, out


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_kill_leaves_whole_lines_and_a_report_and_the_next_call_goes_on(killed: tuple[list[str], str, Path]) -> None:
    left, report, out = killed
    first = {c["cell"]: c for c in map(json.loads, left)}
    assert first[BLOCK]["both"] and sum(c.get("passed", False) for c in first.values()) == 13
    assert "Gate: 13 of 13 calls pass." in report and "- score: not come to yet" in report
    lines = (out / "cells.jsonl").read_text().splitlines()
    assert lines[: len(left)] == left
    names = [json.loads(line)["cell"] for line in lines if line.endswith("}")]
    again = [name for name in names if names.count(name) > 1 and not name.startswith("winners/")]
    assert not again


@pytest.mark.slow
def test_every_stage_is_exercised(killed: tuple[list[str], str, Path]) -> None:
    """Gate, times, block, loader, steps, encode, score, programs, sweep: measured, or it says why not."""
    log = killed[2] / "cells.jsonl"
    found = {c["cell"]: c for c in map(json.loads, (x for x in log.read_text().splitlines() if x.endswith("}")))}
    gates = [c for n, c in found.items() if n.startswith("gate/")]
    assert len(gates) == 13 and all(c["passed"] for c in gates)
    missed = {n: c["not measured"] for n, c in found.items() if "not measured" in c}
    # What a CPU has not: xformers, PyTorch's efficient and cuDNN attention.
    unexpected = [n for n in missed if not n.endswith(("xformers", "efficient", "cuDNN"))]
    assert not unexpected, missed
    for op in ("attention", "prior_attention", "bidirectional_attention", "temporal_attention", "selector_attention"):
        ours = [c for n, c in found.items() if n.startswith(f"{op}/") and n.endswith("/javisc")]
        assert ours and all(
            len(c["both"]) == 3 and c["flops"][0] > 0 and c["auto"] in ("triton", "torch") for c in ours
        )
    assert found["load"]["same"] and found["load"]["batches"] > 1 and len(set(found["load"]["checksums"])) > 2
    steps = [c for n, c in found.items() if n.startswith("step/")]
    assert len(steps) == 1 and all(c["host waits"] == 0 and c["seconds a step"] > 0 for c in steps)
    assert found["encode"]["took"] > 0 and found["score"]["took"] > 0
    report = (killed[2] / "report.md").read_text()
    assert "Gate: 13 of 13 calls pass." in report and "missed" not in report and "Left out" not in report
    assert "What `auto` should take" not in report  # the interpreter's times move nothing


@pytest.mark.slow
def test_winners_are_whole_tables_that_can_be_pasted_back(
    killed: tuple[list[str], str, Path], benchmarks: None
) -> None:
    import importlib

    from javisc.kernels.launch import Config

    report = (killed[2] / "report.md").read_text()
    pasted: dict[str, Any] = {}
    for part in report.split("`kernels/")[1:]:
        folder = part.split("/")[0]
        code = part.split("```python\n")[1].split("```")[0]
        space: dict[str, Any] = {"Config": Config}
        exec(code, space)  # what a person would paste
        table = next(name for name in space if name.isupper())
        stands = getattr(importlib.import_module(f"javisc.kernels.{folder}.configs"), table)
        assert space[table].keys() == stands.keys()
        pasted[folder] = space[table]
    assert set(pasted) == {"attention", "temporal_attention", "modulated_norm"}


def test_a_budget_that_is_spent_starts_nothing_and_says_so(tmp_path: Path) -> None:
    out, log = tmp_path / "out.md", tmp_path / "log"
    done = call(*KERNELS, "--budget", "0.5", "--results", str(log), "--out", str(out))
    assert done.returncode == 0, done.stderr
    text = out.read_text()
    assert "Kernels beside their peers" in text and "within the budget" in text
    assert all(stage in text for stage in ("- gate/attention:", "- load:", "- step/jav:", "- score:", "- sweep/norms:"))
    again = call(*KERNELS, "--dataset", str(tmp_path), "--results", str(log))
    assert again.returncode == 2 and "no compiled dataset" in again.stderr


ACCIDENTS = """
import ctypes, os, sys, time
sys.path.insert(0, "benchmarks")
from pathlib import Path
from runner import Runner, Stage

def accidents(log, tiny):
    for name, run in {"first": dict, "segfault": lambda: ctypes.string_at(0), "hang": lambda: time.sleep(1000),
                      "leaves": lambda: os._exit(3), "raises": lambda: 1 / 0, "nan": lambda: {"x": float("inf")}}.items():
        log.measure(name, run)

def broken(log, tiny):
    raise RuntimeError("no such driver")

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    runner = Runner(folder / "log", "here", True, True, folder / "words", time.monotonic() + 60, print, lambda: None, "torch")
    print(runner.run(Stage("accidents", "__main__:accidents", (), 1.0, 2.0)))
    print(runner.run(Stage("broken", "__main__:broken")))
"""


def test_what_hangs_or_crashes_costs_its_cell_alone(tmp_path: Path) -> None:
    (tmp_path / "accidents.py").write_text(ACCIDENTS)
    done = call(sys.executable, "-P", str(tmp_path / "accidents.py"), str(tmp_path))
    assert done.returncode == 0, done.stderr
    found = cells(tmp_path / "log")
    assert list(found) == ["first", "segfault", "hang", "leaves", "raises", "nan"]
    assert "SIGSEGV" in found["segfault"]["not measured"] and "exit code 3" in found["leaves"]["not measured"]
    assert found["hang"]["not measured"] == "no answer within 2 s" and "ZeroDivision" in found["raises"]["not measured"]
    assert found["nan"]["x"] == "inf"
    assert done.stdout.splitlines()[-2] == "done" and "no such driver" in done.stdout.splitlines()[-1]


def cell(ms: float, **more: Any) -> dict[str, Any]:
    return {"both": [ms, ms, ms]} | more


def test_a_measured_file_says_where_auto_should_move(benchmarks: None) -> None:
    """Only where a backend is clearly faster; a peer that could not run decides nothing."""
    from report import moves, report

    found: Cells = {
        "ceilings/device": {"device": "NVIDIA H200", "tiny": False},
        "attention/spatial, 720p/javisc": cell(1.0, auto="torch"),
        "attention/spatial, 720p/torch": cell(1.6),
        "attention/spatial, 720p/torch, cuDNN": cell(0.9),  # not what PyTorch takes by itself
        "attention/spatial, 144p/javisc": cell(1.0, auto="triton"),
        "attention/spatial, 144p/torch": cell(0.99),
        "attention/text/javisc": cell(1.0, auto="triton"),
        "attention/text/torch": {"not measured": "OutOfMemoryError"},
        "norms/gate/javisc": cell(1.0, auto="triton"),
        "norms/gate/torch.compile": cell(0.5),
        "prior_attention/batch/javisc": {"not measured": "fails the gate"},
        "prior_attention/batch/torch": cell(0.1),
    }
    assert moves(found) == ["spatial, 720p: `auto` takes torch; triton 1.000 ms, torch 1.600 ms: take triton"]
    text = report(found, {"sweep/norms": "not started"})
    assert "spatial, 720p: `auto` takes torch" in text and "- sweep/norms: not started" in text


def test_auto_follows_what_was_measured(benchmarks: None) -> None:
    """Results of a device that lie in benchmarks/results are what `auto` does."""
    from report import moves

    for path in (ROOT / "benchmarks/results").glob("*.jsonl"):
        assert not moves(cells(path)), path


def test_cells_of_another_device_or_source_are_not_taken_for_measured(tmp_path: Path, benchmarks: None) -> None:
    from cells import Log

    Log(tmp_path / "log", "cpu").measure("gate", lambda: {"passed": True})
    assert "gate" in Log(tmp_path / "log", "cpu") and "gate" not in Log(tmp_path / "log", "h200")
    log = Log(tmp_path / "log", "h200")
    log.write({"cell": "later", "not measured": "the gate did not come to it", "again": True})
    assert "later" not in Log(tmp_path / "log", "h200")


def test_clips_that_an_ended_call_made_serve_the_next_one(
    tmp_path: Path, benchmarks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed while it made them, the next call makes them anew; killed afterwards, it takes them; what failed is tried again."""
    import contact
    from cells import Log

    left, codes = [], [0, 0, 1, 0]

    def make(call: Any, **options: Any) -> subprocess.CompletedProcess[str]:
        left.append((tmp_path / "whole").exists())
        (tmp_path / "whole/dataset").mkdir(parents=True)
        return subprocess.CompletedProcess(call, codes.pop(0), "", "no encoder")

    monkeypatch.setattr(contact.subprocess, "run", make)
    monkeypatch.setattr(contact, "load", lambda dataset: {"loaded": dataset})
    monkeypatch.setattr(contact, "encode", lambda dataset: {"encoded": dataset})

    def run(name: str, caller: str, path: str = "log") -> dict[str, Any]:
        contact.stage(Log(tmp_path / path, "cpu"), True, name, "", str(tmp_path), caller)
        return Log(tmp_path / path, "cpu").cells[name]

    (tmp_path / "whole/half").mkdir(parents=True)  # as a kill leaves it: nothing of it is in the log
    assert run("load", "first") == run("load", "first") and left == [False] and not (tmp_path / "whole/half").exists()
    assert run("encode", "second")["encoded"] == str(tmp_path / "whole/dataset") and len(left) == 1
    contact.shutil.rmtree(tmp_path / "whole")
    assert "encoded" in run("encode", "third", "other") and len(left) == 2  # gone, or of another device: made anew
    contact.shutil.rmtree(tmp_path / "whole")
    for caller, stage, tries in (("a", "load", 3), ("a", "encode", 3), ("b", "load", 4)):
        found = run(stage, caller, "fails")
        assert ("no encoder" in found.get("not measured", "")) == (tries == 3) and len(left) == tries
