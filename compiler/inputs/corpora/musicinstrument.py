"""Musical Instruments (the Kaggle set): single instruments in four classes.

In the copies of Metadata_Train.csv that go around, 700 names stand under two or three classes (drum and violin); which is right
the table does not say, so they are set aside as ambiguous. The class is the caption as it stands, typing errors included.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from javisc.compiler.inputs.annotations import Problems, Table
from javisc.compiler.inputs.corpora import Corpus, Row
from javisc.compiler.inputs.identity import normal, stem

TABLES = {
    split: Table(
        (f"data/Metadata_{split.capitalize()}.csv", f"Metadata_{split.capitalize()}.csv"), columns=("FileName", "Class")
    )
    for split in ("train", "test")
}


class MusicInstrument(Corpus):
    name = "musicinstrument"
    folders = ("MusicInstrument", "MusicalInstruments")
    kinds = frozenset({"audio"})
    layout = (
        "data/Metadata_Train.csv, data/Metadata_Test.csv (FileName, Class), Train_submission/Train_submission/*.wav, "
        "Test_submission/Test_submission/*.wav, beside data/ or in it"
    )
    sources = (tuple(TABLES.values()),)

    def rows(self, root: Path, files: Iterable[str], problems: Problems) -> Iterator[Row]:
        for split, table in TABLES.items():
            path = table.find(root)
            if path is None:
                continue
            for line, (name, label) in table.rows(root, problems):
                yield Row(f"{split}/{stem(name)}", (label,), label=label, split=split, where=(path, line))

    def identity(self, relpath: str) -> str | None:
        *folders, name = normal(relpath).split("/")
        for folder in reversed(folders):
            split = folder.lower().removesuffix("_submission")
            if split in TABLES:
                return f"{split}/{name}"
        return None


CORPORA = (MusicInstrument(),)
