"""MACS: urban scenes of ten seconds with two to five captions by people whose competence was estimated."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from javisc.compiler.inputs.annotations import Problems, Table, Yaml
from javisc.compiler.inputs.corpora import Corpus, Row
from javisc.compiler.inputs.identity import stem

CAPTIONS = Yaml(("MACS.yaml",))
COMPETENCE = Table(("MACS_competence.csv",), columns=("annotator_id", "competence"), delimiter="\t")


class Macs(Corpus):
    name = "macs"
    folders = ("MACS", "macs")
    kinds = frozenset({"audio"})
    layout = (
        "MACS.yaml (files[].filename, annotations[].annotator_id, sentence), MACS_competence.csv (tab-separated: annotator_id, "
        "competence), audio/*.wav"
    )
    sources = (CAPTIONS, COMPETENCE)

    def rows(self, root: Path, files: Iterable[str], problems: Problems) -> Iterator[Row]:
        competence = self._competence(root, problems)
        path = CAPTIONS.need(root)
        for number, item in CAPTIONS.items(root, "files", problems):
            name, annotations = item.get("filename"), item.get("annotations")
            if not isinstance(name, str) or not isinstance(annotations, list):
                problems.add(path, number, f"file {number}: 'filename' must be a text and 'annotations' a list")
                continue
            said = [
                entry for entry in annotations if isinstance(entry, dict) and isinstance(entry.get("sentence"), str)
            ]
            if len(said) < len(annotations):
                problems.add(path, number, f"{name[:200]}: an annotation without 'sentence'")
            # A stable sort: of equally competent annotators the first in the file speaks.
            said.sort(key=lambda entry: -competence.get(_id(entry.get("annotator_id")), -math.inf))
            yield Row(stem(name), tuple(entry["sentence"] for entry in said), where=(path, number))

    def _competence(self, root: Path, problems: Problems) -> dict[str, float]:
        path = COMPETENCE.need(root)
        found = {}
        for line, (annotator, value) in COMPETENCE.rows(root, problems):
            try:
                number = float(value)
            except ValueError:
                number = math.nan
            if math.isfinite(number):
                found[_id(annotator)] = number
            else:
                problems.add(path, line, f"competence {value[:40]!r} of annotator {annotator[:40]!r} is no number")
        return found

    def identity(self, relpath: str) -> str | None:
        return stem(relpath)


def _id(annotator: Any) -> str:
    """Annotator ids are numbers in the YAML and text in the table: `30`, `"30"` and `"030"` are one person."""
    text = str(annotator).strip()
    return text.lstrip("0") or text


CORPORA = (Macs(),)
