"""Damage thousands of inputs and see that each costs one row or one line, and never more.

    python -P benchmarks/fuzz.py --inputs 20000 --seed 0 --scratch /tmp/fuzz --out benchmarks/results/fuzz.md

Small clips of every container are cut, flipped, spliced and lied about, and compiled by the build that users run, in batches;
lists, captions, tables, shards, indexes and checkpoints are damaged alike and given to what reads them. Everything follows
from the seed. It fails (exit code 1) at an `internal`, a traceback, an input that is in no table or in two, or memory that
grows. What failed is kept in SCRATCH/found. A crash inside a codec library is caught by the build and counted, not a failure.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

sys.path.insert(0, str(Path(__file__).parent))  # -P leaves it out
import fuzz_seeds

from javisc.compiler.build import BuildOptions, build
from javisc.compiler.inputs.local import AUDIO_SUFFIXES, VIDEO_SUFFIXES
from javisc.compiler.inputs.raw import from_raw
from javisc.compiler.recipe import PRESETS
from javisc.manifests.errors import UserError

#: Shares of the inputs by kind.
SHARES = {
    "media": 0.655,
    "sounds": 0.16,
    "lists": 0.04,
    "captions": 0.04,
    "tables": 0.04,
    "shards": 0.03,
    "verified": 0.005,
    "checkpoints": 0.03,
}
BATCH = 500
#: Memory at the end against memory after the first quarter, bytes.
GROWTH = 256 << 20
#: What damaged clips become: videos with sound, or, of sounds and of videos, the sound alone.
RECIPES = {
    "media": PRESETS["jav"].replace(encoder_preset="ultrafast", min_frames=1, max_seconds=20.0, allow_silent=True),
    "sounds": PRESETS["audio"],
}


@dataclass
class Found:
    """What came of the inputs of one kind. outcomes: reasons or "sample", "read", "refused". failures: what must not be."""

    kind: str
    inputs: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0
    memory: list[int] = field(default_factory=list)

    @property
    def grew(self) -> bool:
        """True if the peak memory rose after the first quarter of the run."""
        return bool(self.memory) and self.memory[-1] - self.memory[len(self.memory) // 4] > GROWTH


def mutate(content: bytes, chance: random.Random, other: bytes) -> bytes:
    """Damage of a kind drawn by `chance`: bits, bytes, cuts, holes, repeats, junk, another file's middle, lying sizes."""
    if not content:
        return chance.randbytes(chance.randrange(64))
    data = bytearray(content)
    size = len(data)

    def place(span: int = 1) -> int:
        """Mostly anywhere; often in the first or last kilobyte, where headers are."""
        edge = chance.random()
        low, high = (0, min(1024, size)) if edge < 0.3 else (max(size - 1024, 0), size) if edge < 0.6 else (0, size)
        return chance.randrange(low, max(high - span, low + 1))

    kind = chance.randrange(10)
    if kind == 0:
        for _ in range(chance.choice((1, 1, 8, 64, 512))):
            data[place()] ^= 1 << chance.randrange(8)
    elif kind == 1:
        for _ in range(chance.choice((1, 4, 16))):
            data[place()] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))
    elif kind == 2:
        del data[place() :]
    elif kind == 3:
        del data[: place()]
    elif kind == 4:
        at = place()
        data[at : at + chance.randrange(1, 4096)] = bytes(chance.choice((0, chance.randrange(1, 2048))))
    elif kind == 5:
        at, start = place(), place()
        data[at:at] = data[start : start + chance.randrange(1, 4096)]
    elif kind == 6:
        data[place() : place()] = chance.randbytes(chance.randrange(1, 2048))
    elif kind == 7:
        at = chance.randrange(max(len(other), 1))
        data[place() : place()] = other[at : at + chance.randrange(1, 8192)]
    else:  # a number of 32 or 16 bits, as sizes and counts are, near a limit or near what it was
        for _ in range(chance.choice((1, 1, 3))):
            width = chance.choice((2, 4, 8))
            at = place(width)
            order: Any = chance.choice(("big", "little"))
            was = int.from_bytes(data[at : at + width], order)
            top = 1 << (8 * width)
            value = chance.choice(
                (0, 1, top - 1, top // 2, top // 2 - 1, was + 1, was - 1, was * 2, chance.randrange(top))
            )
            data[at : at + width] = (value % top).to_bytes(width, order)
    return bytes(data)


def victims(seeds: list[Path], count: int, seed: str) -> Iterator[tuple[Path, bytes]]:
    """`count` damaged files, each of a seed file in turn; the damage follows from `seed` and the number alone."""
    contents = [path.read_bytes() for path in seeds]
    for number in range(count):
        chance = random.Random(f"{seed}/{number}")
        which = number % len(seeds)
        damaged = contents[which]
        for _ in range(chance.choice((1, 1, 2))):
            damaged = mutate(damaged, chance, chance.choice(contents))
        yield seeds[which], damaged


def build_all(kind: str, count: int, arguments: argparse.Namespace, kept: Path, until: float) -> Found:
    """In a process of its own: build damaged clips, a dataset a batch; hold every row against the inputs."""
    found = Found(kind)
    scratch = arguments.scratch / kind
    seeds = [path for path in sorted((arguments.scratch / "seeds").iterdir()) if kind == "sounds" or _moves(path)]
    began = time.monotonic()
    numbered = enumerate(victims(seeds, count, f"{arguments.seed}/{kind}"))
    while time.monotonic() < until:
        raw, out = scratch / "raw", scratch / "DS"
        for folder in (raw, out):
            shutil.rmtree(folder, ignore_errors=True)
        raw.mkdir(parents=True)
        for _, (number, (source, content)) in zip(range(BATCH), numbered, strict=False):
            (raw / f"{number:06d}{source.suffix}").write_bytes(content)
        given = {path.name for path in raw.iterdir()}
        if not given:
            break
        options = BuildOptions(workers=arguments.workers, shard_samples=100, time_limit=60.0)
        try:
            build(from_raw([str(raw)], suffixes=VIDEO_SUFFIXES | AUDIO_SUFFIXES), RECIPES[kind], out, options)
        except UserError as error:
            found.failures.append(f"the build stopped: {error}")
            _keep(raw, given, kept)
            break
        samples = pl.read_parquet(out / "manifest.parquet")["relpath"].to_list()
        rejected = pl.read_parquet(out / "rejected.parquet").select("relpath", "reason", "message").rows()
        rows = Counter([*samples, *(name for name, _, _ in rejected)])
        found.failures += [f"{name}: {rows[name]} rows" for name in sorted(given | set(rows)) if rows[name] != 1]
        found.outcomes.update(["sample"] * len(samples))
        found.outcomes.update(reason for _, reason, _ in rejected)
        found.failures += [f"{name}: internal: {message}" for name, reason, message in rejected if reason == "internal"]
        _keep(raw, {name for name, reason, _ in rejected if reason in ("internal", "crashed", "timeout")}, kept)
        for name, reason, message in rejected:
            if reason in ("crashed", "timeout"):
                print(f"{name}: {reason}: {message}", flush=True)
        found.inputs += len(given)
        found.memory.append(max(resource.getrusage(who).ru_maxrss << 10 for who in (0, resource.RUSAGE_CHILDREN)))
        print(f"{kind}: {found.inputs} of {count}, {len(found.failures)} failures", flush=True)
    found.seconds = time.monotonic() - began
    return found


def _moves(path: Path) -> bool:
    return not path.name.startswith("sound.")


def _keep(raw: Path, names: Iterable[str], kept: Path) -> None:
    kept.mkdir(parents=True, exist_ok=True)
    for name in names:
        shutil.copy(raw / name, kept / name)


def read_all(kind: str, count: int, seed: str, scratch: Path, kept: Path, until: float) -> Found:
    """In a process of its own: damage the files of a kind and read each as javisc does."""
    seeds, readers = fuzz_seeds.SMALL[kind](scratch / kind)
    found = Found(kind)
    began = time.monotonic()
    for number, (source, content) in enumerate(victims(seeds, count, f"{seed}/{kind}")):
        if time.monotonic() > until:
            break
        whole = source.read_bytes()
        try:
            source.write_bytes(content)
            found.outcomes[_outcome(readers[source], source)] += 1
        except Exception as error:  # noqa: BLE001 (anything but a UserError is what is looked for)
            where = traceback.extract_tb(error.__traceback__)[-1]
            said = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            found.failures.append(f"{kind} {number} {source.name}: {said} at {where.filename}:{where.lineno}")
            kept.mkdir(parents=True, exist_ok=True)
            (kept / f"{kind}-{number}-{source.name}").write_bytes(content)
        finally:
            source.write_bytes(whole)
        found.inputs += 1
        if number % max(count // 20, 1) == 0:
            found.memory.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10)
    found.seconds = time.monotonic() - began
    return found


def _outcome(read: Callable[[Path], object], source: Path) -> str:
    try:
        said = read(source)
    except UserError:
        return "refused"
    return said if isinstance(said, str) else "read"


def apart(kind: str, arguments: argparse.Namespace, count: int, until: float) -> Found:
    """Run a kind in another process, so that its memory is its own and a crash of it a finding and not the end."""
    answer = arguments.scratch / f"{kind}.json"
    answer.unlink(missing_ok=True)
    words = {
        "--only": kind,
        "--inputs": count,
        "--seed": arguments.seed,
        "--workers": arguments.workers,
        "--scratch": arguments.scratch,
        "--seconds": max(until - time.monotonic(), 1.0),
    }
    log = arguments.scratch / f"{kind}.log"
    with log.open("w") as errors:
        command = [sys.executable, "-P", __file__, *(str(word) for pair in words.items() for word in pair)]
        ran = subprocess.run(command, stderr=errors, check=False)
    if not answer.exists():
        return Found(kind, failures=[f"{kind}: the process ended with {ran.returncode}: {log.read_text()[-500:]}"])
    said = json.loads(answer.read_text())
    found = Found(**{**said, "outcomes": Counter(said["outcomes"])})
    if "Traceback" in log.read_text():
        found.failures.append(f"{kind}: a traceback stands in {log}")
    return found


def fuzz(arguments: argparse.Namespace) -> list[Found]:
    """Run every kind; return what came of each."""
    until = time.monotonic() + arguments.seconds
    counts = {kind: max(round(share * arguments.inputs), 1) for kind, share in SHARES.items()}
    counts["media"] += arguments.inputs - sum(counts.values())
    subprocess.run([sys.executable, "-P", fuzz_seeds.__file__, str(arguments.scratch / "seeds")], check=True)
    return [apart(kind, arguments, count, until) for kind, count in counts.items()]


def table(results: list[Found]) -> str:
    """Markdown rows: kind, inputs, outcomes, failures, seconds, memory."""
    lines = ["| kind | inputs | what came of them | failures | s | peak memory, MB |", "|---|---|---|---|---|---|"]
    for found in results:
        counts = ", ".join(f"{count} {name}" for name, count in found.outcomes.most_common())
        peak = max(found.memory, default=0) >> 20
        lines.append(
            f"| {found.kind} | {found.inputs} | {counts} | {len(found.failures)} | {found.seconds:.0f} | {peak} |"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=14_400.0, help="stop after so many, and say how far it came")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--out", type=Path, help="append the table to this file")
    parser.add_argument("--only", choices=sorted(SHARES), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.scratch.mkdir(parents=True, exist_ok=True)
    if arguments.only:
        kept, until = arguments.scratch / "found", time.monotonic() + arguments.seconds
        if arguments.only in RECIPES:
            found = build_all(arguments.only, arguments.inputs, arguments, kept, until)
        else:
            found = read_all(arguments.only, arguments.inputs, str(arguments.seed), arguments.scratch, kept, until)
        (arguments.scratch / f"{arguments.only}.json").write_text(json.dumps(vars(found)))
        return 0
    results = fuzz(arguments)
    failures = [failure for found in results for failure in found.failures]
    failures += [f"{found.kind}: memory grew from {found.memory}" for found in results if found.grew]
    total = sum(found.inputs for found in results)
    print(table(results), *failures, sep="\n")
    print(f"{total} of {arguments.inputs} inputs, seed {arguments.seed}: {len(failures)} failures")
    if arguments.out:
        with arguments.out.open("a") as file:
            file.write(table(results) + "\n")
    return 1 if failures or total < arguments.inputs else 0


if __name__ == "__main__":
    sys.exit(main())
