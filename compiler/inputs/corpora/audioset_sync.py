"""AudioSet as Synchformer uses it: clips `ID_STARTMS_ENDMS` in three folders, which are its splits; its list, its filters."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from pathlib import Path

from javisc.compiler.inputs.annotations import Lines, Problems, Source
from javisc.compiler.inputs.corpora import Row
from javisc.compiler.inputs.identity import normal, youtube_film
from javisc.compiler.inputs.sync_lists import SyncCorpus

#: Rows of path, start, end, labels, phase. Only the path counts: its folder is the split, and labels are not used.
LIST = Lines(("audioset.csv", "data/audioset.csv"))
#: Parts of AudioSet, as lists of offsets name them, and the splits that they are.
PARTS = {"unbalanced": "train", "balanced": "val", "eval": "test"}


class AudioSetSync(SyncCorpus):
    name = "audioset"
    folders = ("AudioSet", "audioset")
    layout = (
        "{unbalanced_train,balanced_train,eval}_segments/ID_STARTMS_ENDMS.mp4; of Synchformer's data/ if wanted: audioset.csv "
        "(path, start, end, labels, phase), filtered_examples_audioset/*.txt"
    )
    prefix = "audioset"
    filters = Source(("filtered_examples_audioset", "data/filtered_examples_audioset"))

    def split_lists(self) -> dict[str, Lines]:
        return dict.fromkeys(("train", "val", "test"), LIST)

    def needed(self, root: Path) -> tuple[Source, ...]:
        return (LIST,) if self.published(root) else ()

    def rows(self, root: Path, files: Iterable[str], problems: Problems) -> Iterator[Row]:
        for line, why, where in self.left_out(root, problems):
            if identity := self.identity(line.split(",")[0]):
                yield Row(identity, (), excluded=why, where=where)
            else:
                problems.add(*where, f"{line[:60]!r} is no clip's name")
        if not self.published(root):
            # The folders are the splits: without the list, all that lies in them counts.
            for clip in sorted({clip for file in files if (clip := self.identity(file))}):
                yield Row(clip, (), split=PARTS[clip.split("/")[0]])
            return
        path = LIST.need(self.base(LIST, root))
        for number, line in LIST.rows(self.base(LIST, root), problems):
            # Labels hold commas, in quotes: of each line only the first field is looked at.
            name = next(csv.reader([line]), [""])[0].strip()
            identity = self.identity(name)
            if identity is not None:
                yield Row(identity, (), split=PARTS[identity.split("/")[0]], where=(path, number))
            elif name != "path":
                problems.add(path, number, f"{name[:60]!r} is no clip's name")

    def identity(self, relpath: str) -> str | None:
        """`eval/ID_0_10000`, as in the lists of offsets, from `eval_segments/ID_0_10000.mp4` or the list's own path."""
        *folders, clip = normal(relpath).split("/")
        part = folders[-1].split("_")[0] if folders else ""
        return f"{part}/{clip}" if part in PARTS and youtube_film(clip) else None

    def film(self, identity: str) -> str | None:
        return youtube_film(identity)


CORPORA = (AudioSetSync(),)
