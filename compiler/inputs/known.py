"""Inputs of a build from known corpora: find each, join its annotations, list what matches nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from javisc.compiler.inputs.corpora import Corpus, Kind, corpus_of, locate, of_kind
from javisc.compiler.inputs.found import ScanReport
from javisc.compiler.inputs.local import scan
from javisc.compiler.inputs.matching import UNMATCHED_FILE, Matched, leave_list, match
from javisc.compiler.inputs.table import INPUT_SCHEMA, shown
from javisc.manifests.errors import UserError
from javisc.manifests.spool import spool
from javisc.manifests.urls import is_url

Say = Callable[[str], None]


@dataclass(frozen=True)
class Found:
    """A corpus, the folder of its annotations, and where its media are (a folder or URL). `optional`: found by `all`."""

    corpus: Corpus
    root: Path
    media: str
    optional: bool = False


def find_corpora(specs: Sequence[str], raw: str, kind: Kind, say: Say) -> list[Found]:
    """The corpora named by `--corpus NAME`, `NAME=ROOT` or `all` (whichever are present under `raw`), each once.

    A relative ROOT counts from `raw`, or, not being there, from the working folder. Where `raw` is a URL, ROOT is the local
    folder with the annotation files. Raises UserError for unknown names and for what is missing.
    """
    if not is_url(raw) and not Path(raw).is_dir():
        raise UserError(f"{shown(raw)} is no folder: give the folder that holds the corpora, or one corpus")
    found: dict[str, Found] = {}
    for spec in specs:
        name, _, place = spec.partition("=")
        if name == "all":
            if place or is_url(raw):
                raise UserError(f"--corpus {spec}: all looks below a local RAW; for a URL give NAME=ROOT per corpus")
            for each in of_kind(kind).values():
                if each.name not in found and (present := _present(each, Path(raw), say)) is not None:
                    found[each.name] = present
            if not found:
                raise UserError(f"--corpus all: {shown(raw)} holds no corpus known here: {', '.join(of_kind(kind))}")
            continue
        corpus = corpus_of(name, kind)
        if is_url(raw):
            if not place:
                raise UserError(
                    f"--corpus {name}: for a URL give {name}=ROOT, the local folder with its annotation files"
                )
            found[corpus.name] = Found(corpus, locate(corpus, Path(place), Path(place)), raw)
            continue
        given = None
        if place:
            given = Path(raw, place) if Path(raw, place).exists() else Path(place)
        root = locate(corpus, Path(raw), given)
        found[corpus.name] = Found(corpus, root, str(root))
    return list(found.values())


def _present(corpus: Corpus, raw: Path, say: Say) -> Found | None:
    """The corpus if its annotations can be read; says what is missing if its folder is there and they cannot.

    A corpus without annotation files is taken to be there only under its folder's name.
    """
    if not corpus.sources and not any((raw / folder).is_dir() for folder in corpus.folders):
        return None
    try:
        root = locate(corpus, raw)
    except UserError as error:
        if any((raw / folder).is_dir() for folder in corpus.folders):
            say(f"left out: {error}")
        return None
    return Found(corpus, root, str(root), optional=True)


def from_corpora(
    specs: Sequence[str],
    raw: Sequence[str],
    kind: Kind,
    suffixes: frozenset[str],
    *,
    out: str,
    splits: Sequence[str] = (),
    dry: bool = False,
    say: Say = lambda line: None,
) -> Callable[[Path], pl.LazyFrame]:
    """A function that makes the input table of the corpora when `build` asks for it; see find_corpora and match.

    A relpath begins with the corpus' folder name, so that the same corpus gets the same keys however it was named. Annotations
    that lead to no file are left for the dataset as unmatched.parquet unless `dry`. Raises UserError at once for what can be seen
    without reading the annotations.
    """
    if len(raw) != 1:
        raise UserError(f"--corpus takes one RAW, the folder that holds the corpora; {len(raw)} were given")
    corpora = find_corpora(specs, raw[0], kind, say)

    def inputs(folder: Path) -> pl.LazyFrame:
        tables, unmatched = [], []
        for found in corpora:
            try:
                files, matched = _matched(found, suffixes, out, splits, folder / f"corpus-{found.corpus.name}")
            except UserError as error:
                if not found.optional:
                    raise
                say(f"left out: {error}")
                continue
            for line in files.lines()[1:]:
                say(f"{found.corpus.name}: {line}")
            say(matched.said)
            unmatched.append(matched.unmatched)
            prefix = pl.lit(found.corpus.folders[0] + "/")
            tables.append(matched.inputs.select(INPUT_SCHEMA.names()).with_columns(relpath=prefix + pl.col("relpath")))
        if not tables:
            raise UserError(f"--corpus all: no corpus below {shown(raw[0])} has files that can be used; see above")
        if not dry and (listed := leave_list(pl.concat(unmatched), folder)):
            say(f"{listed} annotations without a sample are listed in {out.rstrip('/')}/{UNMATCHED_FILE}")
        return pl.concat(tables)

    return inputs


def _matched(
    found: Found, suffixes: frozenset[str], out: str, splits: Sequence[str], scratch: Path
) -> tuple[ScanReport, Matched]:
    """What lies at the corpus' place, and its match. Raises UserError where nothing comes of it."""
    report = ScanReport()
    scratch.mkdir(exist_ok=True)
    frames = scan([found.media], suffixes, out=out, report=report, scratch=scratch)
    files = spool((frame.select(INPUT_SCHEMA.names()) for frame in frames), scratch / "scan", INPUT_SCHEMA)
    if not report.files:
        where = f"corpus {found.corpus.name} at {found.media}"
        raise UserError(f"{where}: has annotations but no media: {' '.join(sorted(suffixes))}; put them there")
    return report, match(found.corpus, found.root, files, splits, scratch=scratch)
