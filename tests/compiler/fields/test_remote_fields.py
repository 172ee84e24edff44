"""Fields of a dataset in an object store: annotated, rendered, verified, undone and loaded there as on a disk."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest

from javisc.compiler.check.dataset import verify
from javisc.compiler.fields.annotate import annotate, take_back
from javisc.compiler.fields.render import render
from javisc.manifests.io import Dataset
from javisc.manifests.urls import filesystem
from javisc.trainer.data import Catalog, Loader, Sampler, single_bucket
from support.faulty_store import s3_server
from support.films import Films


@pytest.fixture
def remote(films: Films, tmp_path: Path) -> Iterator[str]:
    """The six films' dataset in a bucket of a real S3 server on this machine's loopback."""
    pytest.importorskip("moto")
    s3fs = pytest.importorskip("s3fs")
    with s3_server():
        s3fs.S3FileSystem().mkdir("fields")
        fs, _ = filesystem("s3://fields")
        fs.put(f"{films.dataset}/", "fields/ds/", recursive=True)
        yield "s3://fields/ds"


def test_a_dataset_in_an_object_store_gets_fields_and_is_loaded_with_them(
    films: Films, remote: str, tmp_path: Path
) -> None:
    here = films.copy(tmp_path / "here").dataset
    shown = pl.read_parquet(here / "manifest.parquet")
    shown.select("key", caption=pl.lit("new ") + pl.col("id")).write_csv(tmp_path / "new.csv")
    fs, _ = filesystem(remote)
    base = {name: fs.info(name)["ETag"] for name in fs.find("fields/ds/shards")}
    for ds in (str(here), remote):
        assert annotate(ds, str(tmp_path / "new.csv")).samples == 6
        assert render(ds, 32, workers=1).samples == 6
    for name in ("new/000000.tar", "new/000001.idx", "r32/000000.tar", "r32/000001.tar", "r32/field.json"):
        assert fs.cat_file(f"fields/ds/fields/{name}") == (here / "fields" / name).read_bytes(), name
    manifest = Dataset.open(remote).manifest().collect()
    assert manifest.equals(pl.read_parquet(here / "manifest.parquet")) and manifest["text"][0].startswith("new ")
    assert verify(remote, workers=1).defects == []
    sampler = Sampler(Catalog.open([remote]), single_bucket(frames=12, height=32, width=48, batch_size=3))
    with Loader(sampler) as loader:
        batches = list(loader)
    assert len(batches) == 2 and not any(batch.replaced for batch in batches)
    assert all(batch.video.shape == (3, 3, 12, 32, 48) for batch in batches)
    take_back(remote, "new")
    assert Dataset.open(remote).manifest().collect()["text"].to_list() == shown["text"].to_list()
    assert not [name for name in fs.find("fields/ds/fields") if "/new/" in name]
    assert base == {name: fs.info(name)["ETag"] for name in fs.find("fields/ds/shards")}, (
        "no byte of the base was written"
    )
