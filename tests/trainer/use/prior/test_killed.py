"""Commands of `javisc build prior`, killed for real at random moments, leave the bytes of a run that was not."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from support import compiled
from support.killing import killed_and_resumed

DRAW = random.Random(os.environ.get("JAVISC_TEST_SEED"))
#: The first stands for all in the suite, since they share one shape; JAVISC_TEST_KILLS=10 tries each of them, ten times.
COMMANDS = ["unpaired {ds} --baseline other", "unpaired {ds} --baseline phase", "separate {ds} --baseline hpss"]
COMMANDS += ["separate {ds} --baseline nmf"]


@pytest.mark.dist
@pytest.mark.slow
@pytest.mark.parametrize("words", COMMANDS if "JAVISC_TEST_KILLS" in os.environ else COMMANDS[:1])
def test_killed_and_resumed_leaves_the_same_bytes(tmp_path: Path, words: str) -> None:
    dataset = compiled.write(tmp_path / "ds", [40, 50, 36, 40, 30, 44], hiss=True)
    line = ["build", "prior", *words.format(ds=dataset).split(), "--part-size", "1", "--workers", "2"]
    killed_and_resumed(line, tmp_path, DRAW)
