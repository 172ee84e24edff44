"""S3 Inventories as S3 delivers them: believed for sizes and tags, never for where else to look."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from javisc.compiler.inputs.found import SIDECAR_TAG, ScanReport
from javisc.compiler.inputs.local import scan
from javisc.manifests.errors import UserError

WHEN = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
NS = int(WHEN.timestamp()) * 10**9
SCHEMA = "Bucket, Key, VersionId, IsLatest, IsDeleteMarker, Size, LastModifiedDate, ETag, StorageClass"
HOME = "inventory/bucket/everything"


def line(key: str, size: Any = 7, latest: str = "true", marker: str = "false", bucket: str = "bucket") -> list[Any]:
    return [
        bucket,
        quote_plus(key),
        "v1",
        latest,
        marker,
        size,
        "2026-01-02T03:04:05.000Z",
        "tag-" + key[-3:],
        "STANDARD",
    ]


def delivered(root: Path, rows: list[list[Any]], form: str = "CSV", **more: Any) -> Path:
    """What S3 puts into the destination bucket: lists in data/, a manifest in a folder of the date."""
    (data := root / HOME / "data").mkdir(parents=True, exist_ok=True)
    if form == "CSV":
        text = io.StringIO()
        csv.writer(text, quoting=csv.QUOTE_ALL).writerows(rows)
        name, content = "1.csv.gz", gzip.compress(text.getvalue().encode())
    else:
        from urllib.parse import unquote_plus

        frame = pl.DataFrame(
            [
                {
                    "bucket": row[0],
                    "key": unquote_plus(row[1]),
                    "version_id": row[2],
                    "is_latest": row[3] == "true",
                    "is_delete_marker": row[4] == "true",
                    "size": int(row[5]),
                    "last_modified_date": WHEN.replace(tzinfo=None),
                    "e_tag": row[7],
                }
                for row in rows
            ]
        )
        frame.write_parquet(stream := io.BytesIO())
        name, content = "1.parquet", stream.getvalue()
    (data / name).write_bytes(content)
    told = {
        "sourceBucket": "bucket",
        "destinationBucket": "arn:aws:s3:::bucket",
        "version": "2016-11-30",
        "fileFormat": form,
        "fileSchema": SCHEMA if form == "CSV" else "message s3.inventory { required binary bucket (UTF8); }",
        "files": [
            {"key": f"{HOME}/data/{name}", "size": len(content), "MD5checksum": hashlib.md5(content).hexdigest()}
        ],
    } | more
    (manifest := root / HOME / "2026-01-02T01-00Z/manifest.json").parent.mkdir(exist_ok=True)
    manifest.write_text(json.dumps(told))
    return manifest


@pytest.mark.parametrize("form", ["CSV", "Parquet"])
def test_an_inventory_is_a_scan_of_its_bucket(tmp_path: Path, form: str) -> None:
    rows = [
        line("raw/a.mp4"),
        line("raw/a.txt"),
        line("raw/ü b+c%20d.MOV", 9),
        line("raw/../../etc/x.mp4"),
        line("raw/old.mp4", latest="false"),
        line("raw/gone.mp4", 0, marker="true"),
        line("raw/empty.mp4", 0),
        line("notes.pdf"),
    ]
    report = ScanReport()
    found = pl.concat(scan([str(delivered(tmp_path, rows, form))], report=report))
    cells = {row["path"]: row for row in found.iter_rows(named=True)}
    assert set(cells) == {
        "s3://bucket/raw/a.mp4",
        "s3://bucket/raw/ü b+c%20d.MOV",
        "s3://bucket/raw/../../etc/x.mp4",
        "s3://bucket/raw/empty.mp4",
    }
    first, odd = cells["s3://bucket/raw/a.mp4"], cells["s3://bucket/raw/ü b+c%20d.MOV"]
    assert (first["relpath"], first["source_bytes"], first["mtime_ns"]) == ("raw/a.mp4", 7, NS)
    assert (first["sidecar"], first[SIDECAR_TAG]) == (b"s3://bucket/raw/a.txt", "tag-txt")
    assert (odd["relpath"], odd["source_bytes"]) == ("raw/ü b+c%20d.MOV", 9)
    assert cells["s3://bucket/raw/../../etc/x.mp4"]["relpath"] == "etc/x.mp4"
    assert cells["s3://bucket/raw/empty.mp4"]["refused"] == "empty"
    assert "2 older versions and delete markers of an inventory were left out" in report.lines()
    assert report.others == {".pdf": 1}


def test_a_table_that_names_its_columns_leaves_versions_out_as_well(tmp_path: Path) -> None:
    frame = pl.DataFrame(
        {
            "bucket": ["b"] * 3,
            "key": ["a.mp4", "b.mp4", "c.mp4"],
            "size": [1, 2, 3],
            "last_modified_date": [WHEN] * 3,
            "is_latest": [True, False, True],
            "is_delete_marker": [False, False, True],
        }
    )
    frame.write_parquet(tmp_path / "i.parquet")
    assert pl.concat(scan([str(tmp_path / "i.parquet")]))["path"].to_list() == ["s3://b/a.mp4"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"fileFormat": "ORC"}, "its lists are 'ORC'; CSV and Parquet are read"),
        ({"files": [{"key": "../../../etc/passwd"}]}, "its list 'passwd' lies neither beside it"),
        ({"files": [{"key": "x/.."}]}, "names no list"),
        ({"fileSchema": "Bucket, Key"}, "have no Size"),
        ({"sourceBucket": "a/b"}, "is no bucket"),
        ({"files": 3}, "is no manifest of an S3 Inventory"),
    ],
)
def test_what_cannot_be_an_inventory_is_one_line(tmp_path: Path, more: dict[str, Any], said: str) -> None:
    (tmp_path / "etc").mkdir()
    with pytest.raises(UserError, match=said) as told:
        list(scan([str(delivered(tmp_path, [line("a.mp4")], **more))]))
    assert "\n" not in str(told.value)


def test_rows_of_another_bucket_and_a_list_of_other_bytes_are_refused(tmp_path: Path) -> None:
    manifest = delivered(tmp_path, [line("a.mp4"), line("b.mp4", bucket="theirs"), line("c.mp4", "many")])
    with pytest.raises(UserError, match=r"2 rows are unusable: line 2: bucket 'theirs' is not 'bucket'.*line 3: "):
        list(scan([str(manifest)]))
    manifest = delivered(tmp_path, [line("a.mp4")])
    data = tmp_path / HOME / "data/1.csv.gz"
    data.write_bytes(data.read_bytes()[:-9])
    with pytest.raises(UserError, match="has not the bytes that"):
        list(scan([str(manifest)]))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.binary(max_size=60)
    | st.binary(max_size=60).map(gzip.compress)
    | st.text(max_size=60).map(lambda text: gzip.compress(text.encode("utf-8", "replace"))),
    form=st.sampled_from(["CSV", "Parquet"]),
)
def test_any_bytes_are_read_or_refused(tmp_path: Path, content: bytes, form: str) -> None:
    manifest = delivered(tmp_path, [line("a.mp4")], form)
    told = json.loads(manifest.read_text())
    del told["files"][0]["MD5checksum"]
    manifest.write_text(json.dumps(told))
    (tmp_path / told["files"][0]["key"]).write_bytes(content)
    try:
        found = pl.concat(scan([str(manifest)]))
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert found["path"].str.starts_with("s3://bucket/").all()


def test_a_manifest_in_a_store_names_lists_of_its_own_folder_alone(tmp_path: Path) -> None:
    fs = __import__("fsspec").filesystem("memory")
    manifest = delivered(tmp_path, [line("raw/a.mp4")])
    for file in tmp_path.rglob("*.*"):
        if file.is_file():
            fs.pipe_file(f"/store/{file.relative_to(tmp_path)}", file.read_bytes())
    url = f"memory://store/{manifest.relative_to(tmp_path)}"
    assert pl.concat(scan([url]))["path"].to_list() == ["s3://bucket/raw/a.mp4"]
    for key in ("elsewhere/data/1.csv.gz", f"{HOME}/data/../../x", "http://192.0.2.1/x"):
        told = json.loads(manifest.read_text()) | {"files": [{"key": key}]}
        fs.pipe_file(url.removeprefix("memory:/"), json.dumps(told).encode())
        with pytest.raises(UserError, match="does not lie in"):
            list(scan([url]))
