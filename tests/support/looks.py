"""What must have come of the documents' lines and snippets, by how each begins: their tables, files and words are looked at."""

from __future__ import annotations

import csv
import io
import json
import os
import random
import re
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import av
import polars as pl
import pytest

from javisc.compiler.run.progress import size
from support import films
from support.films import CAPTIONS
from support.sane import sane, split_by_hash


def shell(place: Path, command: str, alone: bool = False) -> str:
    """Run one line as a reader would; RAW… stands for a folder. alone: on one core, of which one worker makes use."""
    core = random.choice(sorted(os.sched_getaffinity(0)))
    tools = str(Path(sys.executable).parent)
    environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "SLURM_ARRAY_TASK_ID": "0", "COLUMNS": "100"}
    done = subprocess.run(
        ["bash", "-c", command.replace("…", "")],
        cwd=place,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=(lambda: os.sched_setaffinity(0, {core})) if alone else None,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    assert "Traceback" not in done.stderr and "Warning" not in done.stderr, done.stderr
    return done.stdout + done.stderr


def table(place: Path, name: str) -> pl.DataFrame:
    return pl.read_parquet(place / name if name.endswith(".parquet") else place / name / "manifest.parquet")


def captioned(place: Path) -> dict[str, str | None]:
    return {name: text or None for name, text in CAPTIONS.items()}


def look_build(place: Path, said: str) -> None:
    """Every row: its caption or null, one of the splits asked for, and nulls where nothing is known."""
    manifest = sane(place / "DS", captions=captioned(place), split=("train", "val"), inputs=7, media=6)
    assert manifest["num_frames"].to_list() == [films.FRAMES] * 6 and manifest["split"].null_count() == 0
    for column in ("corpus", "lang", "label", "audio_text", "unpaired_audio_path"):
        assert manifest[column].null_count() == 6, column
    rejected = pl.read_parquet(place / "DS/rejected.parquet")
    assert rejected.select("relpath", "reason").rows() == [("broken.mp4", "not_media")]
    tar = (place / "DS/shards/000000.tar").stat().st_size
    assert f"/DS: 6 samples in 1 shards, {size(tar)}, " in said and re.search(
        r"1 inputs were rejected \(1 not_media\): see \S*DS/rejected.parquet", said
    )


def look_report(place: Path, said: str) -> None:
    page = (place / "DS/report/index.html").read_text()
    assert "DS/report/index.html: 6 samples" in said
    assert "a dog barks, then a car passes" in page and "&#34;quoted&#34;" in page and "not_media" in page
    assert len(list((place / "DS/report/media").iterdir())) >= 6


def look_plan(place: Path, said: str) -> None:
    assert re.search(r"7 inputs of .*, about 1\d s of media: about .* in 1 shards.*nothing was written", said)
    assert not (place / "DS").exists()


def look_plain(place: Path, said: str) -> None:
    manifest = sane(place / "DS", split=(), inputs=7)
    assert manifest["text"].null_count() == 6, "no --captions, no files beside the films"


def look_planned(place: Path, said: str) -> None:
    assert "1 shards are planned: build them with --part 0/1 to 0/1" in said and not (place / "DS/shards").exists()


def look_part(place: Path, said: str) -> None:
    """The one shard is of the first part; the second has nothing to do, which is no mistake."""
    assert "6 samples in 1 shards" in said or "0 samples in 0 shards" in said
    assert (place / "DS/shards/000000.tar").exists() and not (place / "DS/manifest.parquet").exists()


def look_status(place: Path, said: str) -> None:
    assert "1 of 1 shards are published, 7 of 7 inputs" in said and "1 inputs rejected (1 not_media)" in said
    assert "--finish merges them" in said


def look_finished(place: Path, said: str) -> None:
    sane(place / "DS", captions=captioned(place), split=(), inputs=7)


def look_ray(place: Path, said: str) -> None:
    sane(place / "DS_RAY", captions=captioned(place), split=(), inputs=7)
    assert (place / "DS_RAY/shards/000000.tar").read_bytes() == (place / "DS/shards/000000.tar").read_bytes()


def look_merge(place: Path, said: str) -> None:
    assert "8 samples of 2 inputs → ALL" in said
    assert table(place, "ALL")["key"].to_list() == [*table(place, "DS1")["key"], *table(place, "DS2")["key"]]
    assert set(table(place, "ALL")["dataset"]) == {str(place / "DS1"), str(place / "DS2")}


def look_dogs(place: Path, said: str) -> None:
    assert sorted(table(place, "DOGS")["text"]) == [
        "Dogs run in a park",
        "a Dog barks twice",
        "a dog barks, then a car passes",
    ]
    assert "3 of 8 kept" in said and "removed by" in said


def look_clean(place: Path, said: str) -> None:
    assert (
        table(place, "CLEAN")["key"].to_list() == table(place, "DOGS")["key"].to_list()
        and "3 of 3 samples kept" in said
    )


def look_split(place: Path, said: str) -> None:
    rows = table(place, "SPLIT")
    assert rows["split"].to_list() == split_by_hash(rows["group"], {"train": 0.98, "val": 0.02})
    assert rows.drop("split").equals(table(place, "CLEAN").drop("split"))
    assert sum(map(int, re.findall(r"^ *(\d+) (?:train|val) ", said, re.MULTILINE))) == 3


def look_stats(place: Path, said: str) -> None:
    assert "Samples" in said and "num_frames" in said and re.search(r"│ +3 │", said)


def look_export(place: Path, said: str) -> None:
    with (place / "train_jav.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert sorted(row["text"] for row in rows) == sorted(table(place, "SPLIT")["text"])
    for row in rows:
        assert Path(row["path"]).is_relative_to(place / "MEDIA"), row["path"]
        assert (place / row["path"]).stat().st_size > 1000 and (place / row["audio_path"]).stat().st_size > 1000
        assert (row["num_frames"], row["height"], row["width"], row["fps"]) == ("55", "64", "96", "24")


def look_lines(place: Path, said: str) -> None:
    found = [json.loads(line) for line in (place / "train.jsonl").read_text().splitlines()]
    assert {"waves at the sea"} < {row["caption"] for row in found} and all(
        Path(row["path"]).is_file() for row in found
    )


def look_card(place: Path, said: str) -> None:
    assert "shards/*.tar" in (place / "DS/README.md").read_text()


def look_energon(place: Path, said: str) -> None:
    """Every sample in a shard of its split; tests/manifests/test_energon.py opens one with the reader itself."""
    keys = {row["key"]: row["split"] for row in table(place, "DS").iter_rows(named=True)}
    found = {}
    for tar in (place / "OUT").rglob("*.tar"):
        names = subprocess.run(["tar", "tf", tar], capture_output=True, text=True, check=True).stdout.split()
        found |= {name.partition(".")[0]: tar.name.split("-")[0] for name in names}
    assert found == keys and (place / "OUT/.nv-meta/dataset.yaml").is_file()


def look_annotated(place: Path, said: str) -> None:
    assert "DS: field newer: 2 of 6 samples, joined by id: mood, texts, text" in said
    assert "1 rows of newer.csv belong to no sample" in said
    rows = {row["id"]: row for row in sane(place / "DS", media=0).iter_rows(named=True)}
    assert (rows["sea"]["text"], rows["sea"]["mood"], rows["rain"]["mood"]) == ("the sea roars", 0.5, None)
    assert rows["sea"]["texts"] == ["the sea roars", "waves at the sea"]


def look_undone(place: Path, said: str) -> None:
    rows = sane(place / "DS", media=0)
    assert "mood" not in rows.columns and rows.filter(pl.col("id") == "sea")["text"].item() == "waves at the sea"


def look_score(place: Path, said: str) -> None:
    rows = table(place, "DS")
    assert {"sync_offset", "sync_confidence", "sync_margin"} <= set(rows.columns) and rows[
        "sync_offset"
    ].null_count() == 0
    assert rows["sync_confidence"].is_between(0, 1).all() and "6 of 6 scored" in said


def look_good(place: Path, said: str) -> None:
    rows = table(place, "DS")
    wanted = [
        key
        for key, at, sure in rows.select("key", "sync_offset", "sync_confidence").iter_rows()
        if sure > 0.5 and abs(at) <= 0.2
    ]
    assert table(place, "GOOD")["key"].to_list() == wanted


def look_columns(place: Path, said: str) -> None:
    lines = said.splitlines()
    assert [line.split(" — ")[0] for line in lines] == list(table(place, "DS").columns) and all(
        len(line) > 10 for line in lines
    )


def pictures(place: Path, name: str) -> dict[str, tuple[int, int, int]]:
    """Of a rendition's members as they lie in its tars: the id of each clip, and how many pictures of which height and width."""
    ids = dict(table(place, "DS").select("key", "id").iter_rows())
    found = {}
    for path in (place / "DS/fields" / name).glob("*.tar"):
        with tarfile.open(path) as tar:
            for member in tar:
                with av.open(io.BytesIO(tar.extractfile(member).read())) as film:  # type: ignore[union-attr]
                    frames = [(frame.height, frame.width) for frame in film.decode(video=0)]
                assert len(set(frames)) == 1
                found[ids[member.name.partition(".")[0]]] = (len(frames), *frames[0])
    return found


def look_renditions(place: Path, said: str) -> None:
    """Both sizes of the film that is larger than both, one of the other; then one is taken back, for the next line to make it."""
    assert "rendition r240: 2 of 2 clips" in said and "rendition r480: 1 of 2 clips, 1 are as small already" in said
    assert pictures(place, "r240") == {"tall": (films.FRAMES, 240, 288), "low": (films.FRAMES, 240, 320)}
    assert pictures(place, "r480") == {"tall": (films.FRAMES, 480, 576)}
    shown = dict(zip(*sane(place / "DS").select("id", "r480_height").to_dict(as_series=False).values(), strict=True))
    assert shown == {"tall": 480, "low": None}
    (place / "DS/fields/r240/000000.tar").rename(place / "built.tar")
    shell(place, "javisc annotate DS --undo r240")
    assert not (place / "DS/fields/r240").exists()


def look_rendered(place: Path, said: str) -> None:
    assert "DS: field r240: 2 of 2 samples" in said
    assert (place / "DS/fields/r240/000000.tar").read_bytes() == (place / "built.tar").read_bytes()
    assert sane(place / "DS", deep=True)["r240_height"].to_list() == [240, 240]


#: What must have come of a line, by how it begins.
LOOKS: dict[str, dict[str, Callable[[Path, str], None]]] = {
    "README.md": {
        "javisc build jav RAW… --out DS --captions captions.csv": look_build,
        "javisc verify DS": lambda place, said: (
            None if "DS: sound: 6 samples in 1 shards" in said else pytest.fail(said)
        ),
        "javisc report DS": look_report,
    },
    "docs/compile.md": {
        "javisc build jav RAW… --out DS --plan-only": look_plan,
        "javisc build jav RAW… --out DS": look_plain,
    },
    "docs/cluster.md": {
        "javisc plan jav RAW --out DS --captions captions.csv": look_planned,
        "javisc build jav RAW --out DS --captions captions.csv --part": look_part,
        "javisc status DS": look_status,
        "javisc build jav RAW --out DS --captions captions.csv --finish": look_finished,
        "javisc build jav RAW --out DS_RAY": look_ray,
    },
    "docs/dataset.md": {
        "javisc build jav RAW --out DS --renditions": look_renditions,
        "javisc render DS": look_rendered,
    },
    "docs/tables.md": {
        "javisc merge": look_merge,
        "javisc filter ALL": look_dogs,
        "javisc dedupe": look_clean,
        "javisc split": look_split,
        "javisc stats": look_stats,
        "javisc export DS --jsonl": look_lines,
        "javisc export DS --energon": look_energon,
        "javisc export DS --card": look_card,
        "javisc export --csv": look_export,
        "javisc annotate DS newer.csv": look_annotated,
        "javisc annotate DS --undo": look_undone,
        "javisc score": look_score,
        "javisc filter DS": look_good,
    },
}

_LOADER = """
found = batch.video.shape, batch.audio.shape
assert found == ((2, 3, 51, 240, 426), (2, 34000, 1)), found  # the last batch of six clips
assert float(batch.video.std()) > 0.1 and float(batch.audio.std()) > 0.05
import json
json.dumps(state)
"""
_READERS = """
assert sample["__key__"] and sample["flac"][:4] == b"fLaC" and sample["mp4"][4:8] == b"ftyp"
assert b'"num_frames":55' in sample["json"]
assert row["flac"][:4] == b"fLaC" and row["mp4"][4:8] == b"ftyp" and row["json"]["num_frames"] == 55
pipeline = shards()
pipeline.build()
assert pipeline.epoch_size() and all(len(part) == 8 for part in pipeline.run())
"""
_READ = """
assert sorted(members) == ["flac", "json", "mp4"] and members["mp4"][4:8] == b"ftyp", sorted(members)
"""
_WRITTEN = """
written = Dataset.open("WRITTEN")
row = written.manifest().collect().row(0, named=True)
assert (row["key"], row["text"], row["split"], row["num_frames"]) == ("a_clip", "a dog barks", "train", 55), row
assert written.read("a_clip")["mp4"] == members["mp4"]
from javisc.compiler import verify
assert verify("WRITTEN", workers=1).defects == []
"""
_FIELD = """
import json
assert json.loads(Dataset.open("DS").field("loud").read(keys[0])) == {"loud": True}
assert Dataset.open("DS").manifest().collect()["loud"].to_list() == [True] * 4 + [None] * 2
from javisc.compiler.fields.annotate import take_back
take_back("DS", "loud")
"""
#: What a Python snippet must have left behind, by its first line.
SNIPPETS = {
    "from javisc.trainer.data import Catalog, Loader, Sampler, single_bucket": _LOADER,
    "import webdataset": _READERS,
    "import polars": _FIELD,
    "from javisc.manifests import Dataset": _READ,
    "from javisc.compiler import DatasetWriter": _WRITTEN,
}
