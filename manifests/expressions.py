"""A small safe language over a table's columns, for `javisc filter`.

The text is parsed by Python's `ast` and only the node types named here are translated to polars expressions; nothing is
evaluated.

    num_frames >= 48 and loudness > -40 and lang in ("en", "de")
    2 <= duration < 30 and text is not null              "dog" in lower(text)
    contains(text, "bark") or startswith(corpus, "audio")        len(text) > 10 and not silent

Comparisons, `and or not`, `in`, `is null`, `+ - * / // %`, and the functions of `FUNCTIONS`. `"x" in column` looks for
the words in a text column, and for a whole entry in a list column. A comparison with a missing value is missing itself,
as in SQL.
"""

from __future__ import annotations

import ast
import difflib
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

from javisc.manifests.errors import UserError

MAX_LENGTH = 10_000
MAX_NODES = 2_000


@dataclass(frozen=True)
class Value:
    """A translated piece: its expression, its kind, and the words it came from (for messages)."""

    expr: pl.Expr
    kind: str  #: number, text, bool, list, null or other
    words: str
    constant: Any = None


@dataclass(frozen=True)
class Function:
    """What a function takes and gives; `build` gets the arguments' expressions."""

    takes: tuple[str, ...]
    gives: str
    build: Callable[..., pl.Expr]
    literal: bool = False  #: the last argument must be written out as text in quotes


#: name → function. Regular expressions are Rust's: their time is linear in the text.
FUNCTIONS: dict[str, Function] = {
    "abs": Function(("number",), "number", lambda x: x.abs()),
    "round": Function(("number",), "number", lambda x: x.round()),
    "floor": Function(("number",), "number", lambda x: x.floor()),
    "ceil": Function(("number",), "number", lambda x: x.ceil()),
    "lower": Function(("text",), "text", lambda x: x.str.to_lowercase()),
    "upper": Function(("text",), "text", lambda x: x.str.to_uppercase()),
    "len": Function(("text or list",), "number", lambda x: x),
    "contains": Function(("text", "text"), "bool", lambda x, y: x.str.contains(y, literal=True)),
    "startswith": Function(("text", "text"), "bool", lambda x, y: x.str.starts_with(y)),
    "endswith": Function(("text", "text"), "bool", lambda x, y: x.str.ends_with(y)),
    "matches": Function(("text", "text"), "bool", lambda x, y: x.str.contains(y), literal=True),
}

_COMPARE: dict[type[ast.cmpop], tuple[str, Callable[[pl.Expr, pl.Expr], pl.Expr]]] = {
    ast.Eq: ("==", lambda a, b: a == b),
    ast.NotEq: ("!=", lambda a, b: a != b),
    ast.Lt: ("<", lambda a, b: a < b),
    ast.LtE: ("<=", lambda a, b: a <= b),
    ast.Gt: (">", lambda a, b: a > b),
    ast.GtE: (">=", lambda a, b: a >= b),
}
_ARITHMETIC: dict[type[ast.operator], Callable[[pl.Expr, pl.Expr], pl.Expr]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.Div: lambda a, b: a / b,
    ast.FloorDiv: lambda a, b: a // b,
    ast.Mod: lambda a, b: a % b,
}
_SPELLED = {ast.BitAnd: "and", ast.BitOr: "or"}


def nearest(name: str, names: Mapping[str, Any] | list[str]) -> str:
    """`; did you mean NAME?`, or nothing where no name is near."""
    near = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def kind_of(dtype: pl.DataType) -> str:
    """The language's kind of a polars type."""
    if dtype.is_numeric():
        return "number"
    if dtype == pl.Boolean:
        return "bool"
    if dtype == pl.Null:
        return "null"
    if isinstance(dtype, pl.List):
        return "list"
    return "text" if isinstance(dtype, pl.String | pl.Categorical | pl.Enum) else "other"


