"""Clotho: Freesound clips of 15 to 30 seconds with five captions each, all of which are kept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from javisc.compiler.inputs.annotations import Problems, Table
from javisc.compiler.inputs.corpora import Corpus, Row
from javisc.compiler.inputs.identity import normal, stem

CAPTIONS = tuple(f"caption_{number}" for number in range(1, 6))
SPLITS = {"development": "train", "validation": "val", "evaluation": "test"}
TABLES = {
    part: Table(
        (f"clotho_captions_{part}.csv", f"clotho_csv_files/clotho_captions_{part}.csv"),
        columns=("file_name", *CAPTIONS),
    )
    for part in SPLITS
}


class Clotho(Corpus):
    name = "clotho"
    folders = ("Clotho", "clotho", "CLOTHO_v2.1")
    kinds = frozenset({"audio"})
    layout = (
        "clotho_captions_{development,validation,evaluation}.csv (file_name, caption_1 ... caption_5), "
        "development/*.wav, validation/*.wav, evaluation/*.wav"
    )
    sources = (tuple(TABLES.values()),)

    def rows(self, root: Path, files: Iterable[str], problems: Problems) -> Iterator[Row]:
        for part, table in TABLES.items():
            path = table.find(root)
            if path is None:
                continue
            for line, (name, *captions) in table.rows(root, problems):
                yield Row(f"{part}/{stem(name)}", tuple(captions), split=SPLITS[part], where=(path, line))

    def identity(self, relpath: str) -> str | None:
        # File names repeat between the parts; the nearest folder named after one says which it is.
        *folders, name = normal(relpath).split("/")
        part = next((folder for folder in reversed(folders) if folder in SPLITS), None)
        return f"{part}/{name}" if part else None


CORPORA = (Clotho(),)
