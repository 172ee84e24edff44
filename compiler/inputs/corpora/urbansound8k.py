"""UrbanSound8K: 8,732 slices of up to four seconds in ten classes and ten folds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from javisc.compiler.inputs.annotations import Problems, Table
from javisc.compiler.inputs.corpora import Corpus, Row
from javisc.compiler.inputs.identity import normal, stem

META = Table(("metadata/UrbanSound8K.csv",), columns=("slice_file_name", "fold", "class"))


class UrbanSound8K(Corpus):
    name = "urbansound8k"
    folders = ("UrbanSound8K",)
    kinds = frozenset({"audio"})
    layout = "metadata/UrbanSound8K.csv (slice_file_name, fold, class, ...), audio/fold{1..10}/*.wav"
    sources = (META,)

    def rows(self, root: Path, files: Iterable[str], problems: Problems) -> Iterator[Row]:
        path = META.need(root)
        for line, (name, fold, label) in META.rows(root, problems):
            text = label.replace("_", " ")
            yield Row(f"fold{fold}/{stem(name)}", (text,), label=text, split=f"fold{fold}", where=(path, line))

    def identity(self, relpath: str) -> str | None:
        return "/".join(normal(relpath).split("/")[-2:])

    def film(self, identity: str) -> str | None:
        # foldN/RECORDING-CLASS-OCCURRENCE-SLICE: the slices of one recording on Freesound.
        parts = identity.rpartition("/")[2].split("-")
        return f"freesound/{parts[0]}" if len(parts) == 4 else None


CORPORA = (UrbanSound8K(),)
