"""`javisc bench …`: one subcommand per benchmark. The programs live in a checkout's benchmarks/ and are not installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click

from javisc.cli import LazyGroup
from javisc.manifests.errors import UserError

#: subcommand → "module:attribute" and its line of help, as in javisc.cli.
BENCHMARKS: dict[str, tuple[str, str]] = {
    "compile": ("javisc.commands.bench:compile_", "clips beside the recipe javisc replaces and a hand-written script"),
    "load": ("javisc.commands.bench:load", "batches beside webdataset, PyAV and DataLoader"),
    "plan": ("javisc.commands.bench:plan", "scan and plan of up to a million inputs"),
    "tables": ("javisc.commands.bench:tables", "merge, filter and export of ten million rows"),
    "kernels": ("javisc.commands.bench:kernels", "the first call on a GPU: kernels judged, then beside their peers"),
    "train": ("javisc.commands.bench:train", "training steps beside plain torch and the reference's arithmetic"),
    "selector": ("javisc.commands.bench:selector", "growth of time and memory with the number of keys"),
}

bench = LazyGroup(
    BENCHMARKS, name="bench", help="Measure javisc beside its peers. Runs in a checkout of the repository."
)


def checkout(script: str) -> Path:
    """Return benchmarks/SCRIPT of the checkout around the current folder. Raises UserError if there is none."""
    for folder in (Path.cwd(), *Path.cwd().parents):
        found = folder / "benchmarks" / script
        if found.is_file() and (folder / "kernels" / "dispatch.py").is_file():
            return found
    raise UserError(
        f"{Path.cwd()} is in no checkout of javisc: benchmarks are not installed; clone the repository and run there"
    )


def benchmark(name: str, script: str, line: str) -> click.Command:
    """Return a command that hands its arguments to benchmarks/SCRIPT and ends with its exit code."""

    @click.command(
        name,
        help=f"{line} Options after -- go to benchmarks/{script}; -- --help lists them.",
        context_settings={"help_option_names": ["-h", "--help"], "ignore_unknown_options": True},
    )
    @click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
    def run(arguments: tuple[str, ...]) -> int:
        return subprocess.run([sys.executable, "-P", str(checkout(script)), *arguments], check=False).returncode

    return run


kernels = benchmark(
    "kernels", "kernels.py", "Judge every kernel, time it beside its peers, then javisc whole, within --budget SECONDS."
)
train = benchmark("train", "train.py", "Time a training step of the sync selector or the joint DiT beside its peers.")
selector = benchmark("selector", "selector.py", "Fit how time and peak memory grow with the number of keys.")
compile_ = benchmark(
    "compile", "compile.py", "Compile the same clips with javisc, the old recipe and one ffmpeg call a clip."
)
load = benchmark("load", "load.py", "Load the same windows with javisc and with what people use today.")
plan = benchmark("plan", "plan.py", "Time scan and plan, and their memory, by the number of inputs.")
tables = benchmark("tables", "tables.py", "Time the commands over manifests of ten million rows, and their memory.")
