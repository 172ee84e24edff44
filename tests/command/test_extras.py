"""`pip install javisc` alone: what it can do works, and whatever wants an extra says so in one line, in a base environment."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from javisc.manifests.extras import EXTRAS, extra_of
from support import forked
from support.documents import ROOT
from support.films import Films

#: Every command and option that wants an extra → the extra. DS is a dataset, CSV a table.
WANT = {
    "train sync-demo --data DS": "train",
    "train sync-demo --dry-run": "train",
    "train sync-demo --keys": "train",
    "encode DS --out OUT --recipe audio": "train",
    "sample rain --model DS": "train",
    "score DS --checkpoint DS": "train",
    "predict DS/shards/000000.tar --checkpoint DS": "train",
    "eval sync DS --data DS": "train",
    "kernels": "train",
    "build prior separate DS --baseline hpss --out OUT": "prior",
    "build prior unpaired DS --baseline other --out OUT": "prior",
    "build jav RAW --out OUT --engine ray": "ray",
    "build jav s3://bucket/raw --out OUT": "s3",
    "build jav RAW --out s3://bucket/ds": "s3",
    "verify s3://bucket/ds": "s3",
    "merge DS s3://bucket/ds --out OUT": "s3",
    "filter s3://bucket/ds": "s3",
    "export s3://bucket/ds --csv OUT.csv": "s3",
    "stats s3://bucket/ds": "s3",
    "report s3://bucket/ds --out OUT": "s3",
}


@pytest.fixture(scope="module")
def base() -> Path:
    """An environment with what `pip install javisc` brings and nothing else, as .ci/env makes it (a minute, the first time)."""
    made = subprocess.run(
        [ROOT / ".ci/env", "base"], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    assert made.returncode == 0, made.stderr
    return Path(made.stdout.strip())


@pytest.fixture(scope="module")
def warm(base: Path) -> Iterator[forked.Server]:
    """A process of that environment which has imported the compiler, for the commands of its forks."""
    server = forked.Server(python=base / "bin/python", **{name: None for name in os.environ if name not in clean()})
    yield server
    server.close()


def clean() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COV"))}


def javisc(
    base: Path, words: str, place: Path, films: Films, server: forked.Server | None = None
) -> subprocess.CompletedProcess[str]:
    real = {"DS": str(films.dataset), "RAW": str(films.raw)}
    line = [real.get(word) or word.replace("DS/", f"{films.dataset}/") for word in words.split()]
    if server is not None:
        return forked.javisc(*line, at=server, cwd=place, env=clean())
    return subprocess.run(
        [base / "bin/javisc", *line], cwd=place, env=clean(), capture_output=True, text=True, check=False, timeout=120
    )


def test_the_table_of_extras_is_pyprojects() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(EXTRAS) <= set(project["optional-dependencies"])
    assert {extra_of(name) for name in ("torch.nn", "scipy", "ray", "s3fs", "wandb")} == set(EXTRAS)
    assert extra_of("polars") is None and extra_of(None) is None


@pytest.mark.slow
def test_whatever_wants_an_extra_says_so_in_one_line(
    base: Path, warm: forked.Server, films: Films, tmp_path: Path
) -> None:
    wrong = []
    seen: set[str] = set()
    for words, extra in WANT.items():
        # The first of each extra as a user starts it.
        done = javisc(base, words, tmp_path, films, warm if extra in seen else None)
        seen.add(extra)
        told = [line for line in done.stderr.splitlines() if line.startswith("javisc: ")]
        asked = f"pip install 'javisc[{extra}]'"
        if done.returncode != 2 or len(told) != 1 or asked not in told[0] or "Traceback" in done.stderr:
            wrong.append(f"javisc {words}: exit {done.returncode}: {done.stderr[-300:]}")
    assert not wrong, "\n".join(wrong)
    assert list(tmp_path.iterdir()) == [], "nothing is begun that cannot be finished"


@pytest.mark.slow
def test_the_base_compiles_and_keeps_tables(base: Path, warm: forked.Server, films: Films, tmp_path: Path) -> None:
    for words, said in {
        "build jav RAW --out OUT --encoder-preset ultrafast": "6 samples",
        "verify OUT": "sound: 6 samples",
        "stats OUT": "Samples",
        "report OUT": "6 samples",
        "split OUT --out SPLIT": "train",
        "filter SPLIT num_frames>3 --out GOOD": "6 of 6 kept",
        "dedupe GOOD": "6 of 6 samples kept",
        "export GOOD --csv t.csv --allow-no-caption": "6 rows",
        "build audio --list-corpora": "esc50",
        "demo --out DEMO --clips 2 --seconds 1": "pip install 'javisc[train]'",
    }.items():
        done = javisc(base, words, tmp_path, films, None if words.startswith(("build", "verify", "demo")) else warm)
        assert done.returncode == 0 and said in done.stdout + done.stderr, (words, done.stdout, done.stderr)
        assert "Traceback" not in done.stderr


def test_the_environment_of_make_dev_has_every_script_of_its_packages() -> None:
    here = Path(sys.prefix)
    if not (here / "lib/python3.11/site-packages/deps.pth").exists():
        pytest.skip("not one of .ci/env's environments")
    for name in ("torchrun", "tensorboard", "pytest", "ruff", "mypy", "ray"):
        script = here / "bin" / name
        assert script.is_file() and os.access(script, os.X_OK), name
        assert not script.read_bytes().startswith(b"#!") or str(here).encode() in script.read_bytes(), name
    command = [here / "bin/torchrun", "--nproc-per-node", "1", "-m", "--", "javisc", "--version"]
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "javisc" in told.stdout + told.stderr, told.stderr[-500:]
