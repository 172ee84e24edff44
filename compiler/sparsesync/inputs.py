"""Inputs of `javisc build sync`: clips that are cut already, or full videos with LRS3's meta texts that say where to cut."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from javisc.compiler.inputs.corpora import corpus_of, locate
from javisc.compiler.inputs.found import ScanReport
from javisc.compiler.inputs.identity import without_extension
from javisc.compiler.inputs.local import VIDEO_SUFFIXES, scan
from javisc.compiler.inputs.matching import ROWS, UNMATCHED_FILE, UNMATCHED_SCHEMA, leave_list, match
from javisc.compiler.inputs.sync_lists import SyncCorpus
from javisc.compiler.inputs.table import INPUT_SCHEMA, shown
from javisc.compiler.sparsesync.cuts import read_texts
from javisc.compiler.sparsesync.offsets import clip_namer
from javisc.manifests.errors import UserError
from javisc.manifests.spool import spool
from javisc.manifests.urls import is_url

Say = Callable[[str], None]


@dataclass(frozen=True)
class SyncSource:
    """A corpus of SparseSync and where it lies. `meta`: LRS3's texts, for full videos; `face`: crop to the face."""

    corpus: SyncCorpus
    root: Path
    meta: Path | None = None
    face: bool = False

    @property
    def folder(self) -> str:
        """What the relpaths of the corpus begin with."""
        return self.corpus.folders[0]

    def clip(self, relpath: str) -> str:
        """The clip's name in SparseSync's lists, from a relpath of the dataset."""
        return clip_namer(self.corpus.name)(relpath)


def find_sync(spec: str, raw: str, *, lists: Path | None, meta: Path | None, face: bool) -> SyncSource:
    """The corpus named by `--corpus NAME[=ROOT]`. Raises UserError for what is unknown, missing or does not go together."""
    name, _, place = spec.partition("=")
    corpus = corpus_of(name, "sync")
    assert isinstance(corpus, SyncCorpus)
    if is_url(raw):
        raise UserError(f"{raw}: --corpus {name} reads a local folder; copy or mount it")
    if not Path(raw).is_dir():
        raise UserError(
            f"{shown(raw)} is no folder: give the folder that holds {corpus.folders[0]}, or the corpus itself"
        )
    for option, path in (("--lists", lists), ("--lrs3-meta", meta)):
        if path is not None and not path.is_dir():
            raise UserError(f"{option} {path}: is no folder; give the one that holds them")
    if meta is not None and corpus.name != "lrs3":
        raise UserError(f"--lrs3-meta goes with --corpus lrs3 only, not with {corpus.name}; leave it out")
    if face and meta is None:
        raise UserError("--face-crop needs --lrs3-meta DIR: the boxes stand in LRS3's texts")
    corpus = corpus.with_lists(lists)
    if lists is not None and not corpus.has_lists(lists):
        names = " or ".join(dict.fromkeys(map(str, (*corpus.split_lists().values(), corpus.filters))))
        raise UserError(f"--lists {lists}: holds no list of {corpus.name}: {names}; give the published data/")
    given = Path(raw, place) if place and Path(raw, place).exists() else Path(place) if place else None
    root = locate(corpus, Path(raw), given)
    assert isinstance(corpus, SyncCorpus)
    return SyncSource(corpus, root, meta, face)


