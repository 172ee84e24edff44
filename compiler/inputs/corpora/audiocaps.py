"""AudioCaps: ten-second AudioSet clips with human captions, one in train, five in val and test."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from javisc.compiler.inputs.annotations import Json, Problems, Table
from javisc.compiler.inputs.corpora import Corpus, Row
from javisc.compiler.inputs.identity import stem, youtube_clip, youtube_film

_DATAFILES = "dataset/metadata/audiocaps/datafiles"
LABELS = {
    "train": Json((f"{_DATAFILES}/audiocaps_train_label.json", "audiocaps_train_label.json")),
    "val": Json((f"{_DATAFILES}/audiocaps_val_label.json", "audiocaps_val_label.json")),
    "test": Json(
        (
            "dataset/metadata/audiocaps/testset_subset/audiocaps_test_nonrepeat_subset_0.json",
            f"{_DATAFILES}/audiocaps_test_label.json",
            "audiocaps_test_label.json",
            "audiocaps_test_nonrepeat_subset_0.json",
        )
    ),
}
TABLES = {
    split: Table((f"{split}.csv", f"dataset/{split}.csv", f"csv_files/{split}.csv"), columns=("youtube_id", "caption"))
    for split in LABELS
}


class AudioCaps(Corpus):
    name = "audiocaps"
    folders = ("AudioCaps", "audiocaps")
    kinds = frozenset({"audio"})
    layout = (
        "train.csv, val.csv, test.csv (audiocap_id, youtube_id, start_time, caption), or AudioLDM's "
        f"{_DATAFILES}/audiocaps_train_label.json (data[].wav, caption); sounds anywhere below, named by YouTube id: "
        "ID.wav, YID.wav, ID_START.wav"
    )
    sources = ((*TABLES.values(), *LABELS.values()),)

    def rows(self, root: Path, files: Iterable[str], problems: Problems) -> Iterator[Row]:
        for split, labels in LABELS.items():
            path = labels.find(root)
            if path is not None:
                yield from self._labels(labels, root, path, split, problems)
        for split, table in TABLES.items():
            path = table.find(root)
            if path is not None:
                for line, (youtube, caption) in table.rows(root, problems):
                    yield Row(youtube, (caption,), split=split, where=(path, line))

    def _labels(self, labels: Json, root: Path, path: Path, split: str, problems: Problems) -> Iterator[Row]:
        for number, item in labels.items(root, "data", problems):
            wav, caption = item.get("wav"), item.get("caption")
            clip = self.identity(wav) if isinstance(wav, str) else None
            if clip is None or not isinstance(caption, str):
                problems.add(path, number, f"item {number}: 'wav' must name a YouTube clip and 'caption' be a text")
                continue
            yield Row(clip, (caption,), split=split, where=(path, number))

    def identity(self, relpath: str) -> str | None:
        clip = youtube_clip(stem(relpath))
        return clip.youtube if clip else None

    def film(self, identity: str) -> str | None:
        return youtube_film(identity)


CORPORA = (AudioCaps(),)
