"""Whatever writes a dataset waits for nobody: while another process writes it, the command is refused and nothing changes."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from javisc.cli import cli
from javisc.compiler.fields.annotate import annotate
from javisc.manifests.errors import UserError
from javisc.manifests.io import Dataset
from support.films import Films

HOLDER = """
import sys
from pathlib import Path
from javisc.compiler.store.files import Store
from javisc.compiler.store.lock import locked
with locked(Store(sys.argv[1], Path(sys.argv[2])), shared=sys.argv[3] == "part"):
    print("held", flush=True)
    sys.stdin.read()
"""
WRITERS = {
    "build": "build jav {raw} --out {ds} --workers 1",
    "part": "build jav {raw} --out {ds} --workers 1 --part 0/2",
    "finish": "build jav {raw} --out {ds} --finish",
    "repair": "repair {ds} --workers 1",
    "annotate": "annotate {ds} {table} --as other",
    "undo": "annotate {ds} --undo mood",
    "render": "render {ds} --short-side 48 --workers 1",
}


@pytest.fixture(scope="module")
def made(films: Films, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A dataset with a field."""
    root = tmp_path_factory.mktemp("locked")
    ds = films.copy(root / "films").dataset
    table = root / "mood.csv"
    table.write_text(f"key,mood\n{Dataset.open(ds).manifest().collect()['key'][0]},calm\n")
    annotate(str(ds), str(table))
    return {"raw": films.raw, "ds": ds, "table": table, "root": root}


@pytest.fixture(scope="module", params=["all of it", "part"])
def held(made: dict[str, Path], request: pytest.FixtureRequest) -> Iterator[dict[str, Path]]:
    """The dataset, while another process writes all of it, or a part, beside which other parts may be written."""
    command = [sys.executable, "-P", "-c", HOLDER, made["ds"], made["root"], request.param]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    yield {**made, "what": request.param}
    holder.communicate("")
    assert holder.returncode == 0


def digests(folder: Path) -> dict[Path, str]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.parent.name != ".build")
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("writer", WRITERS)
def test_what_another_process_writes_is_left_alone(held: dict[str, Path], writer: str) -> None:
    if held["what"] == writer == "part":
        return
    before = digests(held["ds"])
    result = CliRunner().invoke(cli, WRITERS[writer].format(**held).split())
    assert isinstance(result.exception, UserError), (result.output, result.exception)
    assert str(held["ds"]) in str(result.exception) and "is being built by" in str(result.exception)
    assert digests(held["ds"]) == before
