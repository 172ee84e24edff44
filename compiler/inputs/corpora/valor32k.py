"""VALOR-32K: ten-second AudioSet videos with a caption of what is seen and heard."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from javisc.compiler.inputs.annotations import Json, Problems
from javisc.compiler.inputs.corpora import Corpus, Row
from javisc.compiler.inputs.identity import normal, stem, youtube_film

DESCRIPTIONS = {
    split: Json((f"desc_{split}.json", f"VALOR-32K-annotations/desc_{split}.json"))
    for split in ("train", "val", "test")
}


class Valor32k(Corpus):
    name = "valor32k"
    folders = ("VALOR-32K", "valor32k")
    kinds = frozenset({"video"})
    layout = "desc_train.json, desc_val.json, desc_test.json ([].video_id, desc), videos anywhere below: VIDEO_ID.mp4"
    sources = (tuple(DESCRIPTIONS.values()),)
    heard = False

    def rows(self, root: Path, files: Iterable[str], problems: Problems) -> Iterator[Row]:
        for split, source in DESCRIPTIONS.items():
            path = source.find(root)
            if path is None:
                continue
            for number, item in source.items(root, None, problems):
                name, caption = item.get("video_id"), item.get("desc")
                if isinstance(name, str) and isinstance(caption, str):
                    yield Row(normal(name), (caption,), split=split, where=(path, number))
                else:
                    problems.add(path, number, f"item {number}: 'video_id' and 'desc' must be texts")

    def identity(self, relpath: str) -> str | None:
        return stem(relpath)

    def film(self, identity: str) -> str | None:
        return youtube_film(identity)


CORPORA = (Valor32k(),)
