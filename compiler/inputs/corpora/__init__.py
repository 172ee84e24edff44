"""The corpora javisc knows: where their annotations lie, how a file is recognised, what is said about it.

A corpus is one module of this package with a tuple `CORPORA`; nothing else has to be told about it.
"""

from __future__ import annotations

import importlib
import pkgutil
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import ClassVar, Literal

import polars as pl

from javisc.compiler.inputs.annotations import MAX_CAPTION, Problems, Source, missing
from javisc.compiler.inputs.identity import normal
from javisc.manifests.errors import UserError
from javisc.manifests.partitions import ORDER

Kind = Literal["audio", "video", "sync"]

#: A corpus' annotations: one row per identity.
ANNOTATION_SCHEMA = pl.Schema(
    {
        "identity": pl.String(),
        "text": pl.String(),
        "texts": pl.List(pl.String()),
        "audio_text": pl.String(),
        "label": pl.String(),
        "split": pl.String(),
        "lang": pl.String(),
    }
)
#: Clips that must not be used, and why: two classes or two splits for one file, or a rule of the corpus.
EXCLUDED_SCHEMA = pl.Schema({"identity": pl.String(), "message": pl.String()})

#: Rows of annotation files as they are read, numbered in their order.
READ_SCHEMA = pl.Schema(
    {name: ANNOTATION_SCHEMA[name] for name in ("identity", "texts", "label", "split")}
    | {"excluded": pl.String(), ORDER: pl.UInt32()}
)
_BATCH = 50_000


@dataclass(frozen=True)
class Row:
    """What one line of an annotation file says about one file; `where` is (file, line) for messages.

    `excluded` says why a rule of the corpus leaves the file out.
    """

    identity: str
    captions: tuple[str, ...]
    label: str | None = None
    split: str | None = None
    excluded: str | None = None
    where: tuple[Path, int] = (Path(), 0)


