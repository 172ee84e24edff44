"""Annotations: a table becomes a field and columns, joined strictly, undone whole, and no byte of the base changes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
import webdataset

from javisc.compiler.build import BuildOptions, build
from javisc.compiler.check.dataset import Checks, verify
from javisc.compiler.fields.annotate import annotate, take_back
from javisc.compiler.inputs.raw import from_raw
from javisc.compiler.recipe import Recipe
from javisc.compiler.repair.dataset import repair
from javisc.compiler.store.fields import FieldWriter
from javisc.manifests.errors import UserError
from javisc.manifests.filters import filter_table
from javisc.manifests.io import Dataset
from javisc.trainer.data.index.catalog import Catalog
from support.films import Films
from support.sane import sane
from support.tables import dataset
from support.tables import rows as synthetic


@pytest.fixture
def ds(films: Films, tmp_path: Path) -> Path:
    return films.copy(tmp_path / "films").dataset


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith("lock")
    }


def rows(ds: Path) -> pl.DataFrame:
    return pl.read_parquet(ds / "manifest.parquet")


def write(path: Path, frame: pl.DataFrame) -> str:
    {".csv": frame.write_csv, ".parquet": frame.write_parquet, ".jsonl": frame.write_ndjson}[path.suffix](path)
    return str(path)


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".jsonl"])
def test_a_table_of_any_form_becomes_typed_columns_and_is_undone(ds: Path, tmp_path: Path, suffix: str) -> None:
    before, whole = digests(ds), rows(ds)
    keys = whole["key"].to_list()
    table = pl.DataFrame(
        {
            "key": [keys[4], keys[0], keys[1]],
            "caption": ["four", "zero", None],
            "score": [0.5, None, 2.0],
            "faces": [3, 0, 1],
            "good": [True, False, None],
            "note": ["a, b", None, "007"],
        }
    )
    done = annotate(str(ds), write(tmp_path / f"Qwen 2{suffix}", table))
    assert (done.name, done.samples, done.of, done.by, done.unused) == ("qwen_2", 3, 6, "key", 0)
    found = sane(ds, media=2)
    assert {name: str(found.schema[name]) for name in ("score", "faces", "good", "note")} == {
        "score": "Float64", "faces": "Int64", "good": "Boolean", "note": "String"
    }  # fmt: skip
    by = {row["key"]: row for row in found.iter_rows(named=True)}
    assert (by[keys[4]]["text"], by[keys[4]]["score"], by[keys[4]]["note"]) == ("four", 0.5, "a, b")
    assert by[keys[1]]["text"] == whole["text"][1] and by[keys[1]]["note"] == "007"
    assert by[keys[0]]["texts"][0] == "zero" and by[keys[2]]["score"] is None
    assert {name: digest for name, digest in digests(ds).items() if "shards/" in name} == {
        name: digest for name, digest in before.items() if "shards/" in name
    }
    assert filter_table(str(ds), None, ["faces >= 1"], {}, [], {}).kept == 2
    assert sorted(filter(None, Catalog.open([ds]).strings["text"].to_list())) == sorted(found["text"].drop_nulls())
    take_back(str(ds), "qwen_2")
    assert digests(ds) == {**before, "dataset.json": digests(ds)["dataset.json"]} and rows(ds).equals(whole)
    sane(ds, media=0)


def test_history_is_kept_and_any_of_it_can_be_taken_back(ds: Path, tmp_path: Path) -> None:
    whole = rows(ds)
    path, first = whole["path"][3], whole["texts"][3]
    for name in ("one", "two", "three"):
        annotate(str(ds), write(tmp_path / f"{name}.csv", pl.DataFrame({"path": [path], "text": [f"as {name} says"]})))
    assert rows(ds)["texts"][3].to_list() == [
        "as three says",
        "as two says",
        "as one says",
        *(first if first is not None else []),
    ]
    take_back(str(ds), "two")
    assert rows(ds)["texts"][3].to_list() == ["as three says", "as one says", *(first if first is not None else [])]
    take_back(str(ds), "three")
    assert rows(ds)["text"][3] == "as one says"
    annotate(str(ds), str(tmp_path / "two.csv"), keep_text=True)
    assert rows(ds)["text"][3] == "as one says" and rows(ds)["two_text"][3] == "as two says"
    field = Dataset.open(ds).field("two")
    assert json.loads(field.read(whole["key"][3])) == {"two_text": "as two says"} and field.missing == 5
    assert [one.name for one in Dataset.open(ds).fields()] == ["one", "two"]
    sane(ds, deep=True, media=0)


WRONG = {
    "no name": (pl.DataFrame({"text": ["a"]}), "no column to join by"),
    "nothing matches": (pl.DataFrame({"id": ["zzz"], "text": ["a"]}), "belongs to a sample: by id it names 'zzz'"),
    "no column": (pl.DataFrame({"id": ["a dog"]}), "nothing but what it is joined by"),
    "what a sample is": (pl.DataFrame({"id": ["a dog"], "num_frames": [3]}), "column num_frames says what a sample is"),
    "two values": (pl.DataFrame({"id": ["a dog", "a dog"], "score": [1, 2]}), "two values of score"),
    "a wrong type": (pl.DataFrame({"id": ["a dog"], "offset_sec": ["soon"]}), "'soon' is no Float64"),
    "an odd name": (pl.DataFrame({"id": ["a dog"], "a b": [1]}), "column 'a b'"),
    "empty": (pl.DataFrame({"id": [], "text": []}, schema={"id": pl.String, "text": pl.String}), "has no rows"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_table_that_cannot_be_meant_changes_nothing(ds: Path, tmp_path: Path, name: str) -> None:
    frame, said = WRONG[name]
    before = digests(ds)
    with pytest.raises(UserError, match=said):
        annotate(str(ds), write(tmp_path / "table.csv", frame))
    assert digests(ds) == before


def test_a_column_keeps_its_type_and_a_changed_table_wants_another_name(ds: Path, tmp_path: Path) -> None:
    table = write(tmp_path / "a.csv", pl.DataFrame({"id": ["a dog"], "score": [0.5]}))
    annotate(str(ds), table)
    before = digests(ds)
    annotate(str(ds), table)
    assert digests(ds) == before, "the same table again changes nothing"
    with pytest.raises(UserError, match="column score is String, the manifest's is Float64"):
        annotate(str(ds), write(tmp_path / "b.csv", pl.DataFrame({"id": ["sea"], "score": ["good"]})))
    annotate(str(ds), write(tmp_path / "b.csv", pl.DataFrame({"id": ["sea"], "score": [1]})))
    assert rows(ds)["score"].dtype == pl.Float64 and rows(ds)["score"].drop_nulls().sort().to_list() == [0.5, 1.0]
    write(tmp_path / "a.csv", pl.DataFrame({"id": ["a dog"], "score": [0.75]}))
    with pytest.raises(UserError, match="field a of .* was made with table_sha256 .* give it another name, or undo it"):
        annotate(str(ds), table)
    with pytest.raises(UserError, match="--undo c: .* has no field of that name; it has a, b"):
        take_back(str(ds), "c")


def test_a_number_that_a_columns_type_does_not_hold_is_refused_and_an_empty_column_is_not(
    ds: Path, tmp_path: Path
) -> None:
    table = pl.DataFrame({"id": ["a dog"], "faces": [3], "score": [0.5], "note": ["x"]})
    annotate(str(ds), write(tmp_path / "a.csv", table))
    before = digests(ds)
    for name, wrong in {"faces": 0.5, "score": 2**53 + 1}.items():
        with pytest.raises(UserError, match=f"column {name} is .*, the manifest's is .*: rename or mend it"):
            annotate(str(ds), write(tmp_path / "b.parquet", pl.DataFrame({"id": ["sea"], name: [wrong]})))
    assert digests(ds) == before
    more = pl.DataFrame({"id": ["sea", "rain"], "faces": [2.0, None], "score": [None, None], "note": [None, "y"]})
    annotate(str(ds), write(tmp_path / "c.csv", more))
    found = {row["id"]: row for row in rows(ds).iter_rows(named=True)}
    assert [found[name]["faces"] for name in ("a dog", "sea", "rain")] == [3, 2, None]
    assert [found[name]["score"] for name in ("a dog", "sea", "rain")] == [0.5, None, None]
    assert [found[name]["note"] for name in ("a dog", "sea", "rain")] == ["x", None, "y"]


def test_fields_over_ever_other_columns_of_the_dataset_own_show_what_each_says(ds: Path, tmp_path: Path) -> None:
    """fields/own.parquet, of which the manifest is made, is another with every field: no value comes from a wrong place."""
    whole = rows(ds)
    own = ["motion", "loudness", "lang", "text", "bandwidth", "label"]
    words = {"lang", "text", "label"}
    for at, name in enumerate(own):
        value = pl.lit(f"{name} of {at}") if name in words else pl.lit(at + 0.5)
        annotate(str(ds), write(tmp_path / f"over_{name}.csv", whole.select("key", value.alias(name))[at % 2 :: 2]))
        for other in own[: at + 1]:
            said = other + f" of {own.index(other)}" if other in words else own.index(other) + 0.5
            wanted = whole[other].to_list()
            wanted[own.index(other) % 2 :: 2] = [said] * 3
            assert rows(ds)[other].to_list() == wanted, (name, other)
    for at, name in enumerate(own):
        take_back(str(ds), f"over_{name}")
        assert rows(ds).select(own[: at + 1]).equals(whole.select(own[: at + 1])), name
        annotate(
            str(ds), write(tmp_path / "short.csv", whole.select("key", source_note=pl.lit("x"))[:1]), name=f"a{at}"
        )
    assert rows(ds).select(whole.columns).equals(whole)
    sane(ds, media=0)


KILLED = """
import os, signal, sys
import javisc.compiler.store.fields as home
from javisc.compiler.store import files
from javisc.compiler.fields.annotate import annotate
where, ds, table = sys.argv[1:]
owner, name = (files.Store, where) if where == "write_many" else (home, where)
real = getattr(owner, name)
def deadly(*args, **kwargs):
    done = real(*args, **kwargs)
    os.kill(os.getpid(), signal.SIGKILL)
    return done
