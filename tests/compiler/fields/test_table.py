"""A table of annotations by itself: which type a column gets, what its rows are joined by, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from javisc.compiler.fields.table import joined, name_of, read
from javisc.manifests.errors import UserError

#: Two samples of one name in two folders, and two others.
SAMPLES = pl.LazyFrame(
    {
        "key": ["k1", "k2", "k3", "k4"],
        "shard": [1, 0, 0, 1],
        "path": ["/raw/a/x.mp4", "/raw/b/x.mp4", "/raw/y.mp4", "/raw/z.mp4"],
        "relpath": ["a/x.mp4", "b/x.mp4", "y.mp4", "z.mp4"],
        "id": ["x", "x", "y", "z"],
        "source_sha256": ["a" * 64, "b" * 64, "c" * 64, "d" * 64],
    },
    schema_overrides={"shard": pl.Int32},
)


def table(folder: Path, *rows: dict[str, Any], suffix: str = "jsonl") -> pl.DataFrame:
    path = folder / f"t.{suffix}"
    if suffix == "parquet":
        pl.DataFrame(rows).write_parquet(path)
    elif suffix == "csv":
        lines = [list(rows[0]), *(row.values() for row in rows)]
        path.write_text("".join(",".join(map(str, line)) + "\n" for line in lines))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read(str(path), "annotate")


@pytest.mark.parametrize(
    ("cells", "dtype", "values"),
    [
        (["007", "12"], pl.String, ["007", "12"]),  # a number does not begin with 0: this is a name
        (["0.5", "00.5"], pl.String, ["0.5", "00.5"]),
        (["7", "-12"], pl.Int64, [7, -12]),
        (["7", ".5"], pl.Float64, [7.0, 0.5]),
        (["1e3", "2."], pl.Float64, [1000.0, 2.0]),
        (["True", "false"], pl.Boolean, [True, False]),
        (["true", "1"], pl.String, ["true", "1"]),
        (["9999999999999999999", "1"], pl.Float64, [1e19, 1.0]),
        (["None", "3"], pl.Int64, [None, 3]),
        (["", "nan"], pl.String, [None, None]),
    ],
)
def test_a_column_of_text_has_the_narrowest_type(tmp_path: Path, cells: list[str], dtype: Any, values: Any) -> None:
    frame = table(tmp_path, *({"key": f"k{at}", "x": cell} for at, cell in enumerate(cells)), suffix="csv")
    assert frame.schema["x"] == dtype and frame["x"].to_list() == values


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_an_absent_value_is_null_in_every_form(tmp_path: Path, suffix: str) -> None:
    rows = [{"key": f"k{at}", "mood": word} for at, word in enumerate(["None", " ", "nan", "calm"])]
    assert table(tmp_path, *rows, suffix=suffix)["mood"].to_list() == [None, None, None, "calm"]


def test_a_number_is_finite_or_null(tmp_path: Path) -> None:
    rows = [{"key": "k1", "x": 1.0}, {"key": "k2", "x": float("nan")}]
    assert table(tmp_path, *rows, suffix="parquet")["x"].to_list() == [1.0, None]
    rows[1]["x"] = float("-inf")
    with pytest.raises(UserError, match="line 2: x is not finite"):
        table(tmp_path, *rows, suffix="parquet")


def test_a_whole_number_of_pandas_is_one_and_a_fraction_is_not_cut_off(tmp_path: Path) -> None:
    """scene_cuts is Int32 in every manifest, still a truth: pandas writes 2.0 and NaN where a cell is absent."""
    rows = [{"key": "k1", "scene_cuts": 2.0, "still": 1.0}, {"key": "k2", "scene_cuts": float("nan"), "still": 0.0}]
    found = table(tmp_path, *rows, suffix="parquet")
    assert found.schema["scene_cuts"] == pl.Int32 and found["scene_cuts"].to_list() == [2, None]
    assert found["still"].to_list() == [True, False]
    for name, wrong in {"scene_cuts": 2.5, "still": 5.0}.items():
        for suffix in ("parquet", "jsonl"):
            with pytest.raises(UserError, match=f"line 2: {name} {wrong} is no"):
                table(tmp_path, rows[0], {**rows[0], "key": "k2", name: wrong}, suffix=suffix)


def test_a_mixture_is_a_named_fault(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="x is a int, before it was a str"):
        table(tmp_path, {"key": "k1", "x": "a"}, {"key": "k2", "x": 1})


def test_it_is_joined_by_what_matches_most_and_among_equals_by_the_most_exact(tmp_path: Path) -> None:
    rows = [{"key": "k3", "relpath": "y.mp4", "s": 1}, {"key": "gone", "relpath": "z.mp4", "s": 2}]
    found, by, unused = joined(table(tmp_path, *rows), SAMPLES, None, "t", "annotate")
    assert by == "relpath" and found.select("key", "shard", "s").rows() == [("k3", 0, 1), ("k4", 1, 2)] and unused == 0
    found, by, unused = joined(table(tmp_path, *rows), SAMPLES, "key", "t", "annotate")
    assert by == "key" and found.select("key", "s").rows() == [("k3", 1)] and unused == 1
    assert joined(table(tmp_path, rows[0]), SAMPLES, None, "t", "annotate")[1] == "key"
    with pytest.raises(UserError, match="--by id: annotate t has no such column"):
        joined(table(tmp_path, *rows), SAMPLES, "id", "t", "annotate")


def test_one_name_of_two_samples_is_refused_and_their_keys_are_not(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the id 'x' stands for several samples .*/raw/a/x.mp4 and /raw/b/x.mp4"):
        joined(table(tmp_path, {"id": "x", "s": 1}), SAMPLES, None, "t", "annotate")
    found, _, _ = joined(table(tmp_path, {"relpath": "b/x.mp4", "s": 1}), SAMPLES, None, "t", "annotate")
    assert found.select("key", "s").rows() == [("k2", 1)]


def test_captions_of_one_sample_are_gathered_in_order_and_other_columns_must_agree(tmp_path: Path) -> None:
    rows = [{"key": "k1", "text": text, "s": s} for text, s in (("b", 1), ("a", None), ("b", 1))]
    found, _, unused = joined(table(tmp_path, *rows), SAMPLES, None, "t", "annotate")
    assert (
        found.drop("of_sha256").to_dicts() == [{"key": "k1", "shard": 1, "texts": ["b", "a"], "s": 1}] and unused == 0
    )
    rows[1]["s"] = 2
    with pytest.raises(UserError, match=r"key 'k1' has two values of s, 1 and 2 \(lines 1, 2, 3\)"):
        joined(table(tmp_path, *rows), SAMPLES, None, "t", "annotate")


def test_a_row_that_says_nothing_annotates_nothing(tmp_path: Path) -> None:
    rows = [{"key": "k1", "s": None, "m": ""}, {"key": "k4", "s": 0, "m": None}, {"key": "k2", "s": None, "m": "None"}]
    found, _, _ = joined(table(tmp_path, *rows), SAMPLES, None, "t", "annotate")
    assert found["key"].to_list() == ["k4"]


def test_rows_stand_by_shard_and_key(tmp_path: Path) -> None:
    rows = [{"key": key, "s": at} for at, key in enumerate(["k4", "k3", "k1", "k2"])]
    found, _, _ = joined(table(tmp_path, *rows), SAMPLES, None, "t", "annotate")
    assert found.select("key", "s").rows() == [("k2", 3), ("k3", 1), ("k1", 2), ("k4", 0)]


def test_a_fields_name_is_its_tables(tmp_path: Path) -> None:
    given = {"a/Qwen 2.5.csv": "qwen_2_5", "07.csv": "t_07", "é.tsv": "t__", "x" * 80 + ".csv": "x" * 64}
    assert {path: name_of(path) for path in given} == given


@given(st.text(min_size=1, max_size=90).filter(lambda text: "/" not in text and "\0" not in text))
def test_every_name_is_one(stem: str) -> None:
    from javisc.manifests.fields import NAME

    assert NAME.fullmatch(name_of(f"{stem}.csv"))


def test_every_kind_of_number_of_parquet_is_a_number(tmp_path: Path) -> None:
    """Decimals of data bases and hashes without a sign are; what no column of a manifest holds is refused by name."""
    path = str(tmp_path / "t.parquet")
    frame = pl.DataFrame({"key": ["a", "b"]})
    frame.with_columns(
        price=pl.Series(["1.50", None]).cast(pl.Decimal(10, 2)), hash=pl.Series([7, 2**63 - 1], dtype=pl.UInt64)
    ).write_parquet(path)
    found = read(path, "annotate")
    assert found["price"].to_list() == [1.5, None] and found["hash"].to_list() == [7, 2**63 - 1]
    assert (found["price"].dtype, found["hash"].dtype) == (pl.Float64, pl.Int64)
    frame.with_columns(hash=pl.Series([1, 2**64 - 1], dtype=pl.UInt64)).write_parquet(path)
    with pytest.raises(UserError, match="column hash has 18446744073709551615: numbers end at"):
        read(path, "annotate")
    frame.with_columns(when=pl.Series([1, 2]).cast(pl.Date)).write_parquet(path)
    with pytest.raises(UserError, match="column when is Date"):
        read(path, "annotate")


@pytest.mark.parametrize(
    ("dtype", "cell"),
    [
        (pl.Categorical(), "a dog"),
        (pl.Enum(["a dog"]), "a dog"),
        (pl.List(pl.Categorical()), ["a dog"]),
        (pl.Array(pl.String, 1), ["a dog"]),
    ],
    ids=str,
)
def test_captions_of_any_type_of_text_are_captions(tmp_path: Path, dtype: Any, cell: Any) -> None:
    pl.DataFrame({"key": ["k1"], "text": pl.Series([cell], dtype=dtype)}).write_parquet(tmp_path / "t.parquet")
    assert read(str(tmp_path / "t.parquet"), "annotate")["texts"].to_list() == [["a dog"]]
