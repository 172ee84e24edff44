"""Tables for trainers of others: JSON lines of {path, caption}, and the card by which Hugging Face `datasets` opens a dataset."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import yaml

from javisc.manifests.errors import UserError
from javisc.manifests.fields import FOLDER
from javisc.manifests.files import published
from javisc.manifests.io import HEADER, Dataset, complete
from javisc.manifests.javisdit import Exported, extracted, windows
from javisc.manifests.outputs import check_file
from javisc.manifests.schema import MANIFEST_SCHEMA
from javisc.manifests.urls import is_url

#: The line that says that a card is ours to write again.
MARK = "<!-- written by javisc export --card -->"


def export_jsonl(
    frame: pl.LazyFrame,
    out: str,
    *,
    media: str | None = None,
    audio_format: str = "flac",
    allow_no_caption: bool = False,
) -> Exported:
    """Write located rows as JSON lines: path, caption, and audio_path where there is sound.

    With `media` the clips are extracted there and the paths name them (see javisdit.export_csv); without, path and audio_path
    name the raw source files. Rows without a picture, and without a caption unless `allow_no_caption`, are left out and counted.
    Raises UserError if something cannot be read or written.
    """
    check_file(out, "--jsonl", _is_export)
    rows = complete(frame, MANIFEST_SCHEMA)
    usable = pl.col("path").is_not_null() & (pl.col("num_frames") > 0)
    usable = (usable & pl.col("mp4_size").is_not_null() if media is not None else usable).fill_null(False)
    captioned = pl.col("text").is_not_null() | allow_no_caption
    counts = rows.select(
        (usable & captioned).sum().alias("rows"),
        (usable & ~captioned).sum().alias("without_caption"),
        (~usable).sum().alias("without_media"),
    )
    counted = counts.collect(engine="streaming").row(0, named=True)
    kept, files = rows.filter(usable, captioned), 0
    try:
        with published(Path(out)) as temporary, temporary.open("w", encoding="utf-8") as stream:
            for batch, placed in extracted(
                rows, usable & captioned, "jav", None if media is None else Path(media).absolute(), audio_format
            ):
                files += placed
                for path, text, sound in batch.select("path", "text", "audio_path").iter_rows():
                    line = {"path": path, "caption": text, "audio_path": sound}
                    told = {name: value for name, value in line.items() if value is not None}
                    stream.write(json.dumps(told, ensure_ascii=False) + "\n")
    except OSError as error:
        raise UserError(f"{error.filename or out} cannot be written: {error.strerror or error}") from error
    parts = 0 if media is not None else windows(kept)
    return Exported(counted["rows"], counted["without_caption"], counted["without_media"], 0, files, parts)


def _is_export(first: bytes) -> bool:
    """Whether the first line of a file is one that export_jsonl writes."""
    try:
        row = json.loads(first)
    except (ValueError, RecursionError):
        return False
    return isinstance(row, dict) and row.keys() <= {"path", "caption", "audio_path"}


def write_card(path: str) -> str:
    """Write DS/README.md, from which `datasets.load_dataset(DS)` knows shards and features. Returns its path.

    Raises UserError for what is no local dataset, and for a README.md that is not ours.
    """
    dataset = Dataset.open(path)
    if is_url(path) or dataset.bare or "datasets" in dataset.header:
        raise UserError(
            f"--card: {path} is a view, a table or a URL: give the folder of a dataset, whose shards lie in it"
        )
    card = Path(path, "README.md")
    if card.is_file() and MARK not in card.read_text(encoding="utf-8", errors="replace"):
        raise UserError(f"--card: {card} is there and is not javisc's: move it away")
    manifest = dataset.manifest()
    have = manifest.collect_schema().names()
    ends = [end for end in ("flac", "mp4", "safetensors") if f"{end}_offset" in have]
    counts = (
        manifest.select(pl.col(f"{end}_offset").count().alias(end) for end in ends)
        .collect(engine="streaming")
        .row(0, named=True)
    )
    features = {"__key__": "string", "__url__": "string", "json": "json"} | {
        end: "binary" for end in ends if counts[end]
    }
    told = dataset.header.get("counts", {})
    # The dataset itself is Hugging Face's `default`: a field of that name gets another one.
    configs = {"default": ("shards", features)} | {
        "default_" if field.name == "default" else field.name: (
            f"{FOLDER}/{field.name}",
            {"__key__": "string", "__url__": "string", field.member: "json" if field.member == "json" else "binary"},
        )
        for field in dataset.fields()
    }
    said = {
        "configs": [
            {"config_name": name, "data_files": [{"split": "train", "path": f"{folder}/*.tar"}]}
            for name, (folder, _) in configs.items()
        ],
        "dataset_info": [
            {"config_name": name, "features": [{"name": one, "dtype": dtype} for one, dtype in holds.items()]}
            for name, (_, holds) in configs.items()
        ],
    }
    lines = [
        "---", yaml.safe_dump(said, sort_keys=False).rstrip(),
        "---", "", MARK, "",
        f"{told.get('samples', 0)} samples in {told.get('shards', 0)} shards; `{HEADER}` says how they were made,",
        "`manifest.parquet` has a row for each.",
        *(f"Field `{name}`: `load_dataset(…, {name!r})`, by the same keys." for name in configs if name != "default"), "",
    ]  # fmt: skip
    with published(card) as temporary:
        temporary.write_text("\n".join(lines), encoding="utf-8")
    return str(card)
