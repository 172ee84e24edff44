"""VGGSound: ten-second YouTube clips, each with one of 309 classes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from javisc.compiler.inputs.annotations import Problems, Table
from javisc.compiler.inputs.corpora import Corpus, Row
from javisc.compiler.inputs.identity import stem, youtube_clip, youtube_film

# The published file has no header row: its first line is a clip.
META = Table(
    ("vggsound.csv", "data/vggsound.csv", "metadata/vggsound.csv"),
    columns=("id", "start", "label", "split"),
    header=False,
)


class VggSound(Corpus):
    name = "vggsound"
    folders = ("VGGSound", "vggsound")
    kinds = frozenset({"audio", "video"})
    layout = (
        "vggsound.csv (id, start second, label, split; no header), media anywhere below: ID_000030.wav, ID_30.mp4, "
        "ID_30000_40000.mp4"
    )
    sources = (META,)

    def rows(self, root: Path, files: Iterable[str], problems: Problems) -> Iterator[Row]:
        path = META.need(root)
        for line, (youtube, start, label, split) in META.rows(root, problems):
            if not (start.isascii() and start.isdigit()):
                problems.add(path, line, f"start second {start[:40]!r} is no whole number")
                continue
            yield Row(f"{youtube}_{int(start)}", (label,), label=label, split=split, where=(path, line))

    def identity(self, relpath: str) -> str | None:
        clip = youtube_clip(stem(relpath))
        return f"{clip.youtube}_{clip.start}" if clip and clip.start is not None else None

    def film(self, identity: str) -> str | None:
        return youtube_film(identity)


CORPORA = (VggSound(),)
