"""A table from elsewhere sends nobody anywhere: no request goes to a host that the user did not name."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import fsspec
import polars as pl
import pytest
from click.testing import CliRunner

from javisc.cli import cli
from javisc.manifests import places
from javisc.manifests.errors import UserError
from javisc.manifests.io import Dataset, shard_path
from javisc.manifests.members import MemberReader
from javisc.manifests.schema import DATASET_COLUMN
from javisc.trainer.data.index.catalog import Catalog
from support.tables import clip, real_dataset


@pytest.fixture(autouse=True)
def nothing_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(places.VARIABLE, "")


@pytest.fixture
def listener() -> Iterator[tuple[str, list[str]]]:
    """A server that notes every request."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return real_dataset(tmp_path_factory.mktemp("places") / "ds", [clip(0.5, seed=n) for n in range(2)])


def foreign(dataset: Path, folder: Path, root: str, form: str) -> Path:
    """The dataset's rows as a table or view of somebody who names another root."""
    table = Dataset.open(dataset).located().with_columns(pl.lit(root).alias(DATASET_COLUMN)).collect()
    folder.mkdir()
    table.write_parquet(folder / "manifest.parquet")
    (folder / "dataset.json").write_text(f'{{"format_version": 1, "kind": "view", "datasets": ["{root}"]}}')
    return folder / "manifest.parquet" if form == "table" else folder


@pytest.mark.parametrize("form", ["table", "view"])
@pytest.mark.parametrize("chain", ["{}", "{}/a?b=", "simplecache::{}", "zip://x::{}"])
@pytest.mark.parametrize("command", ["export", "dedupe", "report"])
def test_a_foreign_table_causes_no_request(
    form: str, chain: str, command: str, dataset: Path, listener: tuple[str, list[str]], tmp_path: Path
) -> None:
    url, asked = listener
    source = foreign(dataset, tmp_path / "f", chain.format(url), form)
    more = {
        "export": ["--csv", str(tmp_path / "t.csv"), "--media", str(tmp_path / "media")],
        "dedupe": ["--near", str(tmp_path / "near"), "--workers", "1"],
        "report": ["--out", str(tmp_path / "page")],
    }[command]
    CliRunner().invoke(cli, [command, str(source), *more])
    assert asked == []
    with pytest.raises(UserError, match=f"which you did not name: if you trust it, say {places.VARIABLE}="):
        row = Dataset.open(source).located().collect().row(0, named=True)
        MemberReader().read(row, "mp4")
    with pytest.raises(UserError, match="which you did not name"):
        Catalog.open([source])
    assert asked == []


def test_the_variable_names_a_place(
    dataset: Path, listener: tuple[str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, asked = listener
    source = foreign(dataset, tmp_path / "f", f"{url}/ds", "view")
    monkeypatch.setenv(places.VARIABLE, f"s3://other {url}/ds")
    row = Dataset.open(source).located().collect().row(0, named=True)
    with pytest.raises(UserError, match="is not there|cannot be read"):
        MemberReader().read(row, "mp4")
    assert asked and set(asked) == {"/ds/shards/000000.tar"}


def test_what_is_opened_is_named_with_its_bucket_alone(dataset: Path) -> None:
    fs = fsspec.filesystem("memory")
    fs.put(str(dataset), "/bucket/ds", recursive=True)
    assert not places.allowed("memory://bucket/ds")
    row = Dataset.open("memory://bucket/ds").located().collect().row(0, named=True)
    assert MemberReader().read(row, "mp4") == MemberReader().read({**row, DATASET_COLUMN: str(dataset)}, "mp4")
    assert places.allowed("memory://bucket/other") and not places.allowed("memory://elsewhere/ds")
    for root in ("memory://bucket@evil/ds", "memory://bucket:80/ds", "MEMORY2://bucket/ds", "x::memory://bucket/ds"):
        with pytest.raises(UserError, match="did not name"):
            shard_path(root, 0)
