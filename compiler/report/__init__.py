"""`javisc report`: one static page about a dataset, with playable samples beside it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import av
import soundfile

from javisc.compiler.report.data import gather
from javisc.compiler.report.media import Preview, preview
from javisc.compiler.report.page import MEDIA, page
from javisc.manifests.errors import UserError
from javisc.manifests.files import published
from javisc.manifests.io import Dataset
from javisc.manifests.members import MemberReader, check_key
from javisc.manifests.urls import is_url

#: Files of an earlier report that a new one may remove.
OURS = re.compile(r"[a-z0-9_]{1,255}\.(mp4|flac|poster\.jpg|jpg|png)")


@dataclass(frozen=True)
class Report:
    page: Path
    samples: int
    broken: int  #: samples that could not be shown; the page says why


def report(path: str, out: str | None = None, *, samples: int = 12) -> Report:
    """Write OUT/index.html (default: DS/report) and OUT/media/ for a dataset, view or table; replaces an earlier report.

    Raises UserError if the dataset cannot be read or the folder cannot be written.
    """
    dataset = Dataset.open(path)
    if out is None:
        if dataset.bare or is_url(dataset.path):
            raise UserError(f"--out: {path} is no local dataset's folder, name a folder for the report")
        out = str(Path(dataset.path) / "report")
    folder = Path(out)
    strange = [folder] if folder.exists() and not folder.is_dir() else []
    strange += [
        entry
        for entry in folder.glob("*")
        if entry.name not in ("index.html", MEDIA) and not entry.name.startswith(".")
    ]
    before = folder / "index.html"
    ours = before.is_file() and _is_report(before)
    if before.exists() and not ours:
        strange = [before]
    if strange:
        raise UserError(f"--out {out} holds {strange[0].name}, which is no report's: choose a new folder")
    summary = gather(dataset, samples)
    shown: list[Preview | str] = []
    try:
        (folder / MEDIA).mkdir(parents=True, exist_ok=True)
        with MemberReader() as reader:
            for row in summary.samples:
                try:
                    key = check_key(row["key"])
                    shown.append(
                        preview(
                            f"{key[:240]}_{len(shown):03d}",
                            reader.read(row, "mp4"),
                            reader.read(row, "flac"),
                            folder / MEDIA,
                        )
                    )
                except (UserError, av.FFmpegError, soundfile.LibsndfileError, ValueError) as error:
                    shown.append(str(error))  # one broken sample is shown as such; the page is about all the others too
        with published(folder / "index.html") as temporary:
            temporary.write_text(page(summary, shown), encoding="utf-8")
        current = {
            name
            for one in shown
            if isinstance(one, Preview)
            for name in (one.clip, one.poster, one.strip, one.spectrogram)
        }
        for old in (folder / MEDIA).iterdir() if ours else ():
            if old.name not in current and OURS.fullmatch(old.name):
                old.unlink()
    except OSError as error:
        raise UserError(f"--out {out} cannot be written: {error.strerror or error}") from error
    return Report(folder / "index.html", len(shown), sum(isinstance(one, str) for one in shown))


def _is_report(page: Path) -> bool:
    """Whether a page is one of ours: its title, which stands in its first bytes, says so."""
    with page.open("rb") as stream:
        return b" javisc report</title>" in stream.read(1 << 16)
