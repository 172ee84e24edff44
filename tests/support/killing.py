"""Killing a command for real at random moments until it ends, and comparing what it left with a run that was not."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

#: Kills of a command in the suite; `JAVISC_TEST_KILLS=10` tries more.
KILLS = int(os.environ.get("JAVISC_TEST_KILLS", "1"))


def tree(folder: Path) -> dict[str, str]:
    """The digest of every file of a dataset: tables, shards, parts and commits; locks and temporary files left out."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix in (".tar", ".idx", ".parquet", ".json")
    }


def command(words: Sequence[str], out: Path) -> list[str]:
    return [sys.executable, "-P", "-m", "javisc", *words, "--out", str(out)]


def finish(words: Sequence[str], out: Path) -> float:
    """Run to the end; returns seconds."""
    began = time.monotonic()
    ran = subprocess.run(command(words, out), capture_output=True, text=True, check=False, timeout=600)
    assert ran.returncode == 0, ran.stderr
    return time.monotonic() - began


def killed_and_resumed(words: Sequence[str], folder: Path, draw: random.Random, kills: int = KILLS) -> int:
    """Run whole, run again with `kills` SIGKILLs at random moments, compare. Returns how many kills came before the end."""
    seconds = finish(words, folder / "whole")
    hit = 0
    for _ in range(3 * kills):
        began = time.monotonic()
        process = subprocess.Popen(
            command(words, folder / "killed"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            process.wait(draw.uniform(0.2, 0.95) * seconds)
            seconds = time.monotonic() - began  # the less there is to do, the sooner the next kill comes
        except subprocess.TimeoutExpired:
            process.kill()
            hit += 1
        process.wait()
        if hit == kills:
            break
    finish(words, folder / "killed")
    assert tree(folder / "killed") == tree(folder / "whole")
    return hit
