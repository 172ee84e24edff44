"""AIST (and AIST++, which annotates the same videos): street dance in ten genres; the file name says the genre.

AIST++'s `splits/crossmodal_{train,val,test}.txt` name sequences over all cameras (`cAll`); where they are there, a video has its
sequence's split.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from javisc.compiler.inputs.annotations import Lines, Problems
from javisc.compiler.inputs.corpora import Corpus, Row
from javisc.compiler.inputs.identity import stem

#: The database's own abbreviations (https://aistdancedb.ongaaccel.jp/data_formats).
GENRES = {
    "BR": "break",
    "PO": "pop",
    "LO": "lock",
    "MH": "middle hip-hop",
    "LH": "LA-style hip-hop",
    "HO": "house",
    "WA": "waack",
    "KR": "krump",
    "JS": "street jazz",
    "JB": "ballet jazz",
}
SPLITS = {
    split: Lines((f"splits/crossmodal_{split}.txt", f"annotations/splits/crossmodal_{split}.txt"))
    for split in ("train", "val", "test")
}
# g genre, s situation, c camera, d dancers, m music, ch choreography: gBR_sBM_c01_d04_mBR0_ch01
_NAME = re.compile(r"g([A-Z]{2})_s[A-Z]{2}_c(?:\d{2}|All)(?:_d\d{2})+_m[A-Z]{2}\d_ch\d{2}", re.ASCII)


class Aist(Corpus):
    name = "aist"
    folders = ("AIST", "aist", "AIST++", "aist_plusplus", "AIST++_crop")
    kinds = frozenset({"video"})
    layout = "videos anywhere below, named gBR_sBM_c01_d04_mBR0_ch01.mp4; if wanted AIST++'s splits/crossmodal_*.txt"
    sources = ()
    heard = False

    def rows(self, root: Path, files: Iterable[str], problems: Problems) -> Iterator[Row]:
        splits = {
            _sequence(name): split
            for split, source in SPLITS.items()
            if source.find(root)
            for _, name in source.rows(root, problems)
        }
        for file in files:
            found = _NAME.match(stem(file))
            if found and (genre := GENRES.get(found[1])):
                split = splits.get(_sequence(found[0]))
                yield Row(stem(file), (f"{genre} dance",), label=genre, split=split, where=(root / file, 0))

    def identity(self, relpath: str) -> str | None:
        return stem(relpath)

    def film(self, identity: str) -> str | None:
        return f"aist/{_sequence(identity)}"  # the same dance, seen by nine cameras


def _sequence(name: str) -> str:
    return re.sub(r"_c(?:\d{2}|All)_", "_cAll_", name, count=1)


CORPORA = (Aist(),)
