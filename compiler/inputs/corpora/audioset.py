"""AudioSet: ten-second YouTube clips with one or more of 527 labels; the caption is the labels in lower case."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from javisc.compiler.inputs.annotations import Problems, Table
from javisc.compiler.inputs.corpora import Corpus, Row
from javisc.compiler.inputs.identity import stem, youtube_clip, youtube_film

NAMES = Table(("class_labels_indices.csv", "metadata/class_labels_indices.csv"), columns=("mid", "display_name"))
SEGMENTS = {
    part: Table(
        (f"{part}_segments.csv", f"metadata/{part}_segments.csv"),
        columns=("YTID", "start_seconds", "end_seconds", "positive_labels"),
        header=False,
        comment="#",
    )
    for part in ("balanced_train", "unbalanced_train", "eval")
}
SPLITS = {"balanced_train": "train", "unbalanced_train": "train_unbalanced", "eval": "test"}


class AudioSet(Corpus):
    name = "audioset"
    folders = ("AudioSet", "audioset")
    kinds = frozenset({"audio", "video"})
    layout = (
        "class_labels_indices.csv (mid, display_name), {balanced_train,unbalanced_train,eval}_segments.csv as published; media "
        "anywhere below, named by YouTube id: audio/bal_train/ID.flac, YID.wav, ID_30000_40000.mp4"
    )
    sources = (NAMES, tuple(SEGMENTS.values()))

    def rows(self, root: Path, files: Iterable[str], problems: Problems) -> Iterator[Row]:
        names = {mid: name for _, (mid, name) in NAMES.rows(root, problems)}
        for part, table in SEGMENTS.items():
            path = table.find(root)
            if path is None:
                continue
            for line, (youtube, _, _, mids) in table.rows(root, problems):
                labels = [names.get(mid.strip()) for mid in mids.split(",")]
                known = [label for label in labels if label]
                if len(known) < len(labels):
                    problems.add(
                        path, line, f"{youtube[:20]}: a label of {mids[:200]} is not in class_labels_indices.csv"
                    )
                caption = ", ".join(label.lower() for label in known)
                yield Row(youtube, (caption,), label="; ".join(known) or None, split=SPLITS[part], where=(path, line))

    def identity(self, relpath: str) -> str | None:
        clip = youtube_clip(stem(relpath))
        return clip.youtube if clip else None

    def film(self, identity: str) -> str | None:
        return youtube_film(identity)


CORPORA = (AudioSet(),)
