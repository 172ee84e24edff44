"""How files and annotations are joined, every table in memory: what `javisc.compiler.inputs.matching` has to give."""

from __future__ import annotations

import tempfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from javisc.compiler.inputs import matching
from javisc.compiler.inputs.corpora import Corpus
from javisc.compiler.inputs.matching import refuse, wanted_split
from javisc.manifests.errors import UserError
from support.corpora import Annotations, annotations


@dataclass(frozen=True)
class Matched:
    """`inputs`: the files with labels or `refused`, and their `identity`. `unmatched`: annotations that lead to no sample
    (UNMATCHED_SCHEMA). `said`: a line that accounts for all.
    """

    inputs: pl.DataFrame
    unmatched: pl.DataFrame
    said: str


def by_parts(corpus: Corpus, root: Path, files: pl.DataFrame, splits: Collection[str] = ()) -> Matched:
    """What `javisc.compiler.inputs.matching` itself gives, read into memory."""
    with tempfile.TemporaryDirectory() as folder:
        found = matching.match(corpus, root, files.lazy(), splits, scratch=Path(folder))
        return Matched(found.inputs.collect(), found.unmatched.collect(), found.said)


def match(corpus: Corpus, root: Path, files: pl.DataFrame, splits: Collection[str] = ()) -> Matched:
    """Join `files` (rows of the input table, `relpath` under `root`) to the corpus' annotations.

    A file that no annotation names is refused as `no_caption`; one of a split that was not asked for, or whose annotation is
    excluded, as `filtered`; a second file of the same identity as `duplicate`. Raises UserError where nothing matches at all.
    """
    names = files["relpath"].to_list()
    identities = [corpus.identity(name) for name in names]
    found = annotations(corpus, root, names)
    chosen = wanted_split(splits)
    by_split = pl.DataFrame(
        {"split": (present := found.frame["split"].unique().to_list()), "chosen": [chosen(split) for split in present]},
        schema={"split": pl.String, "chosen": pl.Boolean},
    )
    labels = found.frame.join(by_split, on="split", how="left", nulls_equal=True, maintain_order="left")
    frame = (
        files.drop("text", "texts", "audio_text", "label", "split", "lang", "corpus")
        .with_columns(
            identity=pl.Series(identities, dtype=pl.String),
            corpus=pl.lit(corpus.name),
            group=pl.Series([corpus.film(name) if name else None for name in identities], dtype=pl.String),
        )
        .join(labels, on="identity", how="left", maintain_order="left")
        .join(found.excluded, on="identity", how="left", maintain_order="left")
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
    absent = labels.filter("chosen").join(frame, on="identity", how="anti", maintain_order="left")
    unmatched = pl.concat(
        [
            _listed(corpus, absent.select("identity", "split", message=pl.lit("annotated, but not there")), "no_file"),
            _listed(corpus, found.excluded, "excluded"),
            _listed(corpus, _bad_rows(found), "bad_row"),
        ]
    )
    said = _said(corpus, frame, found, absent.height, root)
    return Matched(frame.select(*files.columns, "identity"), unmatched, said)


def _bad_rows(found: Annotations) -> pl.DataFrame:
    rows = [(f"{Path(file).name}:{line}", message) for file, line, message in found.problems.rows]
    return pl.DataFrame(rows, schema={"identity": pl.String, "message": pl.String}, orient="row")


def _listed(corpus: Corpus, rows: pl.DataFrame, reason: str) -> pl.DataFrame:
    split = "split" if "split" in rows.columns else pl.lit(None, pl.String).alias("split")
    return rows.select(
        pl.lit(corpus.name).alias("corpus"), "identity", split, pl.lit(reason).alias("reason"), "message"
    )


def _said(corpus: Corpus, frame: pl.DataFrame, found: Annotations, absent: int, root: Path) -> str:
    """One line that accounts for every file and every annotation."""
    kept = int(frame["refused"].is_null().sum())
    counts = frame["refused"].drop_nulls().value_counts().sort("refused")
    left = [f"{_count(number, 'file')} {reason}" for reason, number in counts.iter_rows()]
    left += [f"{_count(absent, 'annotation')} without a file"] * bool(absent)
    left += [f"{_count(found.excluded.height, 'annotation')} excluded"] * bool(found.excluded.height)
    left += [_count(found.problems.count, "bad row")] * bool(found.problems.count)
    if kept == 0:
        file, row = (
            repr(next(iter(names), "none")[:200]) for names in (sorted(frame["relpath"]), found.frame["identity"])
        )
        splits = ", ".join(sorted(found.frame["split"].drop_nulls().unique())[:20]) or "none"
        raise UserError(
            f"corpus {corpus.name} at {root}: of {_count(frame.height, 'file')} none is left "
            f"({', '.join(left) or 'no annotations'}); a file: {file}; an annotation: {row}; the splits for --corpus-split: "
            f"{splits}. Layout: {corpus.layout}"
        )
    total = f"{corpus.name}: {kept} of {_count(frame.height, 'file')} go in"
    return total + (f"; left out: {', '.join(left)}" if left else "")


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
