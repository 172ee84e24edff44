"""What may be written over: a view by `--force`, a table or an export by one of its kind, and never what is somebody else's."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath

import polars as pl

from javisc.manifests.damage import POLARS_FAULTS, sized
from javisc.manifests.environment import patiently
from javisc.manifests.errors import UserError
from javisc.manifests.io import HEADER
from javisc.manifests.urls import filesystem, is_url, plain

#: Ends of names of tables that are no view: a folder is seldom called so on purpose.
OTHER_TABLES = {".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".txt", ".xlsx"}


def check_output(out: str, *, force: bool) -> None:
    """Refuse to write a view or table over what is there, unless `force`; a folder with shards is never written into.

    out: a path or URL; both are protected alike. Raises UserError.
    """
    out = plain(out).rstrip("/") or "/"
    if (suffix := PurePosixPath(out).suffix.lower()) in OTHER_TABLES:
        raise UserError(
            f"--out {out}: a view is a folder, or one table that ends in .parquet, not in {suffix}: name one of these "
            "(`javisc export --csv` and `--jsonl` write what other programs read)"
        )
    try:
        base, name = (out, "") if not out.endswith(".parquet") else out.rpartition("/")[::2]
        there = _entries(base or ("/" if out.startswith("/") else "."))
    except (ValueError, ImportError) as error:
        raise UserError(f"--out {out}: {error}") from error
    except OSError as error:
        raise UserError(f"--out {out} cannot be written: {error.strerror or error}") from error
    if name:
        if there is not None and name in there and not force:
            raise UserError(f"--out {out} is there already: choose another name, or say --force to replace it")
        if (
            name in ("manifest.parquet", "rejected.parquet", "shards.parquet")
            and there is not None
            and "shards" in there
        ):
            raise UserError(f"--out {out} is a table of a compiled dataset: choose another name")
        return
    if there is not None and "shards" in there:
        raise UserError(
            f"--out {out} is a compiled dataset: its manifest is not replaced, choose another folder or a .parquet file"
        )
    if there is not None and there and HEADER not in there:
        raise UserError(f"--out {out} is there and is no view of datasets: choose a new folder or a .parquet file")
    if there is not None and HEADER in there and not force:
        raise UserError(f"--out {out} is there already: choose another name, or say --force to replace it")


def check_table(out: str, option: str, columns: Iterable[str]) -> None:
    """Refuse to write a table over a local file that is none of its kind: one of `columns` and no others. Raises UserError."""
    path = Path(out)
    if is_url(out) or not path.exists():
        return
    if path.is_dir():
        raise UserError(f"{option} {out} is a folder: give the name of a file in it")
    try:
        sized(out)
        known = set(pl.scan_parquet(path, glob=False).collect_schema()) <= set(columns)
    except (UserError, OSError, *POLARS_FAULTS):
        known = False
    if not known:
        raise UserError(
            f"{option} {out} is there and is no such table of javisc's: move it away, or choose another name"
        )


def check_file(out: str, option: str, ours: Callable[[bytes], bool]) -> None:
    """Raise UserError where an export cannot be written to `out`, or would replace a file whose first line is none of `ours`."""
    path = Path(out)
    if is_url(out):
        raise UserError(f"{option} {out}: a file on this machine is allowed: write one and copy it there")
    if path.is_dir():
        raise UserError(f"{option} {out} is a folder: give the name of a file in it")
    if path.is_file():
        with path.open("rb") as stream:
            first = stream.readline(1 << 20).strip()
        if first and not ours(first):
            raise UserError(f"{option} {out} is there and is not javisc's: move it away, or choose another name")


def _entries(folder: str) -> set[str] | None:
    """Names in a folder or below a URL; None if it is absent. A file in its place counts as one that is in the way.

    Raises OSError, ValueError for an unknown scheme, ImportError for a missing driver.
    """
    if not is_url(folder):
        path = Path(folder)
        return {entry.name for entry in path.iterdir()} if path.is_dir() else {""} if path.exists() else None
    fs, inside = filesystem(folder)
    try:
        found = patiently(lambda: fs.ls(inside, detail=False), folder, remote=True)
    except FileNotFoundError:
        return None
    names = {str(path).rstrip("/")[len(inside.rstrip("/")) :].strip("/").partition("/")[0] for path in found}
    return names or None
