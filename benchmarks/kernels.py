"""The first call on a machine with a GPU: judge every kernel, time it beside its peers at the shapes that the models run, then
javisc whole; most decisive first, within a budget.

    python -P benchmarks/kernels.py --budget 600 --results first.jsonl --out first.md          (or: javisc bench kernels)

Every stage runs in a process of its own, and every cell is a JSON line of --results as soon as it is measured: an end at any
moment loses one cell, --out is written anew every few seconds, and --resume measures what is missing. A kernel that fails the
gate (gate.py) is not timed. A peer that cannot run a shape is "not measured", and so is what hangs or crashes. The kernels need
torch and triton only; what comes after them needs javisc[train], and without --dataset clips of its own.

Without a CUDA device the same stages run at toy sizes in Triton's interpreter: a rehearsal, whose times mean nothing (--tiny).
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

STARTED = time.monotonic()
sys.path.insert(0, str(Path(__file__).resolve().parent))

import argparse  # noqa: E402  (after the clock has started)
import json  # noqa: E402
import os  # noqa: E402
import shutil  # noqa: E402
import subprocess  # noqa: E402
import tempfile  # noqa: E402
from typing import Any  # noqa: E402

from cells import Log  # noqa: E402  (found beside this file, by the path above)
from checkout import ROOT  # noqa: E402
from contact import FAMILIES, PROGRAMS  # noqa: E402
from report import TIMED, report  # noqa: E402
from runner import Runner, Stage  # noqa: E402

OPS = TIMED[:-1]
SWEPT = ("attention", "bidirectional_attention", "norms", "temporal_attention", "selector_attention")
#: What --only takes: a stage is of a group if its name begins so.
GROUPS = ("ceilings", "compile", "gate", *TIMED, "load", "step", "encode", "score", "program", "sweep")


def stages(budget: float, dataset: str, clips: str, caller: str) -> list[Stage]:
    """In the order of what they decide."""
    patience = max(20.0, budget / 10)

    def kernels(name: str, function: str, share: float, *arguments: str) -> Stage:
        return Stage(name, f"kernel_stages:{function}", arguments, share, patience)

    def whole(name: str, share: float) -> Stage:
        return Stage(name, "contact:stage", (name, dataset, clips, caller), share)

    shares = {"attention": 0.4, "norms": 0.3, "prior_attention": 0.3, "bidirectional_attention": 0.35}
    return [
        kernels("ceilings", "ceilings", 0.1),
        Stage("compile", "kernel_stages:compile_stage", (), 0.25),
        *(kernels(f"gate/{op}", "gate_stage", 0.2, op) for op in OPS),
        *(kernels(op, "beside", shares.get(op, 0.3), op) for op in OPS[:-1]),
        kernels("block", "block", 0.3),
        kernels(OPS[-1], "beside", 0.3, OPS[-1]),
        whole("load", 0.3),
        *(whole(f"step/{family}", 0.2) for family in FAMILIES),
        whole("encode", 0.2),
        whole("score", 0.3),
        *(whole(f"program/{name}", 0.2) for name in PROGRAMS),
        *(Stage(f"sweep/{op}", "sweep:sweep", (op,), 0.5 if op != SWEPT[-1] else 1.0, patience) for op in SWEPT),
    ]


def main() -> int:
    """Run the stages within the budget; 1 if a kernel fails the gate or a batch's bits depended on what ran beside it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=float, default=600, metavar="SECONDS", help="for all together (default 600)")
    parser.add_argument(
        "--results", type=Path, default=Path("kernels.jsonl"), metavar="FILE", help="a JSON line a cell"
    )
    parser.add_argument("--resume", action="store_true", help="keep what --results holds and measure the rest")
    parser.add_argument(
        "--only", nargs="+", metavar="STAGE", help=f"{', '.join(GROUPS)}, or one of them such as step/jav"
    )
    parser.add_argument("--tiny", action="store_true", help="toy sizes, once (always so without a CUDA device)")
    parser.add_argument("--dataset", type=Path, metavar="DIR", help="of sounding clips (default: one is made)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the report there instead of printing it")
    options = parser.parse_args()
    if options.results.exists() and not options.resume:
        parser.error(f"{options.results} is there already: give --resume, or another --results")
    if options.dataset and not (options.dataset / "dataset.json").is_file():
        parser.error(f"--dataset {options.dataset} is no compiled dataset: it holds no dataset.json")
    options.results.parent.mkdir(parents=True, exist_ok=True)
    ended: dict[str, str] = {}
    device = identify(options.tiny, options.budget)
    spoken = time.monotonic()

    def write(now: bool = False) -> None:
        """The report as it stands, if it is old."""
        nonlocal spoken
        if not options.out or (not now and time.monotonic() < spoken + 5):
            return
        spoken = time.monotonic()
        waiting = {stage.name: "not come to yet" for stage in wanted if stage.name not in ended}
        text = report(Log(options.results, device["on"]).cells, _left_out(ended) | waiting)
        part = options.out.with_name(options.out.name + ".part")
        part.write_text(text)
        part.replace(options.out)

    def say(line: str) -> None:
        print(f"{time.monotonic() - STARTED:6.1f} s  {line}", file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory(prefix="javisc-", ignore_cleanup_errors=True) as folder:
        dataset = str(options.dataset.resolve()) if options.dataset else ""
        clips = options.results.resolve().with_suffix(".clips")
        every = stages(options.budget, dataset, str(clips), folder)
        if unknown := sorted(set(options.only or ()) - {s.name for s in every} - set(GROUPS)):
            parser.error(
                f"--only {unknown[0]}: it may be {', '.join(GROUPS)}, or one of {', '.join(s.name for s in every)}"
            )
        wanted = [s for s in every if not options.only or {s.name, _group(s)} & set(options.only)]
        write(now=True)
        if "device" in device and "ceilings/device" not in (log := Log(options.results, device["on"])):
            log.write({"cell": "ceilings/device", **device})
        say(f"device: {device.get('device') or device['failed']}")
        runner = Runner(
            options.results,
            device["on"],
            bool(device.get("tiny")),
            bool(device.get("interpreted")),
            Path(folder, "words"),
            STARTED + options.budget,
            say,
            write,
        )
        for stage in wanted:
            ended[stage.name] = device.get("failed") or runner.run(stage)
            say(f"{stage.name}: {ended[stage.name]}")
            write(now=True)
        if not _left_out(ended):
            shutil.rmtree(clips, ignore_errors=True)
    cells = Log(options.results, device["on"]).cells
    write(now=True)
    if not options.out:
        print(report(cells, _left_out(ended)))
    failed = any(not c.get("passed") for name, c in cells.items() if name.startswith("gate/"))
    return int(failed or cells.get("load", {}).get("same") is False)


def identify(tiny: bool, seconds: float) -> dict[str, Any]:
    """What `kernel_stages.identity` tells, from a process of its own; "failed": why it does not."""
    command = [
        sys.executable,
        "-P",
        "-W",
        "ignore",
        str(ROOT / "benchmarks/kernel_stages.py"),
        *(["--tiny"] if tiny else []),
    ]
    paths = os.pathsep.join(filter(None, (str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH"))))
    try:
        done = subprocess.run(
            command,
            env=os.environ | {"PYTHONPATH": paths},
            capture_output=True,
            text=True,
            timeout=max(seconds, 0.1),
            check=False,
        )
        if done.returncode == 0:
            return dict(json.loads(done.stdout.splitlines()[-1]))
        failed = f"failed: {' '.join(done.stderr.split())[-300:]}"
    except subprocess.TimeoutExpired:
        failed = "stopped: the device did not answer within the budget"
    return {"on": "", "failed": failed}


def _group(stage: Stage) -> str:
    return stage.name.partition("/")[0]


def _left_out(ended: dict[str, str]) -> dict[str, str]:
    return {name: why for name, why in ended.items() if why != "done"}


if __name__ == "__main__":
    sys.exit(main())
