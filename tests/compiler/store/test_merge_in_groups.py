"""The tables of many shards are those of some shards after the other."""

from __future__ import annotations

import tempfile
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from javisc.compiler.plan.before import PLAN_SCHEMA
from javisc.compiler.recipe import PRESETS
from javisc.compiler.sparsesync import offsets
from javisc.compiler.sparsesync.offsets import Offsets, OffsetsReport
from javisc.compiler.sparsesync.rules import Grid
from javisc.compiler.store import commits
from javisc.compiler.store.carried import carried
from javisc.compiler.store.commits import Parts, publish_part
from javisc.compiler.store.files import Store
from javisc.compiler.store.present import strangers
from javisc.compiler.store.tables import merge
from javisc.manifests.partitions import left_join
from javisc.manifests.schema import MANIFEST_SCHEMA

MADE = {"bytes": 1, "sha256": "0" * 64, "idx_bytes": 1, "idx_sha256": "1" * 64}


def test_groups_of_shards_give_the_tables_of_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(str(tmp_path / "ds"), tmp_path / "scratch")
    places = []
    for shard in range(7):
        keys = [f"{shard}{number}" for number in range(5)]
        refused = [{"key": key, "path": key, "reason": "corrupt"} for key in keys[3:]]
        publish_part(store, shard, 0, [{"key": key, "shard": shard, "path": key} for key in keys[:3]], refused, MADE)
        # A refusal of each has been planned again, in a shard that is not made yet.
        places += [{"key": key, "shard": shard} for key in keys[:4]] + [{"key": keys[4], "shard": 7 + shard}]
    plan = tmp_path / "plan.parquet"
    pl.DataFrame(places, schema=PLAN_SCHEMA).sort("shard", "key").write_parquet(plan)
    told = []
    for rows in (commits.ROWS, 1, 12):
        monkeypatch.setattr(commits, "ROWS", rows)
        merged = merge(store, plan, list(range(7)), PRESETS["jav"])
        tables = [(tmp_path / "ds" / f"{name}.parquet").read_bytes() for name in ("manifest", "rejected", "shards")]
        told.append((merged, tables))
    assert told[0] == told[1] == told[2] and (told[0][0].samples, told[0][0].rejected) == (21, {"corrupt": 7})
    assert pl.read_parquet(tmp_path / "ds/rejected.parquet")["key"].to_list() == [f"{shard}3" for shard in range(7)]
    other = pl.read_parquet(plan).with_columns(key=pl.when(pl.col("key") == "41").then(pl.lit("4x")).otherwise("key"))
    other.write_parquet(plan)
    assert list(strangers(Parts(store), plan, range(7))) == [4]


@settings(max_examples=25, deadline=None)
@given(
    there=st.lists(
        st.tuples(
            st.sampled_from("abcdefgh"), st.sampled_from([None, "val", "test", "train"]), st.sampled_from([3.0, 9.5])
        ),
        max_size=9,
    ),
    listed=st.lists(st.sampled_from("abcxy"), unique=True),
)
def test_offsets_and_added_columns_come_some_rows_at_a_time_as_they_come_to_all(
    there: list[tuple[str, str | None, float]], listed: list[str]
) -> None:
    """In the order of the manifest, whatever order the old one had; against the rule clip by clip."""
    clips = {f"{name}{number}": (f"{name}.mp4", split, seconds) for number, (name, split, seconds) in enumerate(there)}
    fixed = pl.DataFrame(
        [(clip, 0.2, float(number)) for number, clip in enumerate(listed)],
        schema={"clip": pl.String, "offset_sec": pl.Float64, "vstart_sec": pl.Float64}, orient="row",
    )  # fmt: skip
    rows = [
        {"key": key, "relpath": path, "split": split, "duration": long} for key, (path, split, long) in clips.items()
    ]
    manifest = pl.DataFrame(rows, schema=MANIFEST_SCHEMA).lazy()
    old = pl.DataFrame({"key": [*reversed(clips), "gone"], "mood": [*map(str.upper, reversed(clips)), "X"]}).tail(6)
    grid, moods = Grid(), dict(old.iter_rows())
    wanted, drawn, short = [], 0, 0
    for key, (path, split, seconds) in clips.items():
        clip = path.removesuffix(".mp4")
        pair = (0.2, float(listed.index(clip))) if clip in listed else None
        if pair is None and split in ("val", "test"):
            pair = grid.draw(clip, seconds)
            drawn, short = drawn + (pair is not None), short + (pair is None)
        wanted.append((key, path, *(pair or (None, None)), moods.get(key)))
    named = {path.removesuffix(".mp4") for path, _, _ in clips.values()}
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(offsets, "ROW_GROUP", 2)
        store = Store(f"{folder}/ds", Path(folder, "scratch"))
        with store.publish("manifest.parquet") as local:
            old.write_parquet(local)
        store.write(b"{}", "dataset.json")
        kept = pl.concat(left_join(manifest, old.lazy(), "key", Path(folder, "join"), rows=2)).lazy()
        amend, _ = carried(store)
        assert amend(manifest, Path(folder, "kept")).collect().equals(kept.collect())
        chosen, report = Offsets(grid, fixed=fixed).choose(kept, Path(folder))
        found = chosen.select("key", "relpath", "offset_sec", "vstart_sec", "mood").collect().rows()
        assert chosen.collect_schema().names() == [*MANIFEST_SCHEMA, "mood"]
    assert found == wanted
    of_lists = sum(path.removesuffix(".mp4") in listed for path, _, _ in clips.values())
    assert report == OffsetsReport(of_lists, drawn, short, len(set(listed) - named))
