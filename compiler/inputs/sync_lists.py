"""SparseSync's splits: the lists its repository brings (in the corpus or in a folder of their own), or its rule without them."""

from __future__ import annotations

import copy
import random
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import ClassVar, Self

from javisc.compiler.inputs.annotations import Lines, Problems, Source, missing
from javisc.compiler.inputs.corpora import Corpus

#: The seed of SparseSync's configurations; splits are shuffled by it, offsets drawn by the next one.
SEED = 1337
#: Our names of the splits and SparseSync's.
SPLITS = {"train": "train", "val": "valid", "test": "test"}


class SyncCorpus(Corpus):
    """A corpus of `javisc build sync`: its split lists, or, without them, SparseSync's rule; its lists of clips to leave out.

    `lists` is the folder of SparseSync's lists, its `data/`; without it they are looked for in the corpus root.
    """

    kinds = frozenset({"sync"})
    captioned = False
    sources = ()
    #: Prefix of the split lists, and the folder of the lists of clips to leave out.
    prefix: ClassVar[str]
    filters: ClassVar[Source]
    lists: Path | None = None

    def with_lists(self, lists: Path | None) -> Self:
        """A copy that looks for SparseSync's lists in `lists` first."""
        made = copy.copy(self)
        made.lists = lists
        return made

    def base(self, source: Source, root: Path) -> Path:
        """Where `source` is looked for: the folder of the lists if it is there, else the corpus root."""
        return self.lists if self.lists is not None and source.find(self.lists) is not None else root

    def has_lists(self, folder: Path) -> bool:
        """True if `folder` holds a split list or the lists of clips to leave out."""
        return any(source.find(folder) for source in (*self.split_lists().values(), self.filters))

    def needed(self, root: Path) -> tuple[Source, ...]:
        """What a build cannot do without, where the lists of `root` or of `lists` are as they are."""
        return ()

    def missing(self, root: Path) -> list[str]:
        if not root.is_dir():
            return [f"{root} is no folder"]
        return [report for source in self.needed(root) for report in missing((source,), self.base(source, root))]

    def offset_lists(self, root: Path) -> tuple[Path, ...]:
        """Lists of fixed offsets that belong to the corpus itself: taken where the user names none."""
        return ()

    def split_lists(self) -> dict[str, Lines]:
        """The split lists by our names of the splits."""
        return {
            ours: Lines((f"{self.prefix}_{theirs}.txt", f"data/{self.prefix}_{theirs}.txt"))
            for ours, theirs in SPLITS.items()
        }

    def published(self, root: Path) -> bool:
        """True if all three split lists are there. The rule makes all three anew where one is missing."""
        return all(source.find(self.base(source, root)) for source in self.split_lists().values())

    def splits(self, root: Path, problems: Problems) -> Iterator[tuple[str, str, tuple[Path, int]]]:
        """Yield (line, split, where) of the published split lists."""
        for split, source in self.split_lists().items():
            base = self.base(source, root)
            path = source.need(base)
            for number, line in source.rows(base, problems):
                yield line, split, (path, number)

    def left_out(self, root: Path, problems: Problems) -> Iterator[tuple[str, str, tuple[Path, int]]]:
        """Yield (line, why, where) of every list of clips to leave out."""
        folder = self.filters.find(self.base(self.filters, root))
        if folder is None:
            return
        for path in sorted(folder.glob("*.txt")):
            for number, line in Lines((path.name,)).rows(folder, problems):
                yield line, f"is left out by {path.name}", (path, number)


def lrs3_splits(clips: Iterable[str], seed: int = SEED) -> dict[str, str]:
    """Clip → train, val or test, disjoint by video; clips are `pretrain/VIDEO/CLIP`.

    The sorted videos are shuffled; the first tenth is for test, the next for validation.
    """
    clips = list(clips)
    videos = sorted({clip.split("/")[-2] for clip in clips})
    random.Random(seed).shuffle(videos)
    tenth = int(0.1 * len(videos))
    split = dict.fromkeys(videos[:tenth], "test") | dict.fromkeys(videos[tenth : 2 * tenth], "val")
    return {clip: split.get(clip.split("/")[-2], "train") for clip in clips}


def vggsound_splits(rows: Iterable[tuple[str, int, str, str]], seed: int = SEED) -> dict[tuple[str, int], str]:
    """(video, start second) → train, val or test, from vggsound.csv's rows (video, start second, label, train or test).

    Test is the corpus' own. Validation videos are drawn from train: of each class as many as it has in test.
    """
    rows = list(rows)
    train: dict[str, set[str]] = defaultdict(set)
    test: dict[str, set[str]] = defaultdict(set)
    for video, _, label, split in rows:
        (train if split == "train" else test)[label].add(video)
    held: set[str] = set()
    for label, videos in train.items():
        drawn = sorted(videos)
        random.Random(seed).shuffle(drawn)
        held |= set(drawn[: len(test[label])])
    return {
        (video, start): "test" if split != "train" else "val" if video in held else "train"
        for video, start, _, split in rows
    }