setattr(owner, name, deadly)
annotate(ds, table, name="late")
"""


def renamed(ds: Path, place: Path) -> str:
    """A table of a new caption for every sample."""
    return write(place / "t.csv", rows(ds).select("key", caption=pl.lit("new ") + pl.col("id")))


@pytest.fixture(scope="module")
def calm(films: Films, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, str]]:
    """A table, and the digests of a dataset whose annotation with it nobody killed."""
    place = tmp_path_factory.mktemp("calm")
    root = films.copy(place / "films").dataset
    table = renamed(root, place)
    annotate(str(root), table, name="late")
    return table, digests(root)


@pytest.mark.parametrize("where", ["write_many", "commit_annotations", "publish_tables", "write_table", "write_header"])
def test_killed_anywhere_the_same_command_comes_to_the_same_bytes(
    ds: Path, tmp_path: Path, calm: tuple[str, dict[str, str]], where: str
) -> None:
    table, wanted = calm
    command = [sys.executable, "-P", "-c", KILLED, where, str(ds), table]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ}, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    annotate(str(ds), table, name="late")
    assert digests(ds) == wanted


def test_verify_names_what_is_wrong_and_repair_mends_it(ds: Path, tmp_path: Path) -> None:
    annotate(str(ds), renamed(ds, tmp_path))

    def found() -> list[str]:
        return verify(ds, checks=Checks("structure", workers=1)).defects

    good = digests(ds)
    tar = ds / "fields/t/000001.tar"
    raw = bytearray(tar.read_bytes())
    raw[520] ^= 1
    tar.write_bytes(raw)
    (ds / "fields/t/000000.idx").unlink()
    said = "\n".join(found())
    assert "fields/t/000001.tar: SHA-256 differs" in said and "fields/t/000000.idx: missing" in said
    assert "field t: 2 shards made again" in "\n".join(repair(ds, workers=1).lines)
    assert digests(ds) == good
    shown = pl.read_parquet(ds / "manifest.parquet")
    shown.with_columns(text=pl.lit("other")).write_parquet(ds / "manifest.parquet")
    assert "does not show what its fields say" in "\n".join(found())
    repair(ds, workers=1)
    assert digests(ds) == good and repair(ds, workers=1).lines == ()


def test_annotations_follow_their_samples_when_a_build_prunes_or_adds(films: Films, tmp_path: Path) -> None:
    raw = shutil.copytree(films.raw, tmp_path / "RAW")
    ds = tmp_path / "DS"
    recipe = Recipe.from_json(json.loads((films.dataset / "dataset.json").read_text())["recipe"])

    def compiled(**options: bool) -> None:
        build(from_raw([str(raw)], out=str(ds)), recipe, ds, BuildOptions(workers=2, shard_samples=4, **options))

    compiled()
    table = rows(ds).select("key", score=pl.int_range(pl.len()))
    wanted = dict(zip(rows(ds)["relpath"], table["score"], strict=True))
    annotate(str(ds), write(tmp_path / "t.parquet", table))
    (raw / "sea.MKV").unlink()
    shutil.copy(raw / "rain.mov", raw / "a dog.mp4")
    compiled(prune=True)
    found = dict(sane(ds, media=0).select("relpath", "score").iter_rows())
    del wanted["sea.MKV"]
    assert found == {**wanted, "a dog.mp4": None}, "another film under the same name has no score yet"
    shutil.copy(raw / "sub/ball.mp4", raw / "new.mp4")
    compiled()
    assert dict(sane(ds).select("relpath", "score").iter_rows()) == {**wanted, "a dog.mp4": None, "new.mp4": None}


def test_webdataset_reads_a_field_beside_its_base_by_key(ds: Path) -> None:
    keys = rows(ds).select("key", "shard")
    with FieldWriter(ds, "flow", columns={"flow": pl.Float32}) as writer:
        for number, key in enumerate(keys["key"]):
            if number % 2 == 0:
                writer.add(key, {}, {"flow": number / 2})
    for shard in (0, 1):
        base = webdataset.WebDataset(str(ds / f"shards/{shard:06d}.tar"), shardshuffle=False)
        beside = {
            row["__key__"]: row["json"]
            for row in webdataset.WebDataset(str(ds / f"fields/flow/{shard:06d}.tar"), shardshuffle=False)
        }
        read = {row["__key__"]: json.loads(beside[row["__key__"]])["flow"] for row in base if row["__key__"] in beside}
        assert read == {
            key: number / 2 for number, (key, at) in enumerate(keys.iter_rows()) if at == shard and number % 2 == 0
        }
    with pytest.raises(ValueError, match="no sample of"), FieldWriter(ds, "more", columns={"x": pl.Int64}) as writer:
        writer.add("not_there", {}, {"x": 1})
    take_back(str(ds), "more")
    sane(ds, media=0)


def test_what_was_made_of_a_shard_that_is_another_now_is_made_again(tmp_path: Path) -> None:
    """A writer that goes on counts a shard as done where its base is the one that it was made of, and nowhere else."""
    table = synthetic(6).with_columns(shard=pl.Series([0, 0, 0, 1, 1, 1], dtype=pl.Int32))
    ds = dataset(tmp_path / "ds", table)

    def fill(columns: dict[str, pl.DataType], value: int) -> None:
        with FieldWriter(ds, "flow", columns=columns) as writer:
            for key in table["key"]:
                writer.add(key, {}, {"flow": value})

    fill({"flow": pl.Int64()}, 1)
    dataset(ds, table.with_columns(text=pl.when(pl.col("shard") == 0).then(pl.lit("corrected")).otherwise("text")))
    fill({"flow": pl.Int64()}, 2)
    told = [json.loads(Dataset.open(ds).field("flow").read(key))["flow"] for key in table["key"]]
    assert told == [2, 2, 2, 1, 1, 1]
