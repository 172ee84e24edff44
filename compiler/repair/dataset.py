"""Repairing a dataset: what its commits, digests and plan say should be there, and is not, is made again."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from javisc.compiler.build import BuildOptions, build
from javisc.compiler.plan.planning import PLAN
from javisc.compiler.plan.saved import read_settings
from javisc.compiler.recipe import Recipe
from javisc.compiler.repair.fields import mend_fields
from javisc.compiler.repair.words import mend_words
from javisc.compiler.run.progress import Reporter
from javisc.compiler.store.files import Store
from javisc.compiler.store.lock import locked
from javisc.compiler.store.scratch import Scratch
from javisc.manifests.errors import UserError

TABLES = ("manifest.parquet", "rejected.parquet", "shards.parquet", "dataset.json")


@dataclass(frozen=True)
class Repaired:
    """What was done, in words: empty where all was sound. unfinished: shards that no build has made yet."""

    lines: tuple[str, ...]
    unfinished: int = 0


def repair(
    path: str | os.PathLike[str],
    *,
    workers: int | None = None,
    scratch: Path | None = None,
    compiler: str | None = None,
    reporter: Reporter | None = None,
) -> Repaired:
    """Compare a compiled dataset with its commits, digests and plan; make again what is missing or wrong, with the bytes it had.

    Lost or damaged shards are made again from their sources (and are not published if those have changed); tables are merged
    anew; labels that an older javisc wrote as "None" are mended without encoding. What is sound stays untouched.
    Raises UserError where that cannot be done.
    """
    work = Scratch(os.fspath(path), scratch)
    store = Store(os.fspath(path), work.path / "fetched")
    if not store.exists(*PLAN):
        raise UserError(
            f"{store.root} has no {'/'.join(PLAN)}, which `javisc build` leaves: it cannot be repaired; build it again"
        )
    settings = read_settings(store)
    split = {str(name): float(share) for name, share in settings["split"]}
    seed = int(settings["seed"])
    try:
        with locked(store) as held:
            held.check()
            before = _digests(store)
            mended = mend_words(store, split, seed)
        # In place of sizes that a build asks for, those that the plan was made with: nothing is planned here.
        options = BuildOptions(
            seed=seed, split=split, workers=workers, scratch=scratch, compiler=compiler, check=True, repair=True
        )
        result = build(None, Recipe.from_json(settings["recipe"]), os.fspath(path), options, reporter=reporter)
        with locked(store):
            mended += mend_fields(store, workers=workers)
        after = _digests(store)
    finally:
        work.close()
    tables = [name for name in TABLES if before.get(name) != after.get(name)]
    if tables:
        mended.append(f"written anew: {', '.join(tables)}")
    return Repaired((*mended, *result.notes), result.shards_left)


def _digests(store: Store) -> Mapping[str, str | None]:
    found: dict[str, str | None] = {}
    for name in TABLES:
        try:
            found[name] = hashlib.sha256(store.read(name)).hexdigest()
        except FileNotFoundError:
            found[name] = None
    return found
