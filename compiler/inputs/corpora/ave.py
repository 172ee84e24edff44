"""AVE: 4,143 ten-second AudioSet videos in 28 classes of events that are both seen and heard."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from javisc.compiler.inputs.annotations import Problems, Table
from javisc.compiler.inputs.corpora import Corpus, Row
from javisc.compiler.inputs.identity import stem, youtube_clip, youtube_film

TABLES = {
    split: Table(
        (f"{split}Set.txt", f"data/{split}Set.txt"),
        columns=("Category", "VideoID", "Quality", "StartTime", "EndTime"),
        header=False,
        delimiter="&",
        comment="Category&",
    )
    for split in ("train", "val", "test")
}


class Ave(Corpus):
    name = "ave"
    folders = ("AVE_Dataset", "AVE")
    kinds = frozenset({"video"})
    layout = "trainSet.txt, valSet.txt, testSet.txt (Category&VideoID&Quality&StartTime&EndTime), AVE/ID.mp4"
    sources = (tuple(TABLES.values()),)

    def rows(self, root: Path, files: Iterable[str], problems: Problems) -> Iterator[Row]:
        for split, table in TABLES.items():
            path = table.find(root)
            if path is None:
                continue
            # A video with several events stands on several lines.
            events: dict[str, list[str]] = {}
            where: dict[str, int] = {}
            for line, (category, youtube, *_) in table.rows(root, problems):
                events.setdefault(youtube, []).append(category)
                where.setdefault(youtube, line)
            for youtube, categories in events.items():
                names = list(dict.fromkeys(categories))
                caption = ", ".join(name.lower() for name in names)
                yield Row(youtube, (caption,), label="; ".join(names), split=split, where=(path, where[youtube]))

    def identity(self, relpath: str) -> str | None:
        clip = youtube_clip(stem(relpath))
        return clip.youtube if clip else None

    def film(self, identity: str) -> str | None:
        return youtube_film(identity)


CORPORA = (Ave(),)