class Corpus(ABC):
    """One corpus. A module sets the class variables, yields `rows`, and, if its files have other names, says their `identity`."""

    name: ClassVar[str]
    #: Folder names under a common root, JavisDiT's first.
    folders: ClassVar[tuple[str, ...]]
    kinds: ClassVar[frozenset[Kind]]
    #: Where things lie under the corpus root, for people.
    layout: ClassVar[str]
    #: What must be there; of a tuple, one is enough.
    sources: ClassVar[tuple[Source | tuple[Source, ...], ...]]
    #: True if captions tell what is heard, so that they are the caption of the sound too.
    heard: ClassVar[bool] = True
    #: True if a file must have a caption to be of use.
    captioned: ClassVar[bool] = True
    lang: ClassVar[str] = "en"

    @abstractmethod
    def rows(self, root: Path, files: Iterable[str], problems: Problems) -> Iterator[Row]:
        """Yield what the annotation files under `root` say, or, in a corpus without such files, what the names of `files` say.

        `files` are the media found, as paths under `root`, more perhaps than memory holds. Raises UserError for a missing or
        unreadable annotation file.
        """

    def identity(self, relpath: str) -> str | None:
        """What the file at `relpath` (under the corpus root) is called in the annotations, or None: not a file of this corpus."""
        return normal(relpath)

    def film(self, identity: str) -> str | None:
        """What the clip of that identity was cut from, where its name says so: no split divides the clips of one film.

        Clips of one YouTube video are `youtube/ID` in every corpus. None: the file's digest stands for it.
        """
        return None

    def missing(self, root: Path) -> list[str]:
        """What is not there, file or column, in words; empty: the annotations can be read."""
        if not root.is_dir():
            return [f"{root} is no folder"]
        groups = (needed if isinstance(needed, tuple) else (needed,) for needed in self.sources)
        return [report for group in groups for report in missing(group, root)]

    def batches(self, root: Path, files: Iterable[str], problems: Problems) -> Iterator[pl.DataFrame]:
        """Yield what the annotation files under `root` say, as frames of READ_SCHEMA; `files` as for `rows`.

        Bad rows go to `problems`. Raises UserError naming the missing file or column.
        """
        if reports := self.missing(root):
            raise UserError(f"corpus {self.name} at {root}: {'; '.join(reports)}. Layout: {self.layout}")
        rows, read = self._cleaned(root, files, problems), 0
        while batch := list(islice(rows, _BATCH)):
            yield self._frame(batch, read)
            read += len(batch)

    def labels(self, rows: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
        """What all rows (READ_SCHEMA) of some identities say of them: ANNOTATION_SCHEMA and EXCLUDED_SCHEMA, one row each.

        Both have the place of the identity's first row too, and are in this order.
        """
        frame, excluded = _one_per_identity(rows)
        spoken = pl.col("texts").list.first()
        frame = frame.with_columns(
            text=spoken, audio_text=spoken if self.heard else pl.lit(None, pl.String), lang=pl.lit(self.lang)
        )
        return frame.select(*(pl.col(name).cast(dtype) for name, dtype in ANNOTATION_SCHEMA.items()), ORDER), excluded

    def _cleaned(self, root: Path, files: Iterable[str], problems: Problems) -> Iterator[Row]:
        """The rows with captions on one line each; without those that say nothing or too much, which are recorded."""
        for row in self.rows(root, files, problems):
            captions = tuple(dict.fromkeys(text for caption in row.captions if (text := _one_line(caption))))
            if not all(map(_encodable, (row.identity, *captions, row.label or "", row.split or ""))):
                problems.add(*row.where, "holds half of a surrogate pair, which is no text")
            elif not row.identity:
                problems.add(*row.where, "names no file")
            elif self.captioned and not captions and row.excluded is None:
                problems.add(*row.where, f"{row.identity[:200]}: the caption is empty")
            elif any(len(caption) > MAX_CAPTION for caption in captions):
                problems.add(*row.where, f"{row.identity[:200]}: a caption of more than {MAX_CAPTION} characters")
            else:
                yield Row(row.identity, captions, row.label, row.split, row.excluded)

    @staticmethod
    def _frame(batch: list[Row], read: int) -> pl.DataFrame:
        # Captions are on one line by now: joined and split again, their lists are made in one go.
        frame = pl.DataFrame(
            {
                "identity": [row.identity for row in batch],
                "texts": ["\n".join(row.captions) for row in batch],
                "label": [row.label for row in batch],
                "split": [row.split for row in batch],
                "excluded": [row.excluded for row in batch],
                ORDER: range(read, read + len(batch)),
            },
            schema={**READ_SCHEMA, "texts": pl.String()},
        )
        some = pl.col("texts") != ""
        return frame.with_columns(
            texts=pl.when(some).then(pl.col("texts").str.split("\n")).otherwise(pl.lit([], pl.List(pl.String)))
        )


def _one_line(caption: str) -> str:
    """A caption without control characters, its words one blank apart."""
    if not caption.isprintable():
        caption = "".join(" " if unicodedata.category(char) == "Cc" else char for char in caption)
    return " ".join(caption.split())


def _encodable(text: str) -> bool:
    """False for text with lone surrogates, which JSON can smuggle in and no file can hold."""
    return text.isascii() or not any("\ud800" <= char <= "\udfff" for char in text)


def _one_per_identity(frame: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Join the captions of rows with the same identity; set aside what is excluded or stands in two classes or splits."""
    repeated = frame["identity"].is_duplicated()
    if repeated.any():
        merged = (
            frame.filter(repeated)
            .group_by("identity", maintain_order=True)
            .agg(
                pl.col("texts").explode().drop_nulls().unique(maintain_order=True),
                pl.col("label", "split").drop_nulls().unique(maintain_order=True),
                pl.col("excluded").drop_nulls().first(),
                pl.col(ORDER).first(),
            )
        )
        clashes = (
            pl.when(pl.col(name).list.len() > 1).then(
                pl.format(f"stands under several {name}s: {{}}", pl.col(name).list.join(", "))
            )
            for name in ("label", "split")
        )
        merged = merged.with_columns(excluded=pl.coalesce("excluded", *clashes)).with_columns(
            pl.col("label", "split").list.first()
        )
        frame = pl.concat([frame.filter(~repeated), merged.select(frame.columns)]).sort(ORDER)
    out = pl.col("excluded").is_not_null()
    excluded = frame.filter(out).select("identity", pl.col("excluded").alias("message"), ORDER)
    return frame.filter(~out).drop("excluded"), excluded


@cache
def registry() -> tuple[Corpus, ...]:
    """Every corpus, sorted by name."""
    modules = (importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__))
    return tuple(sorted((corpus for module in modules for corpus in module.CORPORA), key=lambda corpus: corpus.name))


def of_kind(kind: Kind) -> dict[str, Corpus]:
    """The corpora, by name, that can feed `javisc build audio`, `jav` ("video") or `sync`."""
    found = [corpus for corpus in registry() if kind in corpus.kinds]
    named = {corpus.name: corpus for corpus in found}
    assert len(named) == len(found), "two corpora of one kind have the same name"
    return named


def corpus_of(name: str, kind: Kind) -> Corpus:
    """The corpus of that name (case and dashes do not matter). Raises UserError with the names there are."""
    known = of_kind(kind)
    key = name.lower().replace("-", "").replace("_", "")
    for candidate in known.values():
        if candidate.name.replace("-", "") == key:
            return candidate
    names = [*known, *(["folder (every video below RAW)"] if kind == "sync" else [])]
    raise UserError(f"--corpus {name}: no such corpus; known for this build: {', '.join(names)}")


def locate(corpus: Corpus, raw: Path, root: Path | None = None) -> Path:
    """The corpus root: `root` if given, else the first of raw/FOLDER and raw itself whose annotations can be read.

    Raises UserError that says for the likeliest place what is missing there.
    """
    if root is not None:
        if reports := corpus.missing(root):
            raise UserError(f"--corpus {corpus.name}={root}: {'; '.join(reports)}. Layout: {corpus.layout}")
        return root
    candidates = [raw / folder for folder in corpus.folders if (raw / folder).is_dir()] + [raw]
    for candidate in candidates:
        if not corpus.missing(candidate):
            return candidate
    said, looked = "; ".join(corpus.missing(candidates[0])), ", ".join(map(str, candidates))
    raise UserError(
        f"corpus {corpus.name}: {said} (looked in {looked}); name its folder with --corpus {corpus.name}=ROOT. "
        f"Layout: {corpus.layout}"
    )
