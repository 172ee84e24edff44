"""The tables of many shards are those of some shards after the other."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from javisc.compiler.plan.before import PLAN_SCHEMA
from javisc.compiler.recipe import PRESETS
from javisc.compiler.store import commits
from javisc.compiler.store.commits import Parts, publish_part
from javisc.compiler.store.files import Store
from javisc.compiler.store.present import strangers
from javisc.compiler.store.tables import merge

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
