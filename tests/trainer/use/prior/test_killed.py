"""Commands of `javisc build prior`, killed for real at random moments, leave the bytes of a run that was not."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from support.killing import KILLS, killed_and_resumed

DRAW = random.Random(os.environ.get("JAVISC_TEST_SEED"))
BASELINES = [
    "unpaired {demo}/dataset --baseline other",
    "separate {demo}/dataset --baseline hpss",
    "masklets {demo}/raw",
]
#: Tried with JAVISC_TEST_KILLS=10, ten times each: all of them, and what takes longer, of the same shape.
MORE = [
    *BASELINES,
    "unpaired {demo}/dataset --baseline phase",
    "unpaired {demo}/dataset --generator {generator} --steps 3 --batch-size 2",
    "separate {demo}/dataset --baseline nmf",
    "separate {demo}/dataset --separator {separator}",
    "masklets {demo}/raw/bounce_000.mp4 {demo}/raw/bounce_001.mp4 --segmenter {segmenter}",
]


@pytest.mark.dist
@pytest.mark.slow
@pytest.mark.parametrize("nth", range(len(MORE) if "JAVISC_TEST_KILLS" in os.environ else 1))
def test_killed_and_resumed_leaves_the_same_bytes(
    tmp_path: Path, nth: int, demo: Path, request: pytest.FixtureRequest
) -> None:
    # The suite kills one of the three, another in each run: so it is not in the test's name.
    words = MORE[nth] if "JAVISC_TEST_KILLS" in os.environ else DRAW.choice(BASELINES)
    networks = request.getfixturevalue("networks") if "{" in words.replace("{demo}", "") else {}
    line = ["build", "prior", *words.format(demo=demo, **networks).split(), "--part-size", "1", "--workers", "2"]
    hit = killed_and_resumed(line, tmp_path, DRAW)
    assert hit >= KILLS - 1, f"{words}: a kill may come as it ends"
