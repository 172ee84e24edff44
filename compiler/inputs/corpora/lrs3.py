"""LRS3 as SparseSync uses it: clips of its pretrain part, `pretrain/VIDEO/CLIP`, split by video."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from javisc.compiler.inputs.annotations import Problems, Source
from javisc.compiler.inputs.corpora import Row
from javisc.compiler.inputs.identity import normal, without_extension
from javisc.compiler.inputs.sync_lists import SyncCorpus, lrs3_splits


class Lrs3(SyncCorpus):
    name = "lrs3"
    folders = ("LRS3", "lrs3")
    layout = (
        "pretrain/VIDEO/CLIP.mp4, or with --lrs3-meta full YouTube videos named ID.mp4 anywhere below; of SparseSync's data/ if "
        "wanted: lrs3_{train,valid,test}.txt, filtered_examples_lrs/*.txt"
    )
    prefix = "lrs3"
    filters = Source(
        tuple(
            f"{folder}filtered_examples_{name}" for folder in ("", "data/", "sparsesync/") for name in ("lrs", "lrs3")
        )
    )

    def rows(self, root: Path, files: Iterable[str], problems: Problems) -> Iterator[Row]:
        out = set()
        for line, why, where in self.left_out(root, problems):
            identity = without_extension(line).lstrip("/")
            out.add(identity)
            yield Row(identity, (), excluded=why, where=where)
        if self.published(root):
            for line, split, where in self.splits(root, problems):
                yield Row(without_extension(line).lstrip("/"), (), split=split, where=where)
            return
        clips = {clip for file in files if (clip := self.identity(file))} - out
        for clip, split in lrs3_splits(sorted(clips)).items():
            yield Row(clip, (), split=split)

    def identity(self, relpath: str) -> str | None:
        parts = normal(relpath).split("/")
        if "pretrain" in parts:
            parts = parts[len(parts) - 1 - parts[::-1].index("pretrain") :]
        elif len(parts) == 2 and parts[0] not in ("trainval", "test"):
            parts = ["pretrain", *parts]
        return "/".join(parts) if len(parts) == 3 and parts[0] == "pretrain" else None

    def film(self, identity: str) -> str | None:
        return f"youtube/{identity.split('/')[1]}"


CORPORA = (Lrs3(),)
