"""The documents' commands and snippets, run in order as they stand on six small films, and what came out is looked at.

A line of a shell block is run by bash with the real `javisc`, in a folder that holds RAW and captions.csv; what takes minutes
of training, or machines that are not here, is named in `LEFT` and parsed only (test_parsed.py). A line that has no row in
`LOOKS` fails.
"""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from support import films, selector
from support.documents import Block, blocks
from support.films import CAPTIONS
from support.raw import write_clip
from support.sane import sane, split_by_hash

RUN = ("README.md", "docs/compile.md", "docs/cluster.md", "docs/dataset.md", "docs/tables.md")
#: Lines that are not run, and why.
LEFT = {
    r"^make (demo|test)": "the whole demonstration, the whole suite",
    r"^DS/": "a list of files, compared below",
    r"^javisc (build jav RAW --out DS --renditions|render DS --short-side) 240": "the reader's films have 64 rows: "
    "compiler/fields/test_built_renditions.py and test_render.py run both in small",
}
#: The chains that train or need many machines: tests/trainer runs them in small.
PARSED = ("docs/testing.md", "docs/train.md", "docs/sync.md", "docs/javisdit.md", "docs/load.md", "docs/parallel.md")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reader's folder: RAW, captions.csv, a second small dataset, and a trained selector where the documents have one."""
    root = tmp_path_factory.mktemp("reader")
    films.write(root)
    (root / "newer.csv").write_text("id,caption,mood\nsea,the sea roars,0.5\nrain,it pours,\n")
    write_clip(root / "more/bell.mp4", seconds=2.3, size=(96, 64), seed=50)
    write_clip(root / "more/bark.mp4", seconds=2.3, size=(96, 64), seed=51)
    (root / "more/bark.txt").write_text("a Dog barks twice")
    selector.write_best(root / "runs/a/best")
    return root


def shell(place: Path, command: str) -> str:
    """Run one line as a reader would; RAW… stands for a folder."""
    tools = str(Path(sys.executable).parent)
    environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "SLURM_ARRAY_TASK_ID": "0", "COLUMNS": "100"}
    done = subprocess.run(
        ["bash", "-c", command.replace("…", "")],
        cwd=place,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
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
    assert "/DS: 6 samples in 1 shards" in said and re.search(
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
        assert Path(row["path"]).is_relative_to(place / "MEDIA") or row["path"].startswith("MEDIA"), row["path"]
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
#: What a snippet goes on from, where it continues another.
BEFORE = {"from javisc.compiler import DatasetWriter": "from javisc.manifests import Dataset"}


def snippet(place: Path, block: Block) -> None:
    first = block.text.strip().splitlines()[0]
    assert first in SNIPPETS, (
        f"{block.document}:{block.line}: say in SNIPPETS of {__file__} what this snippet must leave behind"
    )
    before = [other.text for other in blocks(block.document) if other.text.strip().startswith(BEFORE.get(first, "\0"))]
    code = "\n".join([*before, block.text, SNIPPETS[first]])
    done = subprocess.run([sys.executable, "-P", "-c", code], cwd=place, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{block.document}:{block.line}\n{done.stderr[-3000:]}"


def follow(place: Path, document: str) -> int:
    """Run a document's blocks in order. Returns how many lines and snippets were run."""
    ran = 0
    for block in blocks(document):
        if block.language == "python":
            snippet(place, block)
            ran += 1
        for _, command in block.commands() if block.language in ("", "sh", "bash") else ():
            if any(re.match(pattern, command) for pattern in LEFT):
                continue
            looks = LOOKS.get(document, {})
            beginning = next((words for words in looks if command.startswith(words)), None)
            assert beginning is not None, (
                f"{document}:{block.line}: say in LOOKS of {__file__} what must come of: {command}"
            )
            looks[beginning](place, shell(place, command))
            ran += 1
    return ran


def readme(place: Path) -> None:
    assert follow(place, "README.md") == 4
    listed = next(block.text for block in blocks("README.md") if block.text.startswith("DS/"))
    for name in re.findall(r"DS/[\w./]+", listed):
        assert (place / name).is_file(), f"README lists {name}"
    members = re.search(r"(KEY\.\w+ )+", listed)
    assert members is not None
    key = table(place, "DS")["key"][0]
    tar = subprocess.run(
        ["tar", "tf", place / "DS/shards/000000.tar"], capture_output=True, text=True, check=True
    ).stdout.split()
    assert [name for name in tar if name.startswith(key)] == members[0].replace("KEY", key).split()


def dataset(place: Path) -> None:
    """Its snippets read the dataset that README's commands made; its one-liner prints the columns."""
    assert follow(place, "docs/dataset.md") == 4
    text = (Path(__file__).parents[2] / "docs/dataset.md").read_text()
    line = re.search(r'`(python -c ".+")`', text)
    assert line is not None
    look_columns(place, shell(place, line[1]))


def tables(place: Path) -> None:
    shutil.copytree(place / "DS", place / "DS1")
    shell(place, "javisc build jav more --out DS2")
    assert follow(place, "docs/tables.md") == 13


@pytest.mark.slow
def test_a_reader_goes_through_readme_dataset_and_tables(place: Path) -> None:
    """One test, since each document goes on with what the one before has made."""
    readme(place)
    dataset(place)
    tables(place)


def test_compile(tmp_path: Path) -> None:
    films_there = films.write(tmp_path)
    assert follow(tmp_path, "docs/compile.md") == 2
    assert json.loads((films_there.dataset / "dataset.json").read_text())["counts"]["samples"] == 6


@pytest.mark.dist
def test_many_machines(tmp_path: Path) -> None:
    films.write(tmp_path)
    assert follow(tmp_path, "docs/cluster.md") == 6


def test_every_document_is_run_or_named() -> None:
    docs = {f"docs/{path.name}" for path in (Path(__file__).parents[2] / "docs").glob("*.md")}
    without = {
        name for name in docs if not any(block.language in ("", "sh", "bash", "python") for block in blocks(name))
    }
    unknown = docs - set(RUN) - set(PARSED) - without
    assert not unknown, f"run {unknown} in {__file__}, or say why it is only parsed"