def parse(text: str, schema: Mapping[str, pl.DataType]) -> list[tuple[str, pl.Expr]]:
    """Translate a condition over the columns of `schema`; its parts joined by a top-level `and` come one by one.

    Returns (words, boolean expression) pairs. Raises UserError naming what is not understood and, for a column, the
    nearest name.
    """
    if len(text) > MAX_LENGTH:
        raise UserError(
            f"the expression has {len(text)} characters, at most {MAX_LENGTH} are read: split it into several filters"
        )
    try:
        with warnings.catch_warnings(
            action="ignore"
        ):  # about odd escapes in quoted text: the user's, not the program's
            tree = ast.parse(text.strip(), mode="eval").body
        if sum(1 for _ in ast.walk(tree)) > MAX_NODES:
            raise UserError(f"the expression has more than {MAX_NODES} parts: split it into several filters")
        parts = tree.values if isinstance(tree, ast.BoolOp) and isinstance(tree.op, ast.And) else [tree]
        translator = _Translator(text.strip(), schema)
        found = [(translator.words(part), translator.boolean(part).expr) for part in parts]
    except (
        SyntaxError,
        ValueError,
        MemoryError,
        RecursionError,
    ) as error:  # what ast.parse raises on text that is no expression
        detail = f"{error.msg} at character {error.offset}" if isinstance(error, SyntaxError) else str(error)
        raise UserError(
            f"the expression {_short(text)} is not understood: {detail}; write e.g. num_frames >= 48 and lang == 'en'"
        ) from None
    for words, expr in found:
        if not expr.meta.root_names():
            raise UserError(f"{_short(words)} names no column: it would keep all rows or none")
    return found


def _short(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:77] + "...")


