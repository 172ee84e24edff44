"""Builds beside storage that fails at random points, run again until they end: the bytes must be the undisturbed build's.

python -P -m support.soak --runs 50 [--kind s3 --kind folder --kind mount]     (from tests/, in an environment with javisc)
"""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import click
import polars as pl

from support.faulty_store import FaultyProxy, s3_server
from support.forked import COMPILER, Server, javisc
from support.raw import raw_folder

CLIPS = 6
OPTIONS = ("--workers", "2", "--shard-samples", "2", "--short-side", "32", "--encoder-preset", "ultrafast")
#: A build that stops is started again so often at most.
MOST = 40
#: Few attempts below us, so that what javisc itself does about a failure is what is seen.
ENVIRONMENT = {"AWS_MAX_ATTEMPTS": "1", "AWS_RETRY_MODE": "standard", "OMP_NUM_THREADS": "1"}


@dataclass
class Run:
    """What one disturbed build did: the exit codes of its starts, the faults it met, and what was wrong at the end."""

    codes: list[int] = field(default_factory=list)
    faults: int = 0
    wrong: str | None = None

    @property
    def line(self) -> str:
        return f"{len(self.codes)} starts, {self.faults} faults: {self.wrong or 'equal'}"


def build(raw: str, out: str, **environment: str) -> tuple[int, str]:
    """Run the command in a process of its own; its exit code and what it said last."""
    done = javisc("build", "jav", raw, "--out", out, *OPTIONS, at=_server(), env=os.environ | ENVIRONMENT | environment)
    return done.returncode, (done.stderr.strip() or done.stdout.strip()).rsplit("\n", 1)[-1]


@cache
def _server() -> Server:
    """Each of many starts would import the same for a second."""
    return Server((*COMPILER, "s3fs", "javisc.manifests.objects"))


def until_done(run: Run, raw: str, out: str, calm: Callable[[], None], **environment: str) -> None:
    """Start the build until it ends with 0, the last times undisturbed. A stop must be exit code 1 and one line."""
    for attempt in range(MOST):
        if attempt == MOST - 5:
            calm()
        code, said = build(raw, out, **environment)
        run.codes.append(code)
        if code == 0:
            return
        if code not in (1, 2) or not said.startswith("javisc: "):
            run.wrong = f"exit code {code}: {said}"
            return
        time.sleep(0.2)  # nobody starts it again sooner
    run.wrong = f"does not end: {said}"


def local_digests(out: Path) -> dict[str, str]:
    """Of all that is published."""
    return {
        str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.rglob("*"))
        if path.is_file() and ".build" not in path.parts
    }


def compare(run: Run, found: dict[str, str], expected: dict[str, str], rejected: Path) -> None:
    """Hold a finished dataset to the undisturbed one."""
    refused = pl.read_parquet(rejected).height
    differ = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if run.wrong is None and refused:
        run.wrong = f"{refused} inputs were rejected"
    if run.wrong is None and differ:
        run.wrong = f"{', '.join(differ)} differ"


@contextmanager
def flickering(raw: Path, seed: int, kind: str, run: Run) -> Iterator[Callable[[], None]]:
    """Take `raw` away and bring it back at random moments: renamed, or (`mount`) unmounted, which leaves an empty folder.

    Yields a function that ends the disturbance.
    """
    dice, stop = random.Random(seed), threading.Event()
    away = raw.with_name(f"{raw.name}-away")

    def mount(there: bool) -> None:
        if there:
            subprocess.run(["mount", "--bind", str(away), str(raw)], check=True)
        else:
            subprocess.run(["umount", "--lazy", str(raw)], check=True)

    def flicker() -> None:
        while not stop.wait(dice.uniform(0.02, 0.4)):  # a forked build of six clips takes half a second
            mount(False) if kind == "mount" else raw.rename(away)
            run.faults += 1
            stop.wait(dice.choice((0.02, 0.2, 1.0, 4.0)))
            mount(True) if kind == "mount" else away.rename(raw)

    if kind == "mount":
        raw.rename(away)
        raw.mkdir()
        mount(True)
    thread = threading.Thread(target=flicker)
    thread.start()
    try:
        yield stop.set
    finally:
        stop.set()
        thread.join()
        if kind == "mount":
            mount(False)
            raw.rmdir()
            away.rename(raw)


