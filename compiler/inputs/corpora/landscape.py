"""Landscape: nature scenes in nine classes, as MM-Diffusion split them; the class is all that is said about a clip."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from javisc.compiler.inputs.annotations import Problems
from javisc.compiler.inputs.corpora import Corpus, Row
from javisc.compiler.inputs.identity import normal

CLASSES = (
    "explosion",
    "fire_crackling",
    "raining",
    "splashing_water",
    "squishing_water",
    "thunder",
    "underwater_bubbling",
    "waterfall_burbling",
    "wind_noise",
)


class Landscape(Corpus):
    name = "landscape"
    folders = ("landscape", "Landscape")
    kinds = frozenset({"video"})
    layout = f"train/*.mp4 and test/*.mp4, or CLASS/*.mp4; names or folders start with the class: {', '.join(CLASSES)}"
    sources = ()

    def rows(self, root: Path, files: Iterable[str], problems: Problems) -> Iterator[Row]:
        for file in files:
            *folders, name = normal(file).lower().split("/")
            label = next((label for label in CLASSES if name.startswith(label) or label in folders), None)
            if label:
                split = next((folder for folder in folders if folder in ("train", "val", "test")), None)
                yield Row(normal(file), (label.replace("_", " "),), label=label, split=split, where=(root / file, 0))


CORPORA = (Landscape(),)
