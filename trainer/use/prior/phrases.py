"""What to separate: descriptions of a clip's sounds, from a table, or phrases of its caption in the order of the text."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from javisc.manifests.errors import UserError
from javisc.manifests.rows import Faults, open_bytes, read_rows
from javisc.trainer.data.sources.pool_names import stem

#: Where one sound's phrase ends and the next begins.
_BETWEEN = re.compile(
    r"[;!?\n、，。；！？]|(?<!\d)[,.]|[,.](?!\d)"
    r"|\b(?:and then|followed by|accompanied by|along with|together with|as well as|while|whilst|then|and|with|as|before"
    r"|after|when)\b",
    re.IGNORECASE,
)
#: More than these of one clip, and longer ones, are no descriptions.
MAX_COUNT, MAX_LENGTH, MAX_BYTES = 32, 300, 1 << 30
_NAMES, _TEXTS = ("key", "relpath", "id"), ("description", "descriptions", "text", "caption")


def usable(found: Iterable[str]) -> list[str]:
    """Descriptions in their order, each once; as in the reference those with parentheses or "background", and "None", are
    left out, and so is what holds no letter."""
    kept: dict[str, str] = {}
    for text in found:
        text = " ".join(text.split())[:MAX_LENGTH]
        plain = text.casefold()
        if any(map(str.isalnum, text)) and plain != "none" and "background" not in plain and not set(text) & set("()"):
            kept.setdefault(plain, text)
    return list(kept.values())[:MAX_COUNT]


def phrases(caption: str) -> list[str]:
    """A caption's phrases that name a sound of their own."""
    depth, cut = 0, []
    for letter in caption:  # what stands in parentheses is no phrase, and takes the one around it along
        depth = max(0, depth + (letter == "(") - (letter == ")"))
        cut.append("(" if depth else letter)
    return usable(piece.strip(" -'\"") for piece in _BETWEEN.split("".join(cut)))


class Descriptions:
    """Descriptions of clips from a table (CSV, TSV, parquet, JSONL: one of key, relpath and id, and a `description` a row or a
    list of `descriptions`) or from JSON as the reference's, {name: [descriptions]}.

    items: the clips, as often as they are asked for. Raises UserError, also if no row belongs to a clip, or none can be used.
    """

    def __init__(self, path: str, items: Callable[[], Iterable[Mapping[str, Any]]]) -> None:
        self.path = path
        self.found: dict[str, list[str]] = {}
        for name, texts in _json(path) if Path(path).suffix.lower() == ".json" else _table(path):
            self.found.setdefault(name, []).extend(texts)
        self._shared = self._repeated(items())
        named, first = 0, None
        for item in items():
            first = first or item
            if (said := self._said(item)) is not None:
                named += 1
                if usable(said):
                    return
        if named:
            raise UserError(
                f"--descriptions {self.path}: {named} clips are in it, and nothing that it says of them can be looked for: "
                'texts with parentheses, with "background", and "None" are left out'
            )
        example = next(iter(self.found), "nothing")
        assert first is not None, "a dataset has clips"
        raise UserError(
            f"--descriptions {self.path}: none of its {len(self.found)} names is a clip's: it has {example[:100]!r}, a "
            f"clip is {str(first['relpath'])[:100]!r} with the key {first['key']!r}"
        )

    def of(self, item: Mapping[str, Any]) -> list[str]:
        """What the table says of a clip: by key, by path, or by id where that is one clip's."""
        return usable(self._said(item) or [])

    def _said(self, item: Mapping[str, Any]) -> list[str] | None:
        names = [item["key"], item["relpath"] or "", stem(item["relpath"] or "")]
        names += [name for name in [str(item["id"])] if name not in self._shared]
        return next((self.found[name] for name in names if name in self.found), None)

    def _repeated(self, items: Iterable[Mapping[str, Any]]) -> set[str]:
        """Ids that are in the table and more than one clip's."""
        once, several = set[str](), set[str]()
        for item in items:
            if (name := str(item["id"])) in self.found:
                (several if name in once else once).add(name)
        return several


def _texts(value: Any) -> list[str]:
    found = value if isinstance(value, list) else [value]
    return [text for text in found if isinstance(text, str)]


def _json(path: str) -> Iterable[tuple[str, list[str]]]:
    try:
        with open_bytes(path) as stream:
            raw = stream.read(MAX_BYTES + 1)
        found = json.loads(raw) if len(raw) <= MAX_BYTES else None
    except (OSError, ValueError, ImportError, RecursionError) as error:
        raise UserError(f"--descriptions {path} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise UserError(f"--descriptions {path}: JSON of the form {{name: [descriptions]}} is allowed")
    return [(name, _texts(value)) for name, value in found.items()]


def _table(path: str) -> Iterable[tuple[str, list[str]]]:
    faults = Faults(f"--descriptions {path}")
    for line, row in read_rows(path, faults):
        column = next((name for name in _TEXTS if name in row), None)
        names = [name for name in _NAMES if name in row]
        if column is None or not names:
            raise UserError(
                f"--descriptions {path}: line {line} has no {'description' if column is None else 'name'}; a table needs one of "
                f"{', '.join(_NAMES)}, and one of {', '.join(_TEXTS)}"
            )
        value = row[column]
        if isinstance(value, str) and column == "descriptions" and value.startswith("["):
            try:
                value = json.loads(value)
            except ValueError:
                faults.add(line, "descriptions is no JSON list")
                continue
        if (name := next((row[name] for name in names if row[name]), None)) is not None:
            yield str(name), _texts(value)
    faults.check()
