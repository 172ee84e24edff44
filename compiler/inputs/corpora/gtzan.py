"""GTZAN: 1,000 excerpts of 30 seconds; the folder is the genre and there is no table.

`jazz.00054.wav` of the common copy cannot be decoded: the build rejects it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from javisc.compiler.inputs.annotations import Problems, Source
from javisc.compiler.inputs.corpora import Corpus, Row
from javisc.compiler.inputs.identity import normal

GENRES = Source(("data/genres_original", "Data/genres_original", "genres_original", "genres"))


class Gtzan(Corpus):
    name = "gtzan"
    folders = ("GTZAN", "gtzan")
    kinds = frozenset({"audio"})
    layout = "data/genres_original/GENRE/*.wav"
    sources = (GENRES,)

    def rows(self, root: Path, files: Iterable[str], problems: Problems) -> Iterator[Row]:
        for file in files:
            if identity := self.identity(file):
                genre = identity.partition("/")[0]
                yield Row(identity, (f"music {genre}",), label=genre, where=(root / file, 0))

    def identity(self, relpath: str) -> str | None:
        *folders, genre, name = ["", "", *normal(relpath).split("/")]
        return f"{genre}/{name}" if folders[-1].lower() in ("genres_original", "genres") else None


CORPORA = (Gtzan(),)
