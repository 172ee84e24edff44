"""The fast ways of annotations against their definitions: JSON by columns, small shards in memory, plain CSV at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from javisc.compiler.fields.long import distinct
from javisc.compiler.fields.table import _rows, cleared, read
from javisc.compiler.store.shard import small_shards, write_shard
from javisc.manifests.errors import UserError
from javisc.manifests.fields import canonical, canonical_many
from javisc.manifests.rows import read_plain_csv

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=9) | st.sampled_from(
    ['a "b"', "".join(map(chr, range(128))), "é\n\u2028\x85\ufeff", "\\", "}", "{"]
)
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "text": st.none() | TEXT,
            "texts": st.none() | st.lists(st.none() | TEXT, max_size=3),
            "score": st.none() | st.floats(allow_nan=False, allow_infinity=False),
            "count": st.none() | st.integers(-(2**63), 2**63 - 1),
            "good": st.none() | st.booleans(),
        }
    ),
    min_size=1,
    max_size=6,
)
SCHEMA = {"text": pl.String, "texts": pl.List(pl.String), "score": pl.Float64, "count": pl.Int64, "good": pl.Boolean}


@settings(max_examples=60, deadline=None)
@given(ROWS)
def test_json_made_by_columns_is_the_json_of_each_row(rows: list[dict[str, object]]) -> None:
    frame = pl.DataFrame(rows, schema=SCHEMA)
    made = canonical_many(frame, list(SCHEMA))
    assert made == [canonical(row) for row in frame.iter_rows(named=True)]
    assert all(
        json.loads(text) == {n: v for n, v in row.items() if v is not None}
        for text, row in zip(made, rows, strict=True)
    )


def test_what_json_cannot_say_is_refused_by_columns_too() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_many(pl.DataFrame({"score": [1.0, float("nan")]}), ["score"])


@settings(max_examples=20, deadline=None)
@given(
    st.lists(
        st.dictionaries(
            st.from_regex(r"[a-z0-9_]{1,95}", fullmatch=True), st.binary(max_size=1500), min_size=1, max_size=4
        ),
        min_size=1,
        max_size=3,
    )
)
def test_small_shards_made_in_memory_have_the_bytes_of_the_definition(tmp_path_factory, shards) -> None:
    folder = tmp_path_factory.mktemp("small")
    keys = pl.Series([key for files in shards for key in files])
    contents = [content for files in shards for content in files.values()]
    found = small_shards("json", keys, contents, list(map(len, shards)))
    members = zip(found.offsets, found.sizes, found.crc32, strict=True)
    for at, files in enumerate(shards):
        samples = ((key, {"json": content}) for key, content in files.items())
        wanted = write_shard(samples, folder / "tar", folder / "idx")
        assert (found.tars[at], found.indices[at]) == ((folder / "tar").read_bytes(), (folder / "idx").read_bytes())
        assert found.made[at] == wanted.made
        assert [next(members) for _ in files] == [(one.offset, one.size, one.crc32) for (one,) in wanted.samples]
    assert not list(members)


@pytest.mark.parametrize("key", ["a" * 100, "a/b", "k" * 96, "é"])
def test_a_name_that_one_field_of_the_header_does_not_hold_is_refused(key: str) -> None:
    with pytest.raises(ValueError):
        small_shards("json", pl.Series([key]), [b""], [1])


CELL = st.sampled_from(
    ["", "a", "7", " b ", "None", '"a, b"', '"say ""x"""', '""', 'a"b', '"open', "1,2", "é", "\t", "0.5", "true"]
)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(CELL, CELL, CELL), min_size=1, max_size=4), st.sampled_from(["\n", "\r\n"]), st.booleans())
def test_a_csv_read_at_once_says_what_the_strict_reader_says(tmp_path_factory, rows, end: str, last: bool) -> None:
    path = tmp_path_factory.mktemp("csv") / "t.csv"
    lines = ["key,caption,score", *(",".join(row) for row in rows)]
    path.write_bytes((end.join(lines) + end * last).encode())
    plainly = read_plain_csv(str(path))
    if plainly is None:
        return
    slow = _rows(str(path), "annotate")
    fast = cleared(plainly)
    assert fast["line"].to_list() == slow["line"].to_list()
    for name in ("key", "score"):
        assert fast[name].to_list() == slow[name].to_list(), name


@pytest.mark.parametrize("body", ["k,a\nk\n", 'k,"a\nk2,b\n', "k,a,b\n", "k,\xff\n"])
def test_a_csv_that_is_not_plain_goes_the_strict_way_and_is_refused(tmp_path: Path, body: str) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(("key,caption\n" + body).encode("latin-1"))
    assert read_plain_csv(str(path)) is None
    with pytest.raises(UserError, match="unusable"):
        read(str(path), "annotate")


def test_a_plain_csv_of_captions_is_read_at_once(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text('key,caption,score\na,"one, two",3\nb,three,\n')
    assert read_plain_csv(str(path)) is not None
    found = read(str(path), "annotate")
    assert found["texts"].to_list() == [["one, two"], ["three"]] and found["score"].to_list() == [3, None]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 3), max_size=9))
def test_distinct_numbers_are_each_once_and_in_order(numbers: list[int]) -> None:
    assert distinct(np.array(numbers, np.uint64)).tolist() == sorted(set(numbers))


def test_the_allocator_is_told_before_polars_is_loaded_and_a_users_word_stays(tmp_path: Path) -> None:
    (tmp_path / "polars.py").write_text("import os\nraise SystemExit(os.environ.get('_RJEM_MALLOC_CONF'))\n")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from javisc.cli import main; main()"
    command = [sys.executable, "-P", "-c", code]
    for wish, heard in ((None, "dirty_decay_ms:5000"), ("abort:false", "abort:false")):
        environment = {name: value for name, value in os.environ.items() if name != "_RJEM_MALLOC_CONF"}
        environment |= {} if wish is None else {"_RJEM_MALLOC_CONF": wish}
        done = subprocess.run([*command, "annotate", "a", "b"], env=environment, capture_output=True, text=True)
        assert heard in done.stderr, done
