"""TAVGBench: 1.7 million YouTube clips of ten seconds, each with a caption of picture and sound."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from javisc.compiler.inputs.annotations import Lines, Problems
from javisc.compiler.inputs.corpora import Corpus, Row
from javisc.compiler.inputs.identity import stem, youtube_film

_NAMES = ("release_captions_clean.txt", "release_captions.txt")
CAPTIONS = Lines((*_NAMES, *(f"{folder}/{name}" for folder in ("captions", "meta") for name in _NAMES)))


class TavgBench(Corpus):
    name = "tavgbench"
    folders = ("TAVGBench", "tavgbench", "TAVGBench_clean")
    kinds = frozenset({"video"})
    layout = "release_captions_clean.txt or release_captions.txt (lines 'ID_START_END.mp4 caption ...'), videos anywhere below"
    sources = (CAPTIONS,)
    heard = False

    def rows(self, root: Path, files: Iterable[str], problems: Problems) -> Iterator[Row]:
        path = CAPTIONS.need(root)
        for number, line in CAPTIONS.rows(root, problems):
            name, _, caption = line.partition(" ")
            if not name.lower().endswith(".mp4") or name.count("_") < 2:
                problems.add(path, number, f"starts with {name[:60]!r}, not with a name like ID_START_END.mp4")
                continue
            yield Row(stem(name), (caption,), where=(path, number))

    def identity(self, relpath: str) -> str | None:
        return stem(relpath)

    def film(self, identity: str) -> str | None:
        return youtube_film(identity) or f"tavgbench/{identity.rsplit('_', 2)[0]}"


CORPORA = (TavgBench(),)
