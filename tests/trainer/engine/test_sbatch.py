"""The Slurm file runs javisc with the variables it reads, queues again what was told to stop, and nothing else."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

SBATCH = Path(__file__).parents[3] / "docs" / "train.sbatch"
#: Stand-ins for Slurm and javisc: what srun starts runs here once per task; javisc notes how it was called and logs an end.
COMMANDS = {
    "scontrol": 'if [ "$1" = show ]; then printf "node7\\nnode8\\n"; else echo "$@" >> "$LOG"; fi',
    "srun": 'shift; for i in 0 1; do SLURM_PROCID=$i SLURM_LOCALID=$i "$@" || exit $?; done',
    "javisc": 'echo "$RANK/$WORLD_SIZE local $LOCAL_RANK $MASTER_ADDR:$MASTER_PORT: $*" >> "$LOG"; mkdir -p "$FOLDER"; '
    'echo "{\\"step\\": 3, \\"kind\\": \\"event\\", \\"event\\": \\"$ENDS\\"}" >> "$FOLDER/metrics.jsonl"; exit "$CODE"',
}


def submit(folder: Path, *arguments: str, ends: str = "done", code: int = 0, run: str = "r") -> tuple[int, list[str]]:
    """Exit code of the job, and the calls it made."""
    for name, body in COMMANDS.items():
        path = folder / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/bash\n{body}\n")
        path.chmod(0o755)
    log = folder / "calls"
    job = {"SLURM_JOB_NODELIST": "node[7-8]", "SLURM_JOB_ID": "40001", "SLURM_NTASKS": "2"}
    mine = {
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
        "LOG": str(log),
        "ENDS": ends,
        "CODE": str(code),
        "FOLDER": run,
    }
    done = subprocess.run(["bash", str(SBATCH), *arguments], env={**os.environ, **job, **mine}, cwd=folder, check=False)
    return done.returncode, log.read_text().splitlines() if log.exists() else []


def test_starts_every_process_with_its_place(tmp_path: Path) -> None:
    code, calls = submit(tmp_path, "sync-lrs3", "--data", "a b", "--run", "r", "run.steps=4")
    assert code == 0 and calls == [
        f"{rank}/2 local {rank} node7:20001: train sync-lrs3 --data a b --run r run.steps=4 --resume" for rank in (0, 1)
    ]


@pytest.mark.parametrize(("arguments", "run"), [(("--run", "r"), "r"), ((), "runs/sync-lrs3")])
def test_what_was_told_to_stop_is_queued_again(tmp_path: Path, arguments: tuple[str, ...], run: str) -> None:
    code, calls = submit(tmp_path, "sync-lrs3", *arguments, ends="terminated", run=run)
    assert code == 0 and calls[-1] == "requeue 40001"


def test_a_failed_run_is_not_queued_again(tmp_path: Path) -> None:
    code, calls = submit(tmp_path, "x", "--run", "r", ends="terminated", code=3)
    assert code == 3 and not any("requeue" in call for call in calls)


def test_a_recipe_is_asked_for(tmp_path: Path) -> None:
    assert submit(tmp_path)[0] == 2
