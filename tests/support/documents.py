"""Reading our Markdown as a user does: the commands in it, and the snippets."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = (
    "README.md", "docs/compile.md", "docs/dataset.md", "docs/tables.md", "docs/load.md", "docs/train.md", "docs/javisdit.md",
    "docs/parallel.md", "docs/testing.md", "CONTRIBUTING.md", "LIMITS.md",
)  # fmt: skip
_FENCE = re.compile(r"^```(\w*)\s*$")
_INLINE = re.compile(r"`([^`]+)`")


@dataclass(frozen=True)
class Block:
    """A fenced or indented block: where it begins, its language, its text."""

    document: str
    line: int
    language: str
    text: str

    def commands(self) -> Iterator[tuple[int, str]]:
        """Line number and text of each shell command, continued lines joined, comments left out."""
        joined, first = "", 0
        for number, line in enumerate(self.text.splitlines(), self.line + 1):
            if not joined:
                first = number
            if line.endswith("\\"):
                joined += line[:-1]
                continue
            whole, joined = (joined + line).strip(), ""
            if whole and not whole.startswith("#"):
                yield first, whole


def blocks(document: str) -> list[Block]:
    """The blocks of a document, in order."""
    found: list[Block] = []
    held: list[str] = []
    start, language, fenced = 0, "", False
    lines = (ROOT / document).read_text().splitlines()
    for number, line in enumerate([*lines, ""], 1):
        fence = _FENCE.match(line)
        if fence and fenced:
            found.append(Block(document, start, language, "\n".join(held) + "\n"))
            held, fenced = [], False
        elif fence:
            start, language, held, fenced = number, fence[1], [], True
        elif fenced:
            held.append(line)
        elif line.startswith("    ") and (held or not lines[number - 2].strip()):
            start = start if held else number - 1
            held.append(line[4:])
        elif held:
            found.append(Block(document, start, "", "\n".join(held) + "\n"))
            held = []
    return found


def mentions(document: str) -> Iterator[tuple[int, str]]:
    """Line number and text of every `javisc …` in a document: lines of blocks, behind torchrun too, and words in running text."""
    inside = set()
    for block in blocks(document):
        inside |= set(range(block.line, block.line + block.text.count("\n") + 2))
        if block.language in ("", "sh", "bash"):
            for number, command in block.commands():
                found = re.search(r"(?:^|\s)javisc (?P<rest>.+)", command)
                if found:
                    yield number, found["rest"]
    text = (ROOT / document).read_text().splitlines()
    for number, line in enumerate(text, 1):
        if number not in inside:
            for words in _INLINE.findall(line):
                if words.startswith("javisc ") or " javisc " in words:
                    yield number, words.split("javisc ", 1)[1]


def options(document: str) -> Iterator[tuple[int, str]]:
    """Line number and name of every option that running text names."""
    for number, line in enumerate((ROOT / document).read_text().splitlines(), 1):
        for words in _INLINE.findall(line):
            for name in re.findall(r"(?<![\w-])(--[a-z][a-z0-9-]+)", words):
                yield number, name


def split(words: str) -> list[str]:
    """A command's words as a shell has them: without its comment, and up to a pipe or redirection."""
    lexer = shlex.shlex(words, posix=True, punctuation_chars="|>&;")
    lexer.whitespace_split = True
    found: list[str] = []
    for word in lexer:
        if set(word) <= set("|>&;"):
            break
        found.append(word)
    return found
