"""HTML by construction: whatever is not `Markup` is escaped, so that text of a dataset can only ever be text."""

from __future__ import annotations

import html
from collections.abc import Iterable
from typing import TypeAlias


class Markup(str):
    """Text that is HTML already; only `tag` and `raw` make it."""

    __slots__ = ()


Child: TypeAlias = "str | int | float | Iterable[Child] | None"

VOID = frozenset({"meta", "img", "link", "br", "source"})


def escape(value: object) -> Markup:
    """The value as HTML text, `& < > " '` escaped and control characters (which no page may hold) shown as U+FFFD."""
    if isinstance(value, Markup):
        return value
    text = "".join(c if c >= " " or c in "\n\t" else "\ufffd" for c in str(value))
    return Markup(html.escape(text.encode("utf-8", "replace").decode("utf-8"), quote=True))


def join(children: Child) -> Markup:
    """Children as HTML, one after another; None is nothing."""
    if children is None:
        return Markup("")
    if isinstance(children, str | int | float):
        return escape(children)
    return Markup("".join(join(child) for child in children))


def tag(name: str, /, *children: Child, **attributes: str | int | float | bool | None) -> Markup:
    """An element. `class_` and `for_` lose their underscore, other underscores become hyphens; None and False leave an
    attribute out."""
    parts = []
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        attribute = key.rstrip("_").replace("_", "-")
        parts.append(f" {attribute}" if value is True else f' {attribute}="{escape(value)}"')
    opening = f"<{name}{''.join(parts)}>"
    return Markup(opening if name in VOID else f"{opening}{join(children)}</{name}>")


def raw(text: str) -> Markup:
    """Text of this package that is HTML already. Never for text of a dataset."""
    return Markup(text)
