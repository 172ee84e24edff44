"""The plan: stable keys, fair shards, and what a second build may change."""

from __future__ import annotations

import random
import tempfile
import time
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from javisc.compiler.inputs.table import INPUT_SCHEMA, conform, normal_relpath, table
from javisc.compiler.plan import matching
from javisc.compiler.plan.keys import key_of
from javisc.compiler.plan.layout import (
    PLAN_SCHEMA,
    Changes,
    Layout,
    lay_out,
    read_shards,
    summary,
    write_plan,
)
from javisc.compiler.store.commits import PUBLISHED_SCHEMA
from javisc.manifests.errors import UserError

RELPATHS = st.lists(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12), unique=True, max_size=40
)


def plan(
    rows: pl.DataFrame, layout: Layout, old: pl.DataFrame | None = None, **more: object
) -> tuple[pl.DataFrame, Changes]:
    with tempfile.TemporaryDirectory() as folder:
        made, changes = lay_out(conform(rows), layout, Path(folder), old=old, **more)  # type: ignore[arg-type]
        return made.collect(), changes


def inputs(relpaths: list[str], root: str = "/raw", **more: object) -> pl.DataFrame:
    return table(
        {"path": f"{root}/{name}", "relpath": name, "source_bytes": 10, "mtime_ns": 1, **more} for name in relpaths
    )


@settings(max_examples=40, deadline=None)
@given(relpaths=RELPATHS, per_shard=st.integers(1, 9), seed=st.integers(0, 3), order=st.randoms(use_true_random=False))
def test_every_input_has_one_place_that_does_not_depend_on_order(
    relpaths: list[str], per_shard: int, seed: int, order: random.Random
) -> None:
    made, changes = plan(inputs(relpaths), Layout(per_shard, seed))
    assert made.schema == PLAN_SCHEMA
    assert sorted(made["relpath"]) == sorted(relpaths) and made["key"].n_unique() == len(relpaths) == changes.new
    assert made.select("shard", "key").rows() == sorted(made.select("shard", "key").rows())
    sizes = made.group_by("shard").len()["len"]
    assert len(relpaths) == 0 or (sizes.max() - sizes.min() <= 1 and sizes.max() <= per_shard)  # type: ignore[operator]
    assert all(key == key_of(name) for key, name in made.select("key", "relpath").iter_rows())
    shuffled = list(relpaths)
    order.shuffle(shuffled)
    assert plan(inputs(shuffled), Layout(per_shard, seed))[0].equals(made)
    # Another mount: the same keys in the same shards.
    moved = plan(inputs(shuffled, "/elsewhere"), Layout(per_shard, seed))[0]
    assert moved.drop("path").equals(made.drop("path"))


@settings(max_examples=40, deadline=None)
@given(relpaths=RELPATHS, cut=st.integers(0, 40), per_shard=st.integers(1, 9))
def test_what_is_planned_stays_when_inputs_are_added(relpaths: list[str], cut: int, per_shard: int) -> None:
    first, _ = plan(inputs(relpaths[:cut]), Layout(per_shard))
    second, changes = plan(inputs(relpaths), Layout(per_shard), first)
    assert changes.new == len(relpaths[cut:]) and not changes.changed and not changes.deleted
    kept = second.join(first, on="key", how="semi")
    assert kept.equals(first)
    added = second.join(first, on="key", how="anti")
    assert added.is_empty() or first.is_empty() or added["shard"].min() > first["shard"].max()  # type: ignore[operator]


def test_a_shard_is_a_fair_draw() -> None:
    names = [f"folder_{number // 1000}/clip_{number:05d}.mp4" for number in range(10_000)]
    made, _ = plan(inputs(names), Layout(500, 0))
    first = made.filter(pl.col("shard") == 0)["relpath"].str.slice(7, 1).value_counts()["count"]
    assert first.len() == 10 and first.min() > 25  # type: ignore[operator]
    other, _ = plan(inputs(names), Layout(500, 1))
    moved = made.join(other, on="key").filter(pl.col("shard") != pl.col("shard_right")).height
    assert moved > 9000


