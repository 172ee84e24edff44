"""Joining files and annotations: every file gets its captions or a reason, every annotation its file or a line in a list."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import polars as pl

from javisc.compiler.inputs.annotations import Problems
from javisc.compiler.inputs.corpora import READ_SCHEMA, Corpus
from javisc.compiler.inputs.table import BESIDE, INPUT_SCHEMA
from javisc.manifests.errors import UserError
from javisc.manifests.io import write_table
from javisc.manifests.partitions import ORDER, Partitions, by, in_order, numbered, place
from javisc.manifests.spool import spool

#: What no file was built from: corpus, the file's identity or the place in the annotation file, why.
UNMATCHED_SCHEMA = pl.Schema(
    {
        "corpus": pl.String(),
        "identity": pl.String(),
        "split": pl.String(),
        "reason": pl.String(),
        "message": pl.String(),
    }
)

#: Labels that the annotations alone say; the scan's are dropped.
_SAID = ("text", "texts", "audio_text", "label", "split", "lang")
_MATCHED_SCHEMA = pl.Schema({**INPUT_SCHEMA, "identity": pl.String()})
_NAMED_SCHEMA = pl.Schema({**_MATCHED_SCHEMA, ORDER: pl.UInt32()})
_LISTED_SCHEMA = pl.Schema({**UNMATCHED_SCHEMA, ORDER: pl.UInt32()})
#: Rows of a part, of the files and of the annotations, and rows that are read at a time.
ROWS, _CHUNK = 100_000, 50_000
#: Splits that a message names.
_SPLITS_SAID = 20

#: The name of the list beside the dataset.
UNMATCHED_FILE = "unmatched.parquet"


def wanted_split(splits: Collection[str]) -> Callable[[str | None], bool]:
    """A test for the splits to build: "all", names, or, where none is named, training data: no split, train*, fold*."""

    def chosen(split: str | None) -> bool:
        if "all" in splits:
            return True
        if splits:
            return split in splits
        return split is None or split.startswith(("train", "fold"))

    return chosen


@dataclass(frozen=True)
class Matched:
    """`inputs`: the files with labels or `refused`, and their `identity`, in their order. `unmatched`: annotations that lead to
    no sample (UNMATCHED_SCHEMA). `said`: a line that accounts for all.
    """

    inputs: pl.LazyFrame
    unmatched: pl.LazyFrame
    said: str


def match(corpus: Corpus, root: Path, files: pl.LazyFrame, splits: Collection[str] = (), *, scratch: Path) -> Matched:
    """Join `files` (INPUT_SCHEMA, `relpath` under `root`) to the corpus' annotations.

    A file that no annotation names is refused as `no_caption`; one of a split that was not asked for, or whose annotation is
    excluded, as `filtered`; a second file of the same identity as `duplicate`. Part by part: what has one identity lies in one
    part, of the files and of the annotations. scratch: an empty folder for both. Raises UserError where nothing matches at all.
    """
    problems = Problems()
    names = _Column(files, "relpath")
    read = spool(corpus.batches(root, names, problems), scratch / "read", READ_SCHEMA)
    rows, height = (int(frame.select(pl.len()).collect(engine="streaming").item()) for frame in (read, files))
    count = max(1, -(-max(rows, height) // ROWS))

    annotated = Partitions(scratch / "annotated", count, READ_SCHEMA)
    for batch in read.collect_batches(chunk_size=_CHUNK, maintain_order=True):
        annotated.add(batch, by("identity"))
    there = Partitions(scratch / "there", count, _NAMED_SCHEMA)
    for batch in numbered(files, _CHUNK):
        # What is no file of the corpus meets nothing, wherever it lies.
        there.add(_named(corpus, batch), pl.coalesce("identity", "relpath").hash())

    account = _Account(corpus, root, problems)
    joined = Partitions(scratch / "joined", count, _NAMED_SCHEMA)
    lists = {reason: Partitions(scratch / reason, count, _LISTED_SCHEMA) for reason in ("no_file", "excluded")}
    chosen = wanted_split(splits)
    for said, some in zip(annotated, there, strict=True):
        labels, excluded = corpus.labels(said)
        labels = _chosen(labels, chosen)
        frame = _joined(corpus, some, labels, excluded)
        absent = labels.filter("chosen").join(frame, on="identity", how="anti", maintain_order="left")
        absent = absent.select("identity", "split", ORDER, message=pl.lit("annotated, but not there"))
        account.add(frame, labels, excluded.height, absent.height)
        joined.add(frame, place(count, height))
        lists["no_file"].add(_listed(corpus, absent, "no_file"), place(count, rows))
        lists["excluded"].add(_listed(corpus, excluded, "excluded"), place(count, rows))
    line = account.line()
    unmatched = chain(*map(in_order, lists.values()), [_listed(corpus, _bad_rows(problems), "bad_row").drop(ORDER)])
    return Matched(
        spool(in_order(joined), scratch / "matched", _MATCHED_SCHEMA),
        spool(unmatched, scratch / "unmatched", UNMATCHED_SCHEMA),
        line,
    )


class _Column:
    """The texts of a column, as often as they are asked for."""

    def __init__(self, frame: pl.LazyFrame, name: str) -> None:
        self._column = frame.select(name)

    def __iter__(self) -> Iterator[str]:
        for batch in self._column.collect_batches(chunk_size=_CHUNK, maintain_order=True):
            yield from batch.to_series()


def _named(corpus: Corpus, files: pl.DataFrame) -> pl.DataFrame:
    """Files with their identities, their films for groups, and nothing else of labels."""
    identities = [corpus.identity(name) for name in files["relpath"]]
    return files.with_columns(
        *(pl.lit(None, INPUT_SCHEMA[name]).alias(name) for name in _SAID),
        identity=pl.Series(identities, dtype=pl.String),
        corpus=pl.lit(corpus.name),
        group=pl.Series([corpus.film(name) if name else None for name in identities], dtype=pl.String),
    )


def _chosen(labels: pl.DataFrame, chosen: Callable[[str | None], bool]) -> pl.DataFrame:
    """Labels, and whether their split was asked for."""
    present = labels["split"].unique().to_list()
    by_split = pl.DataFrame(
        {"split": present, "chosen": [chosen(split) for split in present]},
        schema={"split": pl.String, "chosen": pl.Boolean},
    )
    return labels.join(by_split, on="split", how="left", nulls_equal=True, maintain_order="left")


def _joined(corpus: Corpus, files: pl.DataFrame, labels: pl.DataFrame, excluded: pl.DataFrame) -> pl.DataFrame:
    """All files of some identities (`_named`) with what is said of these, or why they are refused."""
    frame = (
        files.drop(_SAID)
        .join(labels.drop(ORDER), on="identity", how="left", maintain_order="left")
        .join(excluded.drop(ORDER), on="identity", how="left", maintain_order="left")
    )
    frame = refuse(frame, pl.col("message").is_not_null(), "filtered", pl.format("{} {}", "identity", "message"))
    unnamed = "no_caption" if corpus.captioned else "filtered"
    frame = refuse(frame, pl.col("chosen").is_null(), unnamed, pl.lit(f"no list of {corpus.name} names it"))
    frame = refuse(
        frame,
        ~pl.col("chosen"),
        "filtered",
        pl.format("split {} was not asked for; --corpus-split chooses", pl.col("split")),
    )
    # Of several files of one clip the one whose path sorts first is taken, in whatever order they were found.
    usable = frame.filter(pl.col("refused").is_null()).group_by("identity").agg(first=pl.col("relpath").min())
    frame = frame.join(usable, on="identity", how="left", maintain_order="left")
    frame = refuse(
        frame, pl.col("relpath") != pl.col("first"), "duplicate", pl.format("the same clip as {}", pl.col("first"))
    )
    return frame.select(_NAMED_SCHEMA.names())


def leave_list(unmatched: pl.LazyFrame, folder: Path) -> int:
    """Leave annotations without a sample (UNMATCHED_SCHEMA) as a table for the dataset; how many they are."""
    (folder / BESIDE).mkdir(exist_ok=True)
    write_table(unmatched, folder / BESIDE / UNMATCHED_FILE)
    return int(unmatched.select(pl.len()).collect(engine="streaming").item())


def refuse(frame: pl.DataFrame, condition: pl.Expr, reason: str, message: pl.Expr) -> pl.DataFrame:
    """Refuse the rows where `condition` holds and nothing was refused before."""
    free = pl.col("refused").is_null() & condition
    return frame.with_columns(
        refused=pl.when(free).then(pl.lit(reason)).otherwise("refused"),
        refused_message=pl.when(free).then(message).otherwise("refused_message"),
    )


def _bad_rows(problems: Problems) -> pl.DataFrame:
    rows = [(f"{Path(file).name}:{line}", message, 0) for file, line, message in problems.rows]
    return pl.DataFrame(rows, schema={"identity": pl.String, "message": pl.String, ORDER: pl.UInt32}, orient="row")


def _listed(corpus: Corpus, rows: pl.DataFrame, reason: str) -> pl.DataFrame:
    split = "split" if "split" in rows.columns else pl.lit(None, pl.String).alias("split")
    return rows.select(
        pl.lit(corpus.name).alias("corpus"), "identity", split, pl.lit(reason).alias("reason"), "message", ORDER
    )


@dataclass
class _Account:
    """What became of every file and every annotation of a corpus, counted part by part."""

    corpus: Corpus
    root: Path
    problems: Problems
    files: int = 0
    absent: int = 0
    excluded: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    #: For messages: the first path, the first annotation (its place, its identity), the first names of splits.
    path: str | None = None
    annotation: tuple[int, str] | None = None
    splits: list[str] = field(default_factory=list)

    def add(self, frame: pl.DataFrame, labels: pl.DataFrame, excluded: int, absent: int) -> None:
        """Count a part."""
        self.files += frame.height
        self.excluded += excluded
        self.absent += absent
        self.refused.update(dict(frame["refused"].drop_nulls().value_counts().iter_rows()))
        self.path = min((path for path in (self.path, frame["relpath"].min()) if isinstance(path, str)), default=None)
        first = [] if self.annotation is None else [self.annotation]
        first += [(int(place), str(name)) for name, place in labels.select("identity", ORDER).head(1).iter_rows()]
        self.annotation = min(first, default=None)
        self.splits = sorted({*self.splits, *labels["split"].drop_nulls().unique()})[:_SPLITS_SAID]

    def line(self) -> str:
        """One line that accounts for all. Raises UserError where no file is left."""
        kept = self.files - self.refused.total()
        left = [f"{_count(number, 'file')} {reason}" for reason, number in sorted(self.refused.items())]
        left += [f"{_count(self.absent, 'annotation')} without a file"] * bool(self.absent)
        left += [f"{_count(self.excluded, 'annotation')} excluded"] * bool(self.excluded)
        left += [_count(self.problems.count, "bad row")] * bool(self.problems.count)
        if kept == 0:
            file = repr("none" if self.path is None else self.path[:200])
            row = repr("none" if self.annotation is None else self.annotation[1][:200])
            raise UserError(
                f"corpus {self.corpus.name} at {self.root}: of {_count(self.files, 'file')} none is left "
                f"({', '.join(left) or 'no annotations'}); a file: {file}; an annotation: {row}; the splits for --corpus-split: "
                f"{', '.join(self.splits) or 'none'}. Layout: {self.corpus.layout}"
            )
        total = f"{self.corpus.name}: {kept} of {_count(self.files, 'file')} go in"
        return total + (f"; left out: {', '.join(left)}" if left else "")


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