class _Translator:
    def __init__(self, source: str, schema: Mapping[str, pl.DataType]) -> None:
        self.source = source
        self.schema = schema

    def words(self, node: ast.AST) -> str:
        return " ".join((ast.get_source_segment(self.source, node) or "").split())

    def boolean(self, node: ast.expr) -> Value:
        value = self.value(node)
        if value.kind not in ("bool", "null"):
            raise UserError(
                f"{_short(value.words)} is a {value.kind}, a condition that is true or false is expected: compare it with "
                f"something"
            )
        return value

    def value(self, node: ast.expr) -> Value:
        method = getattr(self, f"_{type(node).__name__.lower()}", None)
        if method is None:
            raise UserError(
                f"{_short(self.words(node))} is not part of the filter language: comparisons, and/or/not, in, is null, "
                f"+ - * / // % and {', '.join(FUNCTIONS)} are"
            )
        result: Value = method(node)
        return result

    def _name(self, node: ast.Name) -> Value:
        if node.id in self.schema:
            return Value(pl.col(node.id), kind_of(self.schema[node.id]), node.id)
        spoken = {"null": None, "true": True, "false": False}
        if node.id in spoken:
            return self._literal(spoken[node.id], node)
        raise UserError(f"there is no column {node.id}{nearest(node.id, list(self.schema))}")

    def _constant(self, node: ast.Constant) -> Value:
        return self._literal(node.value, node)

    def _literal(self, value: Any, node: ast.AST) -> Value:
        words = self.words(node)
        if isinstance(value, bool):
            return Value(pl.lit(value), "bool", words, value)
        if isinstance(value, int):
            if abs(value) >= 1 << 63:
                raise UserError(f"the number {_short(words)} has more than 64 bits")
            return Value(pl.lit(value), "number", words, value)
        if isinstance(value, float):
            return Value(pl.lit(value), "number", words, value)
        if isinstance(value, str):
            return Value(pl.lit(value), "text", words, value)
        if value is None:
            return Value(pl.lit(None), "null", words)
        raise UserError(
            f"{_short(words)} is a {type(value).__name__}: numbers, quoted text, true, false and null are understood"
        )

    def _boolop(self, node: ast.BoolOp) -> Value:
        parts = [self.boolean(part).expr for part in node.values]
        combine = pl.all_horizontal if isinstance(node.op, ast.And) else pl.any_horizontal
        return Value(combine(*parts), "bool", self.words(node))

    def _unaryop(self, node: ast.UnaryOp) -> Value:
        words = self.words(node)
        if isinstance(node.op, ast.Not):
            return Value(~self.boolean(node.operand).expr, "bool", words)
        operand = self.value(node.operand)
        if not isinstance(node.op, ast.USub | ast.UAdd) or operand.kind != "number":
            raise UserError(
                f"{_short(words)}: a sign stands before numbers only; write `not` to turn a condition round"
            )
        if operand.constant is not None:
            return self._literal(-operand.constant if isinstance(node.op, ast.USub) else operand.constant, node)
        return Value(-operand.expr if isinstance(node.op, ast.USub) else operand.expr, "number", words)

    def _binop(self, node: ast.BinOp) -> Value:
        words = self.words(node)
        spelled = _SPELLED.get(type(node.op))  # type: ignore[call-overload]
        if spelled:
            raise UserError(f"{_short(words)}: write `{spelled}`; & and | bind more tightly than comparisons")
        build = _ARITHMETIC.get(type(node.op))
        if build is None:
            raise UserError(f"{_short(words)}: + - * / // and % are the arithmetic of filters")
        left, right = self.value(node.left), self.value(node.right)
        for side in (left, right):
            if side.kind != "number":
                raise UserError(f"{_short(words)}: {_short(side.words)} is a {side.kind}, a number is expected")
        # Whole numbers are computed in 64 bits: height * width must not wrap in the columns' 32.
        wide = [side.expr if side.constant is not None else side.expr * pl.lit(1, pl.Int64) for side in (left, right)]
        return Value(build(wide[0], wide[1]), "number", words)

    def _compare(self, node: ast.Compare) -> Value:
        sides = [node.left, *node.comparators]
        parts = [self._pair(a, op, b, self.words(node)) for a, op, b in zip(sides, node.ops, sides[1:], strict=False)]
        return Value(parts[0] if len(parts) == 1 else pl.all_horizontal(*parts), "bool", self.words(node))

    def _pair(self, a: ast.expr, op: ast.cmpop, b: ast.expr, words: str) -> pl.Expr:
        if isinstance(op, ast.In | ast.NotIn):
            member = self._member(a, b, words)
            return member if isinstance(op, ast.In) else ~member
        left, right = self.value(a), self.value(b)
        if isinstance(op, ast.Is | ast.IsNot):
            if right.kind != "null" or right.words in self.schema:
                raise UserError(f"{_short(words)}: `is` stands before null only; write == to compare")
            return left.expr.is_null() if isinstance(op, ast.Is) else left.expr.is_not_null()
        sign, build = _COMPARE[type(op)]
        if "null" in (left.kind, right.kind) and (left.constant is None and right.constant is None):
            if {left.words, right.words} & {"None", "null"}:
                raise UserError(f"{_short(words)}: write `is null` or `is not null`")
            return build(left.expr, right.expr)
        if left.kind != right.kind and "null" not in (left.kind, right.kind):
            raise UserError(
                f"{_short(words)}: {left.words} is a {left.kind} and {right.words} a {right.kind}: they cannot be compared"
            )
        if left.kind not in ("number", "text", "bool", "null") or (left.kind == "bool" and sign not in ("==", "!=")):
            raise UserError(f"{_short(words)}: a {left.kind} cannot be compared with {sign}")
        return build(left.expr, right.expr)

    def _member(self, a: ast.expr, b: ast.expr, words: str) -> pl.Expr:
        item = self.value(a)
        if isinstance(b, ast.Tuple | ast.List | ast.Set):
            choices = [self.value(choice) for choice in b.elts]
            for choice in choices:
                if choice.constant is None or choice.kind != item.kind:
                    raise UserError(
                        f"{_short(words)}: {_short(choice.words)} is no {item.kind} written out, as {item.words} is"
                    )
            return item.expr.is_in([choice.constant for choice in choices])
        inside = self.value(b)
        if inside.kind == "text" and item.kind == "text":
            return inside.expr.str.contains(item.expr, literal=True)
        if inside.kind == "list" and item.kind == "text":
            return inside.expr.list.contains(item.expr)
        raise UserError(f"{_short(words)}: `in` takes a list in parentheses, a text column or a list column")

    def _call(self, node: ast.Call) -> Value:
        words = self.words(node)
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        function = FUNCTIONS.get(name)
        if function is None or node.keywords:
            raise UserError(
                f"{_short(words)}: the functions of filters are {', '.join(FUNCTIONS)}{nearest(name, list(FUNCTIONS))}"
            )
        arguments = [self.value(argument) for argument in node.args]
        if len(arguments) != len(function.takes):
            raise UserError(f"{_short(words)}: {name} takes {len(function.takes)} argument(s), {len(arguments)} given")
        for argument, kind in zip(arguments, function.takes, strict=True):
            if argument.kind not in kind.split(" or "):
                raise UserError(
                    f"{_short(words)}: {_short(argument.words)} is a {argument.kind}, {name} takes a {kind}"
                )
        if name == "len":
            only = arguments[0]
            return Value(only.expr.str.len_chars() if only.kind == "text" else only.expr.list.len(), "number", words)
        if function.literal:
            self._check_pattern(arguments[-1], words)
        return Value(function.build(*(argument.expr for argument in arguments)), function.gives, words)

    def _check_pattern(self, pattern: Value, words: str) -> None:
        if pattern.constant is None:
            raise UserError(f"{_short(words)}: the pattern must be written out in quotes")
        try:
            pl.Series([""]).str.contains(pattern.constant)
        except pl.exceptions.ComputeError as error:
            raise UserError(f"{_short(words)}: the pattern is no regular expression: {error}") from None