def test_refused_inputs_do_not_thin_out_the_shards() -> None:
    rows = pl.concat([inputs([f"good{i}" for i in range(8)]), inputs([f"bad{i}" for i in range(30)], refused="empty")])
    made, _ = plan(rows, Layout(4))
    assert made.filter(pl.col("refused").is_null()).group_by("shard").len()["len"].to_list() == [4, 4]
    assert set(made["shard"]) == {0, 1}


def test_twins_and_repeats() -> None:
    rows = pl.concat([inputs(["a", "b"], "/one"), inputs(["a"], "/two"), inputs(["a"], "/one")])
    made, changes = plan(rows, Layout(9))
    assert made.height == 3 and changes.twice == 1 and changes.twins == 1
    keys = dict(made.select("path", "key").iter_rows())
    assert keys["/one/a"] == key_of("a") and keys["/two/a"] == key_of("a", None, 1)
    again, changes = plan(pl.concat([inputs(["a"], "/zero"), rows]), Layout(9), made)
    assert changes.new == 1 and again.join(made, on="key", how="semi").equals(made)


def test_a_published_reject_is_planned_again_when_asked() -> None:
    rows = inputs(["a", "b", "c"])
    first, _ = plan(rows, Layout(9))
    states = [
        {"key": key_of(name), "shard": 0, "reason": reason} for name, reason in (("a", "timeout"), ("b", "corrupt"))
    ]
    done = pl.DataFrame(states, schema=PUBLISHED_SCHEMA)
    assert plan(rows, Layout(9), first, published=done)[0].equals(first)
    again, changes = plan(rows, Layout(9), first, published=done, retry=("timeout",))
    assert changes.new == 1 and dict(again.select("relpath", "shard").iter_rows()) == {"a": 1, "b": 0, "c": 0}


#: What shapes a sample or stands in its record, each with another value.
SHAPING = {
    "source_bytes": 11, "audio_path": "/raw/a.wav", "audio_bytes": 5, "text": "corrected", "texts": ["corrected"],
    "label": "bark", "lang": "de", "corpus": "c", "audio_text": "a bark", "unpaired_audio_path": "/raw/b.wav", "boxes": "0 0 1 1",
}  # fmt: skip


def test_what_shapes_a_sample_is_a_change_and_its_shard_is_made_again_where_that_is_asked() -> None:
    rows = inputs(["a", "b"], text="as it was")
    first, _ = plan(rows, Layout(9))
    states = [{"key": key_of(name), "shard": 0, "sha256": "0" * 64} for name in "ab"]
    done = pl.DataFrame(states, schema=PUBLISHED_SCHEMA)
    for name, value in [*SHAPING.items(), ("split", "val"), ("group", "film")]:
        wanted = pl.when(pl.col("relpath") == "a").then(pl.lit(value, INPUT_SCHEMA[name])).otherwise(name)
        other = rows.with_columns(wanted.alias(name))
        kept, changes = plan(other, Layout(9), first, published=done)
        assert changes.changed.first == (["/raw/a"] if name in SHAPING else []), name
        if name in SHAPING:
            assert kept.equals(first) and changes.pruned == set(), name
            again, changes = plan(other, Layout(9), first, published=done, prune=True)
            assert again["revision"].to_list() == [1, 1] and changes.pruned == {0}, name
            assert again.filter(pl.col("relpath") == "a")[name].to_list() == [value], name


def test_reading_shards_back_gives_every_row_once(tmp_path: Path) -> None:
    made, _ = plan(inputs([f"{i}" for i in range(57)]), Layout(4))
    write_plan(made.lazy(), tmp_path / "plan.parquet")
    shards = summary(tmp_path / "plan.parquet")
    assert shards["inputs"].sum() == 57 and shards["bytes"].sum() == 570
    wanted = shards.filter(pl.col("shard") % 2 == 0)
    read = list(read_shards(tmp_path / "plan.parquet", wanted, rows_at_once=9))
    assert [shard for shard, _, _ in read] == wanted["shard"].to_list()
    assert [row["key"] for _, _, rows in read for row in rows] == made.filter(pl.col("shard") % 2 == 0)["key"].to_list()


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=30))
def test_a_relpath_never_climbs(path: str) -> None:
    found = normal_relpath(path)
    assert not found.startswith("/") and ".." not in found.split("/") and normal_relpath(found) == found


