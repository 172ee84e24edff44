"""Datasets open with bounds checked; tables are published whole, deterministic, and views find their shards."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from click.testing import CliRunner, Result

from javisc.cli import cli
from javisc.manifests.errors import UserError
from javisc.manifests.io import MAX_HEADER_BYTES, Dataset, scan_many, shard_path, write_table, write_view
from javisc.manifests.outputs import check_output
from javisc.manifests.schema import MANIFEST_SCHEMA
from support.compiled import write
from support.faulty_store import s3_server
from support.raw import write_clip
from support.tables import dataset, rows


def test_a_dataset_opens_and_its_tables_have_the_schema(tmp_path: Path) -> None:
    ds = Dataset.open(dataset(tmp_path / "ds", rows(250)))
    assert ds.manifest().collect_schema() == MANIFEST_SCHEMA
    assert ds.shards().collect()["samples"].to_list() == [100, 100, 50]
    assert ds.rejected().collect().height == 0
    located = ds.located().collect()
    assert located["dataset"].unique().to_list() == [str(tmp_path / "ds")]
    assert all(
        Path(shard_path(root, shard)).is_file()
        for root, shard in located.select("dataset", "shard").unique().iter_rows()
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[]", "JSON object"),
        ("{", "not valid JSON"),
        ("[" * 200_000, "not valid JSON"),
        ("{}", "format_version is None"),
        ('{"format_version": true}', "format_version is True"),
        ('{"format_version": 2}', "install a newer javisc"),
        ('{"format_version": 1, "datasets": ["a", 3]}', "`datasets` must be"),
        (" " * (MAX_HEADER_BYTES + 1), "not a javisc dataset"),
    ],
)
def test_a_hostile_header_is_one_line(tmp_path: Path, text: str, told: str) -> None:
    folder = dataset(tmp_path / "ds", rows(1))
    (folder / "dataset.json").write_text(text)
    with pytest.raises(UserError, match=told) as caught:
        Dataset.open(folder)
    assert "\n" not in str(caught.value)


def test_what_is_no_dataset_says_so(tmp_path: Path) -> None:
    for path, told in [
        (tmp_path / "none", "not a folder"),
        (tmp_path, "is not there"),
        (tmp_path / "t.parquet", "is not there"),
    ]:
        with pytest.raises(UserError, match=told):
            Dataset.open(path)
    (tmp_path / "t.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(UserError, match="cannot be read as parquet"):
        Dataset.open(tmp_path / "t.parquet").manifest()
    rows(3).with_columns(pl.col("num_frames").cast(pl.String)).write_parquet(tmp_path / "t.parquet")
    with pytest.raises(UserError, match="column num_frames is String, Int32 is expected"):
        Dataset.open(tmp_path / "t.parquet").manifest()


def test_the_same_rows_make_the_same_bytes_with_any_number_of_threads(tmp_path: Path) -> None:
    rows(30_000).write_parquet(tmp_path / "in.parquet")
    code = (
        "import sys, polars as pl; from javisc.manifests import io; io.ROW_GROUP = 7000\n"
        "frame = pl.scan_parquet(sys.argv[1]).filter(pl.col('num_frames') > 100); io.write_table(frame, sys.argv[2])"
    )
    outputs = []
    for threads in ("1", "2", "2"):
        out = tmp_path / f"out{len(outputs)}.parquet"
        command = [sys.executable, "-P", "-c", code, str(tmp_path / "in.parquet"), str(out)]
        subprocess.run(command, check=True, env=os.environ | {"POLARS_MAX_THREADS": threads})
        outputs.append(out.read_bytes())
    assert outputs[0] == outputs[1] == outputs[2]
    kept = pl.read_parquet(tmp_path / "in.parquet").filter(pl.col("num_frames") > 100)
    assert pl.read_parquet(tmp_path / "out0.parquet").equals(kept)


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    out = tmp_path / "t.parquet"
    write_table(rows(5), out)
    before = out.read_bytes()

    def broken(frame: pl.DataFrame) -> pl.DataFrame:
        raise ZeroDivisionError

    with pytest.raises(BaseException):  # noqa: B017 (polars wraps the error of a callback in its own way)
        write_table(rows(5).lazy().map_batches(broken, schema=MANIFEST_SCHEMA), out)
    assert out.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["t.parquet"]


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("out", ["view", "flat.parquet"])
def test_a_view_of_a_view_still_finds_the_shards(tmp_path: Path, out: str, relative: bool) -> None:
    a, b = dataset(tmp_path / "x/a", rows(3, prefix="a")), dataset(tmp_path / "x/b", rows(4, prefix="b"))
    _, frame = scan_many([a, b])
    assert write_view(frame, str(tmp_path / "x" / out), made_by={"command": "merge"}, relative=relative) == 7
    _, again = scan_many([tmp_path / "x" / out])
    assert (
        write_view(again.filter(pl.col("num_frames") > 0), str(tmp_path / "second"), made_by={"command": "filter"}) == 7
    )
    located = Dataset.open(tmp_path / "second").located().collect()
    assert {Path(root).resolve() for root in located["dataset"]} == {a, b}
    assert all(
        Path(shard_path(root, shard)).is_file()
        for root, shard in located.select("dataset", "shard").unique().iter_rows()
    )
    if relative:  # and everything can move together
        (tmp_path / "x").rename(tmp_path / "moved")
        moved = Dataset.open(tmp_path / "moved" / out).located().collect()
        assert all(
            Path(shard_path(root, shard)).is_file()
            for root, shard in moved.select("dataset", "shard").unique().iter_rows()
        )


def test_a_view_says_what_it_gathers(tmp_path: Path) -> None:
    a = dataset(tmp_path / "a", rows(3))
    write_view(scan_many([a])[1], str(tmp_path / "v"), made_by={"command": "merge"})
    header = json.loads((tmp_path / "v/dataset.json").read_text())
    assert header["kind"] == "view" and header["datasets"] == [str(a)] and header["counts"] == {"samples": 3}
    assert Dataset.open(tmp_path / "v").shards().collect().height == 0


def test_a_datasets_manifest_sends_nobody_elsewhere(tmp_path: Path) -> None:
    folder = dataset(tmp_path / "a", rows(3).with_columns(pl.lit("http://127.0.0.1/secret").alias("dataset")))
    assert Dataset.open(folder).located().collect()["dataset"].unique().to_list() == [str(folder)]


def test_outputs_are_not_overwritten_by_accident(tmp_path: Path) -> None:
    a = dataset(tmp_path / "a", rows(3))
    for force in (False, True):
        with pytest.raises(UserError, match="compiled dataset"):
            check_output(str(a), force=force)
    with pytest.raises(UserError, match="table of a compiled dataset"):
        check_output(str(a / "manifest.parquet"), force=True)
    (tmp_path / "t.parquet").touch()
    with pytest.raises(UserError, match="--force"):
        check_output(str(tmp_path / "t.parquet"), force=False)
    check_output(str(tmp_path / "t.parquet"), force=True)
    with pytest.raises(UserError, match="no view"):
        check_output(str(tmp_path), force=True)


def test_columns_of_different_types_are_named(tmp_path: Path) -> None:
    rows(2).with_columns(pl.lit(1).alias("score")).write_parquet(tmp_path / "a.parquet")
    rows(2, seed=1).with_columns(pl.lit("x").alias("score")).write_parquet(tmp_path / "b.parquet")
    with pytest.raises(UserError, match=r"column score is Int32 in .*a.parquet and String in .*b.parquet"):
        scan_many([tmp_path / "a.parquet", tmp_path / "b.parquet"])


def test_fsspec_urls_that_polars_does_not_know_are_read_too() -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    with memory.open("/ds/dataset.json", "wb") as stream:
        stream.write(b'{"format_version": 1}')
    with memory.open("/ds/manifest.parquet", "wb") as stream:
        rows(4).write_parquet(stream)
    ds = Dataset.open("memory://ds/")
    assert ds.located().select("dataset").collect()["dataset"].to_list() == ["memory://ds"] * 4
    assert shard_path("memory://ds", 3) == "memory://ds/shards/000003.tar"


@pytest.mark.parametrize("command", ["merge", "filter", "split", "dedupe"])
def test_a_url_is_protected_as_a_folder_is(command: str, tmp_path: Path) -> None:
    """A compiled dataset, one of its tables, a view and a foreign folder are written over by no command, wherever they lie."""
    pytest.importorskip("moto")
    s3fs = pytest.importorskip("s3fs")
    built = write(tmp_path / "ds", [24, 30])
    more = {"filter": ["num_frames > 1"], "split": ["--ratios", "train=0.5,val=0.5"]}.get(command, [])
    with s3_server():
        fs = s3fs.S3FileSystem(use_listings_cache=False)
        fs.mkdir("kept")
        fs.put(f"{built}/", "kept/ds/", recursive=True)
        fs.pipe_file("kept/other/notes.txt", b"mine")
        shutil.copytree(built, tmp_path / "there" / "ds")
        (tmp_path / "there" / "other").mkdir()
        (tmp_path / "there" / "other" / "notes.txt").write_text("mine")

        def run(out: str) -> Result:
            return CliRunner().invoke(cli, [command, str(built), *more, "--out", out], standalone_mode=False)

        before = {name: fs.info(name)["ETag"] for name in fs.find("kept")}
        for number, place in enumerate(("s3://kept", f"file://{tmp_path}/there", str(tmp_path / "there"))):
            for out in (f"{place}/ds", f"{place}/ds/", f"{place}/ds/manifest.parquet", f"{place}/other"):
                error = run(out).exception
                assert isinstance(error, UserError) and "--out" in str(error), (out, error)
                assert "compiled dataset" in str(error) or "no view" in str(error) or "there already" in str(error)
            assert run(f"{place}/view{number}").exception is None
            assert "there already" in str(run(f"{place}/view{number}").exception)
            assert run(f"{place}/one{number}.parquet").exception is None
            assert "there already" in str(run(f"{place}/one{number}.parquet").exception)
        after = {name: fs.info(name)["ETag"] for name in fs.find("kept")}
        assert after.items() >= before.items()
        assert {"kept/view0/dataset.json", "kept/view0/manifest.parquet", "kept/one0.parquet"} == set(after) - set(
            before
        )
        assert not list(Path().glob("file:*"))


def test_a_build_to_a_file_url_is_one_to_the_folder(tmp_path: Path) -> None:
    write_clip(tmp_path / "raw" / "a.mp4")
    done = CliRunner().invoke(
        cli,
        ["build", "jav", str(tmp_path / "raw"), "--out", f"file://{tmp_path}/new/ds", "--short-side", "32"],
        standalone_mode=False,
    )
    assert done.exception is None and done.return_value == 0
    assert (tmp_path / "new" / "ds" / "shards" / "000000.tar").is_file()
