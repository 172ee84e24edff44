"""A slice of the mutation run: 500 damaged inputs of every kind cost a row or a line each, and never more."""

from __future__ import annotations

import random
import re
import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def test_five_hundred_damaged_inputs(tmp_path: Path) -> None:
    command = [sys.executable, "-P", str(BENCHMARKS / "fuzz.py"), "--inputs", "500", "--seed", "1", "--workers", "2"]
    ran = subprocess.run(
        [*command, "--scratch", str(tmp_path)], env=None, capture_output=True, text=True, timeout=550, check=False
    )
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-3000:]
    assert "500 of 500 inputs, seed 1: 0 failures" in ran.stdout
    rows = dict(re.findall(r"^\| (\w+) \| \d+ \| (.*?) \|", ran.stdout, re.MULTILINE))
    assert set(rows) == {"media", "sounds", "lists", "captions", "tables", "shards", "verified", "checkpoints"}
    samples = re.search(r"(\d+) sample", rows["media"])
    assert (
        samples and int(samples[1]) > 80
    )  # damage is such that a good part still compiles, so that decoders are reached


def test_damage_follows_from_the_seed_and_changes_files() -> None:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        from fuzz import mutate
    finally:
        sys.path.remove(str(BENCHMARKS))
    content, other = random.Random(0).randbytes(5000), random.Random(1).randbytes(3000)
    made = [mutate(content, random.Random(number), other) for number in range(200)]
    assert made == [mutate(content, random.Random(number), other) for number in range(200)]
    assert sum(damaged != content for damaged in made) > 190 and len(set(made)) > 190
    for tiny in (b"", b"x", b"ab"):
        for number in range(100):
            mutate(tiny, random.Random(number), other)
