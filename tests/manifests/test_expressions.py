"""The filter language against Python's own meaning of the same words, and what it must refuse."""

from __future__ import annotations

import ast
import operator
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from javisc.manifests.errors import UserError
from javisc.manifests.expressions import parse

SCHEMA = {
    "n": pl.Int32(),
    "x": pl.Float32(),
    "text": pl.String(),
    "texts": pl.List(pl.String()),
    "flag": pl.Boolean(),
    "num_frames": pl.Int32(),
    "lang": pl.Categorical(),
}
ROWS = [
    {
        "n": 3,
        "x": 0.5,
        "text": "A dog barks",
        "texts": ["a dog", "barking"],
        "flag": True,
        "num_frames": 50000,
        "lang": "en",
    },
    {"n": -7, "x": -2.0, "text": "", "texts": [], "flag": False, "num_frames": 60000, "lang": "de"},
    {"n": 0, "x": 8.25, "text": "rain (heavy)", "texts": ["rain"], "flag": False, "num_frames": 1, "lang": "en"},
]
TABLE = pl.DataFrame(ROWS, schema=SCHEMA)


def keep(text: str, table: pl.DataFrame = TABLE) -> list[bool | None]:
    parts = [expr.alias(str(i)) for i, (_, expr) in enumerate(parse(text, table.schema))]
    return table.lazy().select(pl.all_horizontal(parts)).collect().to_series().to_list()


CALLS: dict[str, Any] = {
    "len": len,
    "abs": abs,
    "lower": str.lower,
    "upper": str.upper,
    "contains": operator.contains,
    "startswith": str.startswith,
    "endswith": str.endswith,
}


@pytest.mark.parametrize(
    "text",
    [
        "n >= 0 and x < 1",
        "not flag or n == -7",
        "0 <= n < 3 < x",
        "-8 < n < 2",
        "n in (3, 0) and n not in [0]",
        "'dog' in text",
        "'DOG' in upper(text)",
        "'(' in text",
        "'rain' in texts",
        "text in {'', 'x'}",
        "len(text) > 3 and len(texts) == 2",
        "contains(text, 'dog') or startswith(text, 'rain') or endswith(lower(text), 'zzz')",
        "n * 2 + 1 > abs(x) - 3 / 2",
        "num_frames * num_frames > 2500000000",
        "n % 2 == 1 and n // 2 == 1",
        "flag == True",
        "lang == 'en'",
        "lang in ('de', 'fr')",
        "-n < +2",
        "((flag))",
    ],
)
def test_expressions_mean_what_python_means(text: str) -> None:
    expected = [bool(eval(text, {"__builtins__": {}}, row | CALLS)) for row in ROWS]
    assert keep(text) == expected


@st.composite
def conditions(draw: st.DrawFn, depth: int = 3) -> str:
    kind = draw(
        st.sampled_from(["compare", "member", "flag", "and", "or", "not"] if depth else ["compare", "member", "flag"])
    )
    if kind in ("and", "or"):
        return f"({draw(conditions(depth - 1))} {kind} {draw(conditions(depth - 1))})"
    if kind == "not":
        return f"(not {draw(conditions(depth - 1))})"
    if kind == "flag":
        return "flag"
    if kind == "member":
        return f"n in {tuple(draw(st.lists(st.integers(-8, 8), min_size=2, max_size=4)))}"
    sign = draw(st.sampled_from(["<", "<=", "==", "!=", ">", ">="]))
    return f"({draw(numbers())} {sign} {draw(numbers())})"


@st.composite
def numbers(draw: st.DrawFn, depth: int = 2) -> str:
    kind = draw(st.sampled_from(["literal", "column", "sum"] if depth else ["literal", "column"]))
    if kind == "sum":
        return f"({draw(numbers(depth - 1))} {draw(st.sampled_from(['+', '-', '*']))} {draw(numbers(depth - 1))})"
    return draw(st.sampled_from(["n", "x"])) if kind == "column" else str(draw(st.integers(-100, 100)))


@settings(max_examples=150, deadline=None)
@given(conditions())
def test_generated_conditions_mean_what_python_means(text: str) -> None:
    # A part that names no column is refused, so one is added; no row has n > 99.
    assert keep(f"({text}) or n > 99") == [bool(eval(text, {"__builtins__": {}}, dict(row))) for row in ROWS]


def test_missing_values_meet_nothing_but_is_null() -> None:
    table = pl.DataFrame({"x": [1.0, None], "t": [None, "a"]})
    assert keep("x > 0", table) == [True, None]
    assert keep("x is null or x > 0", table) == [True, True]
    assert keep("t is not None and x is null", table) == [False, True]
    assert keep("not x > 0", table) == [False, None]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("num_frame > 3", "no column num_frame; did you mean num_frames"),
        ("__import__('os').system('true')", "functions of filters"),
        ("text.__class__ == 1", "not part of the filter language"),
        ("[n for n in (1,2)]", "not part of the filter language"),
        ("(lambda: 1)()", "functions of filters"),
        ("n if flag else x", "not part of the filter language"),
        ("f'{n}' == 'x'", "not part of the filter language"),
        ("(n := 3) > 2", "not part of the filter language"),
        ("text[0] == 'A'", "not part of the filter language"),
        ("n ** 99999999 > 1", "are the arithmetic"),
        ("n > 1 & x < 2", "write `and`"),
        ("n > 'a'", "cannot be compared"),
        ("text + 1 > 2", "is a text, a number is expected"),
        ("n + 1", "is a number, a condition"),
        ("n == None", "write `is null`"),
        ("n is 3", "stands before null only"),
        ("lenn(text) > 2", "did you mean len"),
        ("len(n) > 2", "len takes a text or list"),
        ("contains(text)", "takes 2 argument"),
        ("matches(text, '(')", "no regular expression"),
        ("matches(text, text)", "written out in quotes"),
        ("n in ('a', 'b')", "is no number written out"),
        ("n in x", "`in` takes a list"),
        ("1" + "0" * 30 + " > n", "64 bits"),
        ("n > b'x'", "is a bytes"),
        ("1 < 2 and n > 1", "names no column"),
        ("n >", "is not understood"),
        ("", "is not understood"),
        ("n > 1; import os", "is not understood"),
        ("(" * 4000 + "flag" + ")" * 4000, "not understood"),
        ("not " * 3000 + "flag", "parts|understood|characters"),
        ("flag or " * 2000 + "flag", "characters"),
        ("n>1 or " * 1400 + "flag", "more than"),
        ("9" * 6000 + " > n", "understood|64 bits"),
    ],
)
def test_what_is_refused_is_one_line(text: str, told: str) -> None:
    with pytest.raises(UserError, match=told) as caught:
        parse(text, SCHEMA)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="ntexflag numrs()[]{}<>=!'\"+-*/%&|.,:;01_\\\n@~^", max_size=40))
def test_no_text_makes_anything_but_an_expression_or_a_user_error(text: str) -> None:
    try:
        parts = parse(text, SCHEMA)
    except UserError:
        return
    ast.parse(text.strip(), mode="eval")
    TABLE.lazy().select(pl.all_horizontal([expr for _, expr in parts])).collect()