def soak_folder(folder: Path, runs: int, kind: str, seed: int = 0, say: Callable[[str], None] = print) -> list[Run]:
    """`runs` builds of a folder that goes and comes back (kind `folder` or `mount`), into folders."""
    raw = raw_folder(folder / "raw", CLIPS)
    code, said = build(str(raw), str(folder / "calm"))
    assert code == 0, said
    expected = local_digests(folder / "calm")
    done = []
    for number in range(runs):
        run, out = Run(), folder / f"out-{kind}-{number}"
        with flickering(raw, seed + number, kind, run) as calm:
            until_done(run, str(raw), str(out), calm, JAVISC_PATIENCE="2")
        compare(run, local_digests(out), expected, out / "rejected.parquet")
        say(f"{kind} {number}: {run.line}")
        done.append(run)
    return done


def soak_s3(
    folder: Path, runs: int, seed: int = 0, share: float = 0.15, say: Callable[[str], None] = print
) -> list[Run]:
    """`runs` builds from and to an S3 server of which a share of all requests fails."""
    import s3fs

    raw = raw_folder(folder / "raw", CLIPS)
    done = []
    with s3_server() as address:
        fs = s3fs.S3FileSystem(use_listings_cache=False)
        fs.mkdir("soak")
        fs.put(f"{raw}/", "soak/raw/", recursive=True)

        def digests(out: str) -> dict[str, str]:
            return {
                name.removeprefix(f"soak/{out}/"): hashlib.sha256(fs.cat_file(name)).hexdigest()
                for name in fs.find(f"soak/{out}")
                if "/.build/" not in name
            }

        code, said = build("s3://soak/raw", "s3://soak/calm")
        assert code == 0, said
        expected = digests("calm")
        for number in range(runs):
            run, out, dice = Run(), f"out-{number}", random.Random(seed + number)
            share, patience = dice.choice((0.1, 0.25, 0.5)), dice.choice(("0.5", "2", "20"))
            with FaultyProxy(address, share=share, seed=seed + number) as proxy:

                def calm(proxy: FaultyProxy = proxy) -> None:
                    proxy.share = 0.0

                until_done(
                    run,
                    "s3://soak/raw",
                    f"s3://soak/{out}",
                    calm,
                    AWS_ENDPOINT_URL=proxy.address,
                    JAVISC_PATIENCE=patience,
                )
                run.faults = sum(count for fault, count in proxy.done.items() if fault != "passed")
            fs.get_file(f"soak/{out}/rejected.parquet", str(folder / "rejected.parquet"))
            compare(run, digests(out), expected, folder / "rejected.parquet")
            say(f"s3 {number}: {run.line}")
            done.append(run)
    return done


@click.command()
@click.option("--runs", default=50, show_default=True, help="Builds of each kind.")
@click.option("--kind", "kinds", multiple=True, type=click.Choice(["s3", "folder", "mount"]), default=("s3", "folder"))
@click.option("--seed", default=0, show_default=True)
def main(runs: int, kinds: tuple[str, ...], seed: int) -> None:
    """Count the builds whose bytes are the undisturbed one's; exit with 1 unless all are."""
    failed = 0
    for kind in kinds:
        with tempfile.TemporaryDirectory(prefix="javisc-soak-") as name:
            folder = Path(name)
            done = soak_s3(folder, runs, seed) if kind == "s3" else soak_folder(folder, runs, kind, seed)
        good = sum(run.wrong is None for run in done)
        failed += len(done) - good
        stops = sum(len(run.codes) - 1 for run in done)
        print(
            f"{kind}: {good} of {len(done)} equal; {sum(run.faults for run in done)} faults, {stops} stops, each resumed"
        )
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
