"""One judge of a compiled dataset: its tables, members and raw files are read again by other means than javisc's own.

Every build that a test makes in its own process is judged by `watch`, which conftest.py calls once; a test that starts
`javisc build` as a process calls `sane` itself, and so does one that knows the captions and splits that must have come.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from itertools import accumulate
from pathlib import Path
from typing import Any

import av
import numpy as np
import polars as pl
import pytest
import soundfile

from javisc.compiler.check.cells import defects
from javisc.compiler.check.dataset import verify
from javisc.compiler.recipe import Recipe
from javisc.manifests.schema import MANIFEST_SCHEMA, REJECTED_SCHEMA, SHARDS_SCHEMA

#: What an absent value looks like where it became text. Columns that name files may hold any word.
ABSENT = ("None", "nan", "NaN", "NaT", "<NA>", "null", "")
_FILES = {"path", "id", "relpath", "key", "audio_path", "unpaired_audio_path", "message", "dataset", "audio_relpath"}
#: How far the levels of decoded sound may be from what the row says: FLAC is exact, 32-bit floats are not quite.
_NEAR = 1e-4


def sane(
    dataset: str | Path,
    *,
    captions: Mapping[str, str | Sequence[str] | None] | None = None,
    split: Sequence[str] | None = None,
    inputs: int | None = None,
    media: int = 4,
    sources: bool = True,
    rules: bool = True,
    fields: bool = True,
    deep: bool = False,
) -> pl.DataFrame:
    """Fail with every fault of a dataset, or return its manifest.

    captions: by relpath, what was given (all inputs that had any; None: it had none). split: the names asked for, none of
    them if empty, whatever stands there if None. inputs: how many inputs there were. media: so many samples are decoded.
    sources: the raw files are what they were when the rows were made, so digests are compared. rules: no stand-in compiled,
    so that every measure is there. fields: they are judged, too (a repair mends them last). deep: `javisc verify` must agree.
    What a DatasetWriter wrote has no recipe: it is judged as far as that goes without raw files and measures.
    """
    root = Path(dataset)
    compiled = json.loads((root / "dataset.json").read_text())["recipe"] is not None
    rules, sources = rules and compiled, sources and compiled
    manifest = pl.read_parquet(root / "manifest.parquet", glob=False)
    own = _own(root, manifest)
    faults = [*_tables(root, manifest), *_cells(root, own, rules), *(_fields(root, manifest) if fields else ())]
    if captions is not None:
        faults += _captions(manifest, captions)
    if split is not None:
        faults += _splits(manifest, split)
    if (
        inputs is not None
        and (found := manifest.height + pl.read_parquet(root / "rejected.parquet", glob=False).height) != inputs
    ):
        faults.append(f"{inputs} inputs, {found} rows in manifest and rejects")
    if sources:
        faults += _sources(manifest)
    if manifest.height and media:
        faults += _members(root, own, media)
    if deep:
        faults += verify(root, workers=1).defects
    if faults:
        pytest.fail(f"{root} is not sane:\n  " + "\n  ".join(faults))
    return manifest


def _own(root: Path, manifest: pl.DataFrame) -> pl.DataFrame:
    """The manifest without what fields lay over it, by the table that they keep of that."""
    shown = json.loads((root / "dataset.json").read_text()).get("fields", {})
    columns = {column for columns in shown.values() for column in columns}
    if not columns:
        return manifest
    kept = (
        pl.read_parquet(root / "fields/own.parquet", glob=False)
        if (root / "fields/own.parquet").is_file()
        else manifest.select("key")
    )
    under = [column for column in kept.columns if column in columns]
    bare = manifest.drop(column for column in manifest.columns if column in columns)
    assert kept["key"].to_list() == manifest["key"].to_list(), "fields/own.parquet has other keys"
    return bare.with_columns(kept.select(under)).select(
        name for name in manifest.columns if name in {*bare.columns, *under}
    )


def _fields(root: Path, manifest: pl.DataFrame) -> Iterator[str]:
    """Every field lies beside the base: a member for some of its keys, by its shards, and columns in its manifest."""
    shown = json.loads((root / "dataset.json").read_text()).get("fields", {})
    folders = sorted(path for path in root.glob("fields/*") if path.is_dir())
    if {path.name for path in folders} != set(shown):
        yield f"fields/ has {[path.name for path in folders]}, dataset.json says {sorted(shown)}"
    newest: dict[str, tuple[int, dict[str, Any]]] = {}
    for folder in folders:
        told = json.loads((folder / "field.json").read_text())
        keys = 0
        for tar in sorted(folder.glob("*.tar")):
            base = root / "shards" / tar.name
            if told["parents"].get(tar.stem) != hashlib.sha256(base.read_bytes()).hexdigest():
                yield f"{tar}: its parent's digest is not that of {base}"
            mine = set(manifest.filter(pl.col("shard") == int(tar.stem))["key"])
            with tarfile.open(tar, "r:") as members:
                for info in members:
                    key, _, end = info.name.partition(".")
                    keys += 1
                    if key not in mine or end != told["member"]:
                        yield f"{tar}: {info.name} is no {told['member']} of a sample of that shard"
                    stream = members.extractfile(info)
                    content = stream.read() if stream else b""
                    if end == "json":
                        for column, value in json.loads(content).items():
                            seen = newest.setdefault(column, (0, {}))
                            if told["order"] >= seen[0]:
                                newest[column] = (told["order"], {**seen[1], key: value})
                    elif content:
                        row = manifest.row(by_predicate=pl.col("key") == key, named=True)
                        place = tuple(row[f"{folder.name}_{end}_{part}"] for part in ("offset", "size", "crc32"))
                        if place != (info.offset_data, len(content), zlib.crc32(content)):
                            yield f"{tar}: {info.name} lies elsewhere than the manifest says"
        if (told["counts"]["samples"], told["of"]) != (keys, manifest.height):
            yield f"{folder}: {keys} members of {manifest.height} samples, field.json says otherwise"
    for column, (_, values) in newest.items():
        if column == "texts":
            continue
        for key, value in values.items():
            if not _same(value, (found := manifest.row(by_predicate=pl.col("key") == key, named=True)[column])):
                yield f"{key}: {column} is {found!r}, its newest annotation says {value!r}"


def _tables(root: Path, manifest: pl.DataFrame) -> Iterator[str]:
    """The header, the tables and the files in shards/ must tell one story."""
    rejected = pl.read_parquet(root / "rejected.parquet", glob=False)
    shards = pl.read_parquet(root / "shards.parquet", glob=False)
    header = json.loads((root / "dataset.json").read_text())
    for name, frame, schema in (
        ("manifest", manifest, MANIFEST_SCHEMA), ("rejected", rejected, REJECTED_SCHEMA), ("shards", shards, SHARDS_SCHEMA)
    ):  # fmt: skip
        if wrong := [column for column, dtype in schema.items() if frame.schema.get(column) != dtype]:
            yield f"{name}.parquet: {', '.join(wrong)} missing or of another type"
    if len(twice := manifest.filter(pl.col("key").is_duplicated())["key"]):
        yield f"key {twice[0]} stands twice"
    if both := set(manifest["key"]) & set(rejected["key"]):
        yield f"{sorted(both)[0]} is in the manifest and refused"
    if rejected.filter(pl.col("reason").is_null() | (pl.col("message").fill_null("") == "")).height:
        yield "a refusal has no reason or says nothing"
    counts = header["counts"]
    told = (counts["samples"], counts["rejected"], counts["shards"], counts["bytes"], counts["frames"])
    frames = int(manifest["num_frames"].sum())
    if told != (have := (manifest.height, rejected.height, shards.height, int(shards["bytes"].sum()), frames)):
        yield f"dataset.json counts samples, rejected, shards, bytes, frames as {told}, the tables have {have}"
    if abs(counts["seconds"] - float(manifest["duration"].sum())) > 1e-6:
        yield f"dataset.json counts {counts['seconds']} seconds, the manifest has {manifest['duration'].sum()}"
    per_shard = dict(manifest["shard"].value_counts().iter_rows())
    names = set()
    for row in shards.iter_rows(named=True):
        name = f"{row['shard']:06d}"
        names |= {f"{name}.tar", f"{name}.idx"}
        tar, idx = ((root / "shards" / f"{name}.{end}") for end in ("tar", "idx"))
        if not tar.is_file() or not idx.is_file():
            yield f"shards/{name}: not there"
            continue
        content = tar.read_bytes()
        if (len(content), hashlib.sha256(content).hexdigest()) != (row["bytes"], row["sha256"]):
            yield f"shards/{name}.tar: size or SHA-256 is not that of shards.parquet"
        if hashlib.sha256(idx.read_bytes()).hexdigest() != row["idx_sha256"]:
            yield f"shards/{name}.idx: SHA-256 is not that of shards.parquet"
        if row["samples"] != per_shard.get(row["shard"]):
            yield f"shards/{name}: {row['samples']} samples, the manifest has {per_shard.get(row['shard'])}"
    there = {path.name for path in (root / "shards").glob("*") if path.suffix in (".tar", ".idx")}
    if there != names:
        yield f"shards/ holds {sorted(there ^ names)} too many or too few"
    if left := [path for path in root.rglob("*") if path.name.endswith(".tmp") or path.name == ".work"]:
        yield f"{left[0]} was left behind"


def _cells(root: Path, manifest: pl.DataFrame, rules: bool) -> Iterator[str]:
    for column, dtype in manifest.schema.items():
        if column in _FILES or dtype not in (pl.String(), pl.List(pl.String())):
            continue
        values = manifest[column].explode() if isinstance(dtype, pl.List) else manifest[column]
        if bad := values.drop_nulls().filter(values.drop_nulls().str.strip_chars().is_in(ABSENT)).to_list():
            yield f"{column} is the text {bad[0]!r} in {len(bad)} rows, where a null was meant"
    if rules:
        recipe = Recipe.from_json(json.loads((root / "dataset.json").read_text())["recipe"])
        yield from defects(manifest.lazy(), recipe)


def _captions(manifest: pl.DataFrame, captions: Mapping[str, str | Sequence[str] | None]) -> Iterator[str]:
    for relpath, text, texts in manifest.select("relpath", "text", "texts").iter_rows():
        given = captions.get(relpath)
        given = [given] if isinstance(given, str) else list(given or [])
        if (texts or []) != given or text != (given[0] if given else None):
            yield f"{relpath}: text is {text!r} of {texts}, {given} was given"


def _splits(manifest: pl.DataFrame, split: Sequence[str]) -> Iterator[str]:
    allowed = set(split) or {None}
    if wrong := set(manifest["split"]) - allowed:
        yield f"split is {sorted(map(str, wrong))}, asked for were {sorted(map(str, allowed))}"
    group = "group" if "group" in manifest.columns and manifest["group"].null_count() == 0 else "source_sha256"
    torn = manifest.group_by(group).agg(pl.col("split").n_unique()).filter(pl.col("split") > 1)
    if torn.height:
        yield f"{torn.height} groups lie in several splits: {torn[group][0]}"


def _sources(manifest: pl.DataFrame) -> Iterator[str]:
    """Digest and size of every row are those of the file that it names."""
    known: dict[str, tuple[str, int]] = {}
    for path, digest, size in manifest.select("path", "source_sha256", "source_bytes").iter_rows():
        if "://" in path or not Path(path).is_file():
            continue
        if path not in known:
            content = Path(path).read_bytes()
            known[path] = hashlib.sha256(content).hexdigest(), len(content)
        if (digest, size) != known[path]:
            yield f"{path}: digest and size are {digest}, {size}; the file's are {known[path]}"
    for path, sound, digest in manifest.select("path", "audio_path", "audio_sha256").iter_rows():
        if sound is None or sound == path or not Path(sound).is_file():
            continue
        if digest != (right := hashlib.sha256(Path(sound).read_bytes()).hexdigest()):
            yield f"{path}: its sound {sound} has the digest {right}, the row says {digest}"


def _members(root: Path, manifest: pl.DataFrame, media: int) -> Iterator[str]:
    """The members of some rows, read with tarfile, PyAV and soundfile."""
    recipe = json.loads((root / "dataset.json").read_text())["recipe"]
    rate = None if recipe is None else Fraction(recipe["fps"])
    every = max(1, manifest.height // media)
    for row in manifest.gather_every(every).head(media).iter_rows(named=True):
        name = f"shards/{row['shard']:06d}.tar"
        if not (root / name).is_file():
            continue  # said already
        with tarfile.open(root / name, "r:") as tar:
            members = {
                info.name.removeprefix(f"{row['key']}."): (info.offset_data, tar.extractfile(info))
                for info in tar
                if info.name.startswith(f"{row['key']}.")
            }
            contents = {end: (at, stream.read() if stream else b"") for end, (at, stream) in members.items()}
        wanted = [end for end in ("json", "flac", "mp4") if row[f"{end}_offset"] is not None]
        if list(contents) != wanted:
            yield f"{name}: {row['key']} has the members {list(contents)}, the row says {wanted}"
            continue
        line = f"{row['key']}".encode()
        if line not in (root / name).with_suffix(".idx").read_bytes():
            yield f"{name}: the index does not know {row['key']}"
        for end, (at, content) in contents.items():
            place = (row[f"{end}_offset"], row[f"{end}_size"], row[f"{end}_crc32"])
            if place != (at, len(content), zlib.crc32(content)):
                yield f"{name}: {row['key']}.{end} lies elsewhere or is other than the row says: {place}"
        said = json.loads(contents["json"][1])
        if wrong := [column for column, value in said.items() if not _same(value, row[column])]:
            yield f"{row['key']}.json: {wrong[0]} is {said[wrong[0]]!r}, the manifest has {row[wrong[0]]!r}"
        if "mp4" in contents:
            yield from _picture(row, contents["mp4"][1], rate or Fraction(row["fps"]).limit_denominator(1001))
        if "flac" in contents:
            yield from _sound(row, contents["flac"][1])


def _same(a: Any, b: Any) -> bool:
    return abs(a - b) <= 1e-6 * abs(b) + 1e-9 if isinstance(b, float) else a == b


def _picture(row: Mapping[str, Any], content: bytes, rate: Fraction) -> Iterator[str]:
    with av.open(io.BytesIO(content)) as file:
        stream = file.streams.video[0]
        times = [frame.time for frame in file.decode(stream)]
        found = (len(times), stream.height, stream.width)
    if found != (row["num_frames"], row["height"], row["width"]):
        yield f"{row['key']}.mp4: frames, height, width are {found}, the row says otherwise"
    if any(time is None or abs(time - float(n / rate)) > 1e-4 for n, time in enumerate(times)):
        yield f"{row['key']}.mp4: its frames are not on the grid of {rate} a second"
    samples = round(row["num_frames"] * row["audio_fps"] / rate) if row["audio_fps"] else None
    if row["flac_offset"] is not None and row["num_samples"] != samples:
        yield f"{row['key']}: {row['num_samples']} samples, {row['num_frames']} frames last {samples}"


def _sound(row: Mapping[str, Any], content: bytes) -> Iterator[str]:
    sound, rate = soundfile.read(io.BytesIO(content), dtype="float64", always_2d=True)
    found = (*sound.shape, rate)
    if found != (row["num_samples"], row["channels"], row["audio_fps"]):
        yield f"{row['key']}.flac: samples, channels, rate are {found}, the row says otherwise"
    for name in ("pad_head", "pad_tail"):
        length = row[name] or 0
        if not 0 <= length <= len(sound):
            yield f"{row['key']}: {name} is {length} of {len(sound)} samples"
    window = round(0.05 * rate)
    whole = sound[: len(sound) // window * window].reshape(-1, window * sound.shape[1])
    quiet = float(np.mean(np.sqrt(np.mean(whole**2, axis=1)) < 1e-3)) if len(whole) else None
    said = row["silence_ratio"]  # nothing, where nobody measured it: of a recipe's clips `rules` wants it
    if quiet is not None and said is not None and abs(quiet - said) > 1.5 / max(1, len(whole)) + _NEAR:
        yield f"{row['key']}: silence_ratio is {said}, {quiet} of the windows are silent"


def watch() -> None:
    """From now on, judge what every `build` of this process publishes, when it is published."""
    from javisc.compiler import build as home
    from javisc.compiler.run.engine import COMPILERS

    run, real = home._Build.run, dict(COMPILERS)

    def judged(self: home._Build, inputs: home.Inputs | None) -> home.BuildResult:
        again = self.store.exists(*home.PLAN)
        result = run(self, inputs)
        stand_in = self.options.compiler is not None or real != COMPILERS
        if not (self.options.partial or result.shards_left or self.options.write_plan or self.store.remote):
            names = list(self.options.split)
            sane(
                self.store.root,
                split=names if names else None,
                media=0 if stand_in else 2,
                sources=not stand_in and (not again or self.options.prune),
                rules=not stand_in,
                fields=not self.options.repair,
            )
        return result

    home._Build.run = judged  # type: ignore[method-assign]


def split_by_hash(groups: Iterable[str], shares: Mapping[str, float], seed: int = 0) -> list[str]:
    """The definition of a split, written out: BLAKE2b of "seed/group" as a number in [0, 1), laid along the shares."""
    found: list[str] = []
    for group in groups:
        place = int(hashlib.blake2b(f"{seed}/{group}".encode(), digest_size=8).hexdigest(), 16) / 2**64
        ends = accumulate(shares.values())
        found.append(next((name for name, end in zip(shares, ends, strict=True) if place < end), [*shares][-1]))
    return found
