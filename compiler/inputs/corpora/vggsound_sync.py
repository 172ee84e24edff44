"""VGGSound as SparseSync uses it: clips `ID_STARTMS_ENDMS`, its splits, its filters, and VGGSound-Sparse's twelve classes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from javisc.compiler.inputs.annotations import Lines, Problems, Source, Table
from javisc.compiler.inputs.corpora import Row
from javisc.compiler.inputs.corpora.vggsound import META
from javisc.compiler.inputs.identity import stem, youtube_clip, youtube_film
from javisc.compiler.inputs.sync_lists import SyncCorpus, vggsound_splits

PICKS = Table(
    ("picked_sparse_classes.csv", "data/picked_sparse_classes.csv"), columns=("class", "is_sparse"), delimiter="\t"
)
#: The clips that people looked at, and where their offsets are fixed; 1 is in sync.
CLEAN = Table(
    ("vggsound_sparse_clean_fixed_offsets.csv", "data/vggsound_sparse_clean_fixed_offsets.csv"),
    columns=("video_id", "is_sync"),
)
#: The classes of VGGSound-Sparse, where the list of picks is not there.
SPARSE = frozenset(
    {
        "chopping wood",
        "dog barking",
        "hammering nails",
        "ice cracking",
        "lions roaring",
        "people eating apple",
        "people eating crisps",
        "people sneezing",
        "playing badminton",
        "playing tennis",
        "skateboarding",
        "striking bowling",
    }
)


class VggSoundSync(SyncCorpus):
    name = "vggsound"
    folders = ("VGGSound", "vggsound")
    layout = (
        "vggsound.csv (id, start second, label, split; no header), videos anywhere below: ID_30000_40000.mp4, ID_000030.mp4; of "
        "SparseSync's data/ if wanted: vggsound_{train,valid,test}.txt, filtered_examples_vggsound/*.txt"
    )
    prefix = "vggsound"
    filters = Source(("filtered_examples_vggsound", "data/filtered_examples_vggsound"))

    def needed(self, root: Path) -> tuple[Source, ...]:
        # Only what its file holds is asked of it where the lists say the splits.
        return () if self.published(root) and META.find(self.base(META, root)) is None else (META,)

    def rows(self, root: Path, files: Iterable[str], problems: Problems) -> Iterator[Row]:
        for line, why, where in self.left_out(root, problems):
            # SparseSync compares names as they stand, so that its list of broken files, written with .mp4, has no effect there.
            if identity := self.identity(line):
                yield Row(identity, (), excluded=why, where=where)
            else:
                problems.add(*where, f"{line[:60]!r} is no clip's name")
        labels = self._labels(root, problems)
        picked = self.picked(root, problems)
        for (youtube, start), split, where in self._splits(root, labels, problems):
            label = labels.get((youtube, start), (None, ""))[0]
            excluded = None
            if picked is not None and label not in picked:
                excluded = f"is of the class {label}, which is not among the {len(picked)} picked"
            captions = () if label is None else (label,)
            yield Row(_clip(youtube, start), captions, label=label, split=split, excluded=excluded, where=where)

    def picked(self, root: Path, problems: Problems) -> frozenset[str] | None:
        """The classes to take; None: all."""
        return None

    def identity(self, relpath: str) -> str | None:
        clip = youtube_clip(stem(relpath))
        return _clip(clip.youtube, clip.start) if clip and clip.start is not None else None

    def film(self, identity: str) -> str | None:
        return youtube_film(identity)

    def _labels(self, root: Path, problems: Problems) -> dict[tuple[str, int], tuple[str, str]]:
        """(video, start) → (label, the corpus' split); empty without vggsound.csv."""
        base = self.base(META, root)
        path = META.find(base)
        found: dict[tuple[str, int], tuple[str, str]] = {}
        one: dict[tuple[str, str], tuple[str, str]] = {}  # of all that are equal one is held
        for line, (youtube, start, label, split) in META.rows(base, problems) if path else ():
            assert path is not None
            if start.isascii() and start.isdigit():
                found[youtube, int(start)] = one.setdefault((label, split), (label, split))
            else:
                problems.add(path, line, f"start second {start[:40]!r} is no whole number")
        return found

    def _splits(
        self, root: Path, labels: dict[tuple[str, int], tuple[str, str]], problems: Problems
    ) -> Iterator[tuple[tuple[str, int], str, tuple[Path, int]]]:
        if not self.published(root):
            rows = [(youtube, start, label, split) for (youtube, start), (label, split) in labels.items()]
            yield from ((clip, split, (root, 0)) for clip, split in vggsound_splits(rows).items())
            return
        for line, split, where in self.splits(root, problems):
            clip = youtube_clip(stem(line))
            if clip is None or clip.start is None:
                problems.add(*where, f"{line[:60]!r} is no clip's name")
            else:
                yield (clip.youtube, clip.start), split, where


class VggSoundSparse(VggSoundSync):
    name = "vggsound-sparse"
    layout = VggSoundSync.layout + ", picked_sparse_classes.csv (tab-separated: class, is_sparse)"

    def needed(self, root: Path) -> tuple[Source, ...]:
        return (META,)

    def picked(self, root: Path, problems: Problems) -> frozenset[str] | None:
        base = self.base(PICKS, root)
        if PICKS.find(base) is None:
            return SPARSE
        return frozenset(name for _, (name, pick) in PICKS.rows(base, problems) if pick == "y")


class VggSoundSparseClean(VggSoundSync):
    """VGGSound-Sparse as people looked through it, for evaluation: who is in it, at which offset, says one list."""

    name = "vggsound-sparse-clean"
    layout = (
        "of Synchformer's data/: vggsound_sparse_clean_fixed_offsets.csv (dataset_name, video_id, vstart_sec, offset_sec, "
        "is_sync); videos anywhere below: ID_30000_40000.mp4; vggsound.csv if wanted, for labels"
    )
    filters = CLEAN

    def split_lists(self) -> dict[str, Lines]:
        return {}

    def published(self, root: Path) -> bool:
        return True

    def needed(self, root: Path) -> tuple[Source, ...]:
        return (CLEAN,)

    def offset_lists(self, root: Path) -> tuple[Path, ...]:
        return (CLEAN.need(self.base(CLEAN, root)),)

    def rows(self, root: Path, files: Iterable[str], problems: Problems) -> Iterator[Row]:
        labels = self._labels(root, problems)
        path = CLEAN.need(self.base(CLEAN, root))
        for number, (video, in_sync) in CLEAN.rows(self.base(CLEAN, root), problems):
            clip = youtube_clip(stem(video))
            if clip is None or clip.start is None:
                problems.add(path, number, f"{video[:60]!r} is no clip's name")
                continue
            label = labels.get((clip.youtube, clip.start), (None, ""))[0]
            excluded = None if in_sync == "1" else f"is not known to be in sync, by {path.name}"
            captions = () if label is None else (label,)
            name = _clip(clip.youtube, clip.start)
            yield Row(name, captions, label=label, split="test", excluded=excluded, where=(path, number))


def _clip(youtube: str, start: int) -> str:
    return f"{youtube}_{start * 1000}_{(start + 10) * 1000}"


CORPORA = (VggSoundSync(), VggSoundSparse(), VggSoundSparseClean())
