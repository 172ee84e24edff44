"""Many objects: a scan sends a request for a thousand of them, not for each; what it says is what asking one by one says."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest

from javisc.compiler.build import BuildOptions, build
from javisc.compiler.inputs.local import scan
from javisc.compiler.inputs.raw import from_raw
from javisc.compiler.reasons import Rejected
from javisc.compiler.recipe import PRESETS
from javisc.compiler.run.sources import fetch
from javisc.manifests import objects
from javisc.manifests.errors import UserError
from javisc.manifests.urls import filesystem
from support.slow_store import SlowStore, slow_store

pytest.importorskip("s3fs")
pytest.importorskip("obstore")
COUNT = 5000


@pytest.fixture(scope="module")
def store() -> Iterator[SlowStore]:
    with slow_store(COUNT, 0.02) as running:
        yield running


def url(number: int) -> str:
    return f"s3://b/raw/{number // 1000:04d}/{number:08d}.mp4"


def scanned(place: Path, urls: list[str], **more: object) -> pl.DataFrame:
    pl.DataFrame({"path": urls, **more}).write_parquet(place / "list.parquet")
    return pl.concat(scan([str(place / "list.parquet")]))


def test_a_list_of_many_objects_is_asked_for_by_the_thousand(store: SlowStore, tmp_path: Path) -> None:
    before = store.counts()
    found = scanned(tmp_path, [url(number) for number in range(COUNT)])
    asked = store.counts() - before
    assert asked.total() <= COUNT // 1000 + 2, asked
    assert found["refused"].is_null().all() and found["source_bytes"].unique().to_list() == [1000]
    when = int(datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC).timestamp()) * 10**9
    assert found["mtime_ns"].unique().to_list() == [when]
    # The same as fsspec says of one alone.
    fs, inside = filesystem(url(7))
    info = fs.info(inside)
    assert (info["size"], int(info["LastModified"].timestamp()) * 10**9) == (1000, when)
    # A prefix as well.
    before = store.counts()
    below = pl.concat(scan(["s3://b/raw"]))
    assert (store.counts() - before).total() <= COUNT // 1000 + 2
    assert sorted(below["path"]) == sorted(found["path"]) and below["mtime_ns"].unique().to_list() == [when]
    before = store.counts()
    some = pl.concat(scan(["s3://b/raw/0002"]))
    assert sorted(some["path"]) == [url(number) for number in range(2000, 3000)]
    assert (store.counts() - before).total() <= 3, "nothing beside the prefix is listed"


@pytest.mark.parametrize(("first", "step"), [(0, 3), (0, 90), (0, 700), (COUNT // 2, 1)])
def test_lists_with_gaps_and_with_what_is_not_there(store: SlowStore, tmp_path: Path, first: int, step: int) -> None:
    there = list(range(first, COUNT, step))
    urls = [url(number) for number in there] + [f"s3://b/raw/0002/{number:08d}.mov" for number in range(4)]
    before = store.counts()
    found = scanned(tmp_path, urls + urls[:2])
    asked = store.counts() - before
    assert asked["list"] + asked["head"] <= len(urls) + 12
    assert step > 3 or asked["head"] < len(there) / 10, asked
    good = found.filter(pl.col("refused").is_null())
    assert sorted(set(good["path"])) == sorted(set(urls[: len(there)])) and found.height == len(urls) + 2
    bad = found.filter(pl.col("refused") == "unreadable")
    assert bad.height == 4 and bad["refused_message"].str.contains("is not there").all()


def test_what_a_list_or_an_inventory_says_of_an_object_is_not_asked(store: SlowStore, tmp_path: Path) -> None:
    before = store.counts()
    found = scanned(tmp_path, [url(1), "s3://b/gone.mp4"], source_bytes=[5, 6], mtime_ns=[10**18, 7])
    assert found.select("source_bytes", "mtime_ns").rows() == [(5, 10**18), (6, 7)]
    when = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    rows = {
        "bucket": ["b", "b", "b"],
        "key": ["raw/a.mp4", "raw/a.txt", "raw/ü b.MOV"],
        "size": [3, 4, 5],
        "last_modified_date": [when] * 3,
        "e_tag": ["x"] * 3,
    }
    frame = pl.DataFrame(rows)
    frame.write_parquet(tmp_path / "i.parquet")
    frame.with_columns(pl.col("last_modified_date").dt.to_string("iso:strict")).write_csv(tmp_path / "i.csv")
    for name in ("i.parquet", "i.csv"):
        stock = pl.concat(scan([str(tmp_path / name)])).sort("source_bytes")
        assert stock.select("path", "relpath", "source_bytes", "mtime_ns").rows() == [
            ("s3://b/raw/a.mp4", "raw/a.mp4", 3, int(when.timestamp()) * 10**9),
            ("s3://b/raw/ü b.MOV", "raw/ü b.MOV", 5, int(when.timestamp()) * 10**9),
        ]
    assert store.counts() == before
    with pytest.raises(UserError, match="size or time"):
        scanned(tmp_path, [url(1)], source_bytes=["many"], mtime_ns=[1])


def test_nobody_else_is_asked_and_without_obstore_all_is_the_same(
    store: SlowStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    urls = [url(number) for number in range(60)] + ["s3://b/none.mp4"]
    quick = scanned(tmp_path, urls)
    with monkeypatch.context() as patched:
        patched.setattr(objects, "_obstore", lambda fs, bucket: None)
        assert scanned(tmp_path, urls).drop("refused_message").equals(quick.drop("refused_message"))
    # The endpoint is the one that fsspec was set up for, not what another library reads from the environment.
    fs, _ = filesystem(url(0))
    fs.connect()
    monkeypatch.setitem(os.environ, "AWS_ENDPOINT", "http://192.0.2.1:9")
    monkeypatch.setitem(os.environ, "AWS_ENDPOINT_URL", "http://192.0.2.1:9")
    before = store.counts()
    assert objects._of_bucket("b", urls).keys() == set(urls) and (store.counts() - before).total() > 0


def test_an_object_that_is_as_the_scan_saw_it_is_fetched_by_one_request(store: SlowStore, tmp_path: Path) -> None:
    for planned, heads in ((1000, 0), (999, 1), (None, 1)):
        before = store.counts()
        fetch(url(3), str(tmp_path / "copy"), planned)
        asked = store.counts() - before
        assert (asked["get"], asked["head"]) == (1, heads) and (tmp_path / "copy").stat().st_size == 1000
    with pytest.raises(Rejected):
        fetch("s3://b/raw/0000/gone.mp4", str(tmp_path / "gone"), 5)
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def test_a_store_that_is_away_is_no_files_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import s3fs

    with slow_store(10, 0.0) as running, monkeypatch.context() as away:  # undone before the server's own settings are
        away.setenv("JAVISC_PATIENCE", "1")
        away.setenv("AWS_MAX_ATTEMPTS", "1")
        filesystem("s3://b/x")
        s3fs.S3FileSystem.clear_instance_cache()
        away.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        with pytest.raises(UserError, match="the storage does not answer"):
            from_raw_all(tmp_path)
        assert running.counts().total() == 0


def from_raw_all(place: Path) -> pl.DataFrame:
    (place / "list.txt").write_text("".join(f"{url(number)}\n" for number in range(3)))
    (place / "work").mkdir()
    return from_raw([str(place / "list.txt")])(place / "work").collect()


def test_a_plan_that_is_made_again_asks_for_lists_alone(tmp_path: Path) -> None:
    """Captions beside objects are kept by ETag: those that are as they were are not read again, a new one is."""
    count = 1500
    with slow_store(count, 0.0) as store:
        fs, _ = filesystem("s3://b/raw")
        words = {f"b/raw/0000/{number:08d}.txt": f"words {number}".encode() for number in range(200)}
        fs.pipe({**words, "b/raw/0000/00000007.txt": b"\0"})
        options = BuildOptions(write_plan=True, shard_samples=500)

        def planned() -> tuple[Counter[str], dict[str, str | None], tuple[str, ...]]:
            before = store.counts()
            told = build(from_raw(["s3://b/raw"]), PRESETS["jav"], tmp_path / "ds", options)
            rows = pl.read_parquet(tmp_path / "ds/.build/plan.parquet")
            return store.counts() - before, dict(rows.select("id", "text").iter_rows()), told.notes

        asked, texts, _ = planned()
        assert asked["get"] == 200 and asked["list"] <= 4 and not asked["head"], asked
        assert texts["00000003"] == "words 3" and texts["00000007"] is None and texts["00000300"] is None
        plan = (tmp_path / "ds/.build/plan.parquet").read_bytes()
        asked, again, notes = planned()
        assert not asked["get"] and not asked["head"] and asked["list"] <= 4 and again == texts, asked
        assert f"0 inputs are new, {count} are in the plan already" in notes
        assert (tmp_path / "ds/.build/plan.parquet").read_bytes() == plan
        fs.pipe("b/raw/0000/00000003.txt", b"other words")
        asked, again, _ = planned()
        assert asked["get"] == 1 and again == texts | {"00000003": "other words"}
        # What is kept is the dataset's; where it is damaged or gone, the store is asked.
        for damage in (lambda kept: kept.write_bytes(b"PAR1"), lambda kept: kept.unlink()):
            damage(tmp_path / "ds/.build/kept.captions.parquet")
            asked, found, _ = planned()
            assert asked["get"] == 200 and found == again


def test_a_list_that_breaks_off_counts_once(tmp_path: Path) -> None:
    """obstore refuses a name with an empty part, here on its second page; fsspec tells the whole list."""
    with slow_store(1500, 0.0) as store:
        fs, _ = filesystem("s3://b/raw")
        fs.pipe({"b/raw/0009//odd.mp4": b"x", "b/raw/0009//odd.txt": b"words"})
        before = store.counts()
        found = pl.concat(scan(["s3://b/raw"]))
        assert (store.counts() - before)["list"] == 4
        assert found.height == found["path"].n_unique() == 1501
        odd = found.filter(pl.col("sidecar").is_not_null()).row(0, named=True)
        assert (odd["path"], odd["sidecar"]) == ("s3://b/raw/0009//odd.mp4", b"s3://b/raw/0009//odd.txt")


def test_many_small_objects_are_read_by_one_request_each_and_odd_names_are_left_to_others(store: SlowStore) -> None:
    odd = ["s3://b/raw//0000/00000003.mp4", "s3://b/raw/0000/\u00fc.mp4", "https://b/raw/0000/00000004.mp4"]
    before = store.counts()
    found = objects.contents([url(1), *odd, url(2), "s3://b/raw/0000/gone.mp4"], 1000)
    assert set(found) == {url(1), url(2)} and {len(content) for content in found.values()} == {1000}
    assert (store.counts() - before).total() == 3, "an odd name may mean another object to another client"
    assert objects.contents([url(1)], 999) == {}