def from_sync(
    source: SyncSource, *, out: str, splits: tuple[str, ...] = (), dry: bool = False, say: Say = lambda line: None
) -> Callable[[Path], pl.LazyFrame]:
    """A function that makes the input table when `build` asks for it; `splits` to take, all without.

    Clips that SparseSync leaves out are refused as `filtered`; list entries without a file go to `out`/unmatched.parquet.
    """

    def inputs(folder: Path) -> pl.LazyFrame:
        (scratch := folder / f"corpus-{source.corpus.name}").mkdir(exist_ok=True)
        frames = scan([source.root], VIDEO_SUFFIXES, out=out, report=ScanReport(), scratch=scratch)
        videos: Iterator[pl.DataFrame] = (frame.select(INPUT_SCHEMA.names()) for frame in frames)
        unused = pl.DataFrame(schema=UNMATCHED_SCHEMA)
        if source.meta is not None:
            clips, unused = cut(pl.concat(videos), source.meta, source.face)
            say(
                f"lrs3: {clips['window_end'].count()} clips of the videos that are here; {unused.height} texts lead to none"
            )
            videos = clips.iter_slices(ROWS)
        files = spool(videos, scratch / "scan", INPUT_SCHEMA)
        if files.head(1).collect().is_empty():
            raise UserError(f"corpus {source.corpus.name} at {source.root}: no video is there; put its videos below it")
        if not source.corpus.published(source.root):
            say(f"{source.corpus.name}: splits follow the published rule; the published lists are not there")
        matched = match(source.corpus, source.root, files, splits or ("all",), scratch=scratch)
        say(matched.said)
        for line in _class_gaps(matched.inputs):
            say(line)
        if not dry and (listed := leave_list(pl.concat([matched.unmatched, unused.lazy()]), folder)):
            say(f"{listed} list entries without a sample are listed in {out.rstrip('/')}/{UNMATCHED_FILE}")
        prefix = pl.lit(source.folder + "/")
        return matched.inputs.select(INPUT_SCHEMA.names()).with_columns(relpath=prefix + pl.col("relpath"))

    return inputs


def _class_gaps(inputs: pl.LazyFrame) -> Iterator[str]:
    """A line for each split that lacks classes others have: SparseSync refuses such data."""
    usable = inputs.filter(pl.col("refused").is_null() & pl.col("label").is_not_null())
    labels = usable.select("label", "split").unique().collect(engine="streaming")
    every = labels["label"].n_unique()
    for split in labels["split"].drop_nulls().unique().sort():
        here = labels.filter(pl.col("split") == split)["label"].n_unique()
        if here < every:
            yield f"{every - here} of {every} classes have no clip in {split}: SparseSync's own code refuses such a copy"


def cut(videos: pl.DataFrame, meta: Path, face: bool) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The clips that LRS3's texts below `meta` cut out of full videos (rows of the input table, named by YouTube id).

    Returns the input table, a row per clip with its window (and its boxes, if `face`), and the texts that lead to no clip
    (UNMATCHED_SCHEMA). A video that no text names is refused as `filtered`. Clips are named after the true YouTube id,
    `pretrain/ID/CLIP.mp4`: LRS3's folders have S for - and _.
    """
    by_id: dict[str, dict[str, object]] = {}
    rows, unmatched = [], []
    for row in videos.sort("relpath").iter_rows(named=True):
        name = without_extension(row["relpath"].rsplit("/", 1)[-1])
        if row["refused"] is None and name in by_id:
            row.update(refused="duplicate", refused_message=f"the same video as {by_id[name]['relpath']}")
        if row["refused"] is not None:
            rows.append(row)
        else:
            by_id[name] = row
    used: set[str] = set()
    for path, found in read_texts(meta):
        where = path.relative_to(meta).as_posix()
        if isinstance(found, UserError):
            unmatched.append({"corpus": "lrs3", "identity": where, "reason": "bad_row", "message": str(found)})
            continue
        video = by_id.get(found.youtube)
        if video is None:
            message = f"the video {found.youtube} is not there"
            unmatched.append({"corpus": "lrs3", "identity": where, "reason": "no_file", "message": message})
            continue
        used.add(found.youtube)
        start, end = found.window
        clip = {"id": path.stem, "relpath": f"pretrain/{found.youtube}/{path.stem}.mp4"}
        rows.append({**video, **clip, "window_start": start, "window_end": end, "boxes": str(path) if face else None})
    for name, row in by_id.items():
        if name not in used:
            rows.append({**row, "refused": "filtered", "refused_message": "no text of LRS3 names this video"})
    return pl.DataFrame(rows, schema=INPUT_SCHEMA), pl.DataFrame(unmatched, schema=UNMATCHED_SCHEMA)