def test_keys_differ_by_window_and_are_plain() -> None:
    keys = {key_of("a"), key_of("a", (None, None)), key_of("a", (0.0, None)), key_of("a", (0.0, 1.0))}
    keys |= {key_of("b"), key_of("a", None, 1)}
    assert len(keys) == 5 and all(set(key) <= set("0123456789abcdef") and len(key) == 24 for key in keys)


def test_the_input_table_is_brought_to_its_schema_or_refused() -> None:
    made = conform(pl.DataFrame({"path": ["/r/a.b.mp4"], "relpath": ["a.b.mp4"], "texts": [["x", "y"]]})).collect()
    assert made.schema == INPUT_SCHEMA and made["id"][0] == "a.b" and made["text"][0] == "x"
    assert conform(pl.DataFrame({"path": ["p"], "relpath": ["r"], "text": ["t"]})).collect()["texts"].to_list() == [
        ["t"]
    ]
    with pytest.raises(UserError, match="lacks the column 'relpath'"):
        conform(pl.DataFrame({"path": ["p"]}))
    with pytest.raises(UserError, match="unknown column 'colour'"):
        conform(pl.DataFrame({"path": ["p"], "relpath": ["r"], "colour": ["red"]}))


@pytest.mark.slow
def test_the_cost_per_row_does_not_grow(tmp_path: Path) -> None:
    """The million is benchmarks/plan.py's; here the slope alone, with room for a busy machine."""

    def cost(rows: int) -> float:
        began = time.process_time()
        plan(inputs([f"g{i % 97}/clip_{i:07d}.mp4" for i in range(rows)]), Layout(500))
        return (time.process_time() - began) / rows

    cost(2_000)
    assert cost(120_000) < 2.5 * cost(30_000)


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_what_moved_as_a_whole_is_found_as_it_is_row_by_row(data: st.DataObject) -> None:
    """Inputs from up to three roots, of which some are gone: the join and the loop that knows every case agree."""
    with tempfile.TemporaryDirectory() as place:
        roots = [f"{place}/{name}" for name in "abc"]
        names = st.lists(st.sampled_from("pqrstuv"), unique=True, max_size=5)
        before = {root: data.draw(names) for root in roots}
        after = {root: data.draw(names) for root in roots}
        for root in roots:
            Path(root).mkdir()
            for name in data.draw(st.sets(st.sampled_from("pqrstuv"))):
                Path(root, name).touch()

        def rows(given: dict[str, list[str]]) -> pl.DataFrame:
            return pl.concat([inputs(found, root) for root, found in given.items()])

        old = plan(rows(before), Layout(3))[0]
        quick, said = plan(rows(after), Layout(3), old)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(matching, "_moved", lambda clashing, left: clashing.clear())
            slow, told = plan(rows(after), Layout(3), old)
        assert quick.equals(slow) and said == told


def test_a_corpus_under_another_mount_is_a_join(monkeypatch: pytest.MonkeyPatch) -> None:
    """None of its rows goes through the loop that looks at each: that took a hundred times as long and 30 kB a row."""
    names = [f"{number:05d}.mp4" for number in range(3000)]
    old = plan(inputs(names, "/mnt/gone"), Layout(100))[0]
    looked: list[int] = []
    slow = matching._one_by_one
    monkeypatch.setattr(matching, "_one_by_one", lambda rows, *rest: (looked.append(rows.height), slow(rows, *rest))[1])
    made, changes = plan(inputs(names, "/mnt/new"), Layout(100), old)
    assert made.drop("path").equals(old.drop("path")) and changes.new == 0 and not any(looked)
    assert made["path"].str.starts_with("/mnt/new/").all()


def test_a_plan_from_before_groups_keeps_the_splits_it_drew_and_takes_new_inputs() -> None:
    old, _ = plan(inputs(["a", "b", "c"]), Layout(2, 0))
    older = old.with_columns(split=pl.Series(["train", "val", "test"])).drop("group")
    drawn = dict(older.select("relpath", "split").iter_rows())
    made, changes = plan(inputs(["a", "b", "c", "d"]), Layout(2, 0), older)
    assert changes.new == 1 and dict(made.select("relpath", "split").iter_rows()) == {**drawn, "d": None}
    said, _ = plan(inputs(["a", "b", "c"], split="dev"), Layout(2, 0), older)
    assert said["split"].to_list() == ["dev"] * 3, "what the inputs say of it goes before what was drawn"
