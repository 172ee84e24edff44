"""ESC-50: 2,000 five-second recordings in 50 classes and five folds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from javisc.compiler.inputs.annotations import Problems, Table
from javisc.compiler.inputs.corpora import Corpus, Row
from javisc.compiler.inputs.identity import stem

META = Table(("meta/esc50.csv",), columns=("filename", "fold", "category"))


class Esc50(Corpus):
    name = "esc50"
    folders = ("ESC50", "ESC-50", "ESC-50-master")
    kinds = frozenset({"audio"})
    layout = "meta/esc50.csv (filename, fold, category, ...), audio/*.wav"
    sources = (META,)

    def rows(self, root: Path, files: Iterable[str], problems: Problems) -> Iterator[Row]:
        path = META.need(root)
        for line, (filename, fold, category) in META.rows(root, problems):
            text = category.replace("_", " ")
            yield Row(stem(filename), (text,), label=text, split=f"fold{fold}", where=(path, line))

    def identity(self, relpath: str) -> str | None:
        return stem(relpath)

    def film(self, identity: str) -> str | None:
        # FOLD-RECORDING-TAKE-CLASS: the clips of one recording on Freesound.
        parts = identity.split("-")
        return f"freesound/{parts[1]}" if len(parts) == 4 else None


CORPORA = (Esc50(),)
