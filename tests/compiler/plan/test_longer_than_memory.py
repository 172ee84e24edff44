"""Plans that are made part by part are, byte for byte, those of the rule that holds every table in memory."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from javisc.compiler.inputs.table import INPUT_SCHEMA, LABELS, conform, table
from javisc.compiler.plan.layout import Changes, Layout, lay_out, write_plan
from javisc.compiler.store.commits import PUBLISHED_SCHEMA
from javisc.manifests.files import sha256_of
from javisc.manifests.partitions import Partitions, by
from support import plan_in_memory as in_memory

NAMES = st.sampled_from([f"{letter}.mp4" for letter in "pqrstuvw"])
#: What a row may say beside what all of them say, two values of each column: a table of nulls is equal to any other.
SAID = [
    (name, {pl.String(): f"{name} {number}", pl.Float64(): number / 4, pl.List(pl.String): [f"{name} {number}"]}[dtype])
    for name, dtype in INPUT_SCHEMA.items()
    if name in (*(column.name for column in LABELS), "boxes") and name not in ("text", "group")
    for number in (1, 2)
]
ROWS = st.fixed_dictionaries(
    {
        "root": st.sampled_from("abc"),
        "relpath": NAMES,
        "window_start": st.sampled_from([None, None, None, 0.0, 2.5]),
        "audio_path": st.sampled_from([None, None, None, "/sound/1.wav", "/sound/2.wav"]),
        "refused": st.sampled_from([None, None, None, "empty", "unreadable"]),
        "text": st.sampled_from([None, "a dog", "nan"]),
        "group": st.sampled_from([None, "film"]),
        "source_bytes": st.integers(1, 2),
        "mtime_ns": st.integers(1, 2),
        "prefixed": st.booleans(),
        "said": st.lists(st.sampled_from(SAID), max_size=3),
    }
)


def inputs(rows: list[dict[str, Any]], place: str) -> pl.DataFrame:
    """The rows as a table; a root of several may be seen from outside of it, too."""
    made, seen = [], set()
    for row in rows:
        root, prefixed = row["root"], row["prefixed"]
        named = {name: value for name, value in row.items() if name not in ("root", "prefixed", "said")}
        named |= dict(row["said"])
        named |= {"path": f"{place}/{root}/{row['relpath']}"}
        if prefixed:
            named["relpath"] = f"{root}/{row['relpath']}"
        # Of two rows that are equal in what they are made of and called, labels alone would decide: no scan makes such.
        if (same := tuple(named[name] for name in (*in_memory.MADE_OF[:3], "relpath") if name in named)) not in seen:
            seen.add(same)
            made.append(named)
    return table(made)


def numbers(changes: Any) -> dict[str, Any]:
    """Changes in a form that both ways give."""

    def names(found: Any) -> tuple[int, list[str]]:
        return (len(found), sorted(found)[:3]) if isinstance(found, list) else (len(found), found.first)

    lost = changes.lost.collect().rows() if isinstance(changes.lost, pl.LazyFrame) else changes.lost
    plain = {name: getattr(changes, name) for name in ("new", "kept", "twice", "twins", "nameless", "pruned")}
    return plain | {"changed": names(changes.changed), "deleted": names(changes.deleted), "lost": sorted(lost)}


def both(rows: pl.DataFrame, layout: Layout, **more: Any) -> tuple[pl.DataFrame, Changes]:
    """The plan by either way, which must be one."""
    with tempfile.TemporaryDirectory() as folder:
        made, changes = lay_out(conform(rows), layout, Path(folder, "parts"), rows_at_once=3, **more)
        told, said = in_memory.lay_out(conform(rows), layout, Path(folder, "whole"), **more)
        found = made.collect()
        assert found.equals(told.collect()) and numbers(changes) == numbers(said)
        for name, plan in (("parts", made), ("whole", told)):
            write_plan(plan, Path(folder, f"{name}.parquet"))
        assert Path(folder, "parts.parquet").read_bytes() == Path(folder, "whole.parquet").read_bytes()
        return found, changes


# To shrink two tables of a dozen rows takes minutes.
@settings(max_examples=20, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(
    before=st.lists(ROWS, max_size=14),
    more=st.lists(ROWS, max_size=6),
    prune=st.booleans(),
    retry=st.sampled_from([(), ("timeout",)]),
    per_shard=st.integers(1, 4),
    data=st.data(),
)
def test_part_by_part_a_plan_is_the_one_that_is_made_whole(
    before: list[Any], more: list[Any], prune: bool, retry: tuple[str, ...], per_shard: int, data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory() as place:
        for root in "abc":
            Path(place, root).mkdir()
            for name in data.draw(st.sets(NAMES, max_size=4)):
                Path(place, root, name).write_text(name)
        layout = Layout(per_shard)
        first, _ = both(inputs(before, place), layout)
        states = st.sampled_from([None, "made", "made", "nameless", "timeout", "corrupt"])
        published = []
        for row in first.iter_rows(named=True):
            state = data.draw(states)
            if state is None:
                continue
            there = Path(row["path"]).exists()
            digest = sha256_of(Path(row["path"])) if there else "0" * 64
            refused = state in ("timeout", "corrupt")
            cells = {
                "key": row["key"],
                "shard": row["shard"],
                "sha256": None if refused or state == "nameless" else digest,
                "audio_sha256": None if refused or row["audio_path"] is None else "1" * 64,
                "reason": state if refused else None,
            }
            published.append(cells)
        done = pl.DataFrame(published, schema=PUBLISHED_SCHEMA)
        old = first.drop("group") if data.draw(st.booleans()) else first
        # Most of a corpus is there again, as it was or with other words: rows drawn anew would seldom be of the same files.
        after = more
        for row in before:
            change = data.draw(st.sampled_from(["nothing", "words", "words", "time", "gone"]))
            words = data.draw(st.lists(st.sampled_from(SAID), max_size=3)) if change == "words" else row["said"]
            time = row["mtime_ns"] % 2 + 1 if change == "time" else row["mtime_ns"]
            after += [row | {"said": words, "mtime_ns": time}] if change != "gone" else []
        both(inputs(after, place), layout, old=old, published=done, prune=prune, retry=retry)


def test_the_bytes_of_a_plan_are_those_of_its_rows(tmp_path: Path) -> None:
    """More rows than one row group of the file has, in parts that cut across it and in one: the same rows, the same bytes."""
    count = 110_000
    names = [f"g{number % 97}/clip_{number:07d}.mp4" for number in range(count)]
    rows = pl.DataFrame({"path": [f"/raw/{name}" for name in names], "relpath": names, "text": ["a dog"] * count})
    written = []
    for at_once in (17_011, count):
        made, _ = lay_out(conform(rows), Layout(500), tmp_path / f"{at_once}", rows_at_once=at_once)
        write_plan(made, tmp_path / "plan.parquet")
        written.append((tmp_path / "plan.parquet").read_bytes())
    told, _ = in_memory.lay_out(conform(rows), Layout(500), tmp_path / "whole")
    assert written[0] == written[1] and pl.read_parquet(written[0]).equals(told.collect())


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("abcdefgh"), st.integers(0, 99)), max_size=40),
    st.integers(1, 6),
    st.integers(1, 9),
    st.randoms(use_true_random=False),
)
def test_parts_hold_every_row_once_and_what_is_equal_together(
    rows: list[tuple[str, int]], count: int, held: int, order: random.Random
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        parts = Partitions(Path(folder), count, pl.Schema({"name": pl.String(), "n": pl.Int64()}), held=held)
        left = list(rows)
        while left:
            cut = order.randint(1, len(left))
            parts.add(pl.DataFrame(left[:cut], schema=parts.schema, orient="row"), by("name"))
            left = left[cut:]
        found = [frame.rows() for frame in parts]
        assert (
            len(found) == count
            and sorted(row for part in found for row in part) == sorted(rows)
            and parts.height == len(rows)
        )
        for name in {name for name, _ in rows}:
            there = [part for part in found if any(row[0] == name for row in part)]
            assert len(there) == 1 and [r for r in there[0] if r[0] == name] == [r for r in rows if r[0] == name]
        assert not list(Path(folder).iterdir())


@pytest.mark.parametrize("parts", [1, 7])
def test_memory_is_that_of_a_part_not_of_the_table(tmp_path: Path, parts: int) -> None:
    """What is read at a time shrinks with the parts."""
    table = Partitions(tmp_path, parts, pl.Schema({"n": pl.Int64()}), held=100)
    table.add(pl.DataFrame({"n": range(7000)}), pl.col("n"))
    assert max(frame.height for frame in table) == 7000 // parts
