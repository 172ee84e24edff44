"""Every bound, flag and choice of filter, and the rules of merge, dedupe and export, against plain Python over random tables."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import polars as pl
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from javisc.cli import cli
from javisc.manifests.dedupe import EVALUATION
from javisc.manifests.filters import BOUNDS, CHOICES, FLAGS
from javisc.manifests.schema import MANIFEST_SCHEMA
from support.tables import dataset, rows

#: Written out: what each option of `javisc filter` must mean.
AT_LEAST = {
    "min-frames": "num_frames", "min-seconds": "duration", "min-fps": "fps", "min-resolution": "resolution",
    "min-height": "height", "min-width": "width", "min-aspect": "aspect_ratio", "min-loudness": "loudness",
    "min-bandwidth": "bandwidth", "min-motion": "motion",
}  # fmt: skip
AT_MOST = {
    "max-frames": "num_frames", "max-seconds": "duration", "max-fps": "fps", "max-resolution": "resolution",
    "max-aspect": "aspect_ratio", "max-loudness": "loudness", "max-silence": "silence_ratio", "max-clipping": "clipping_ratio",
    "max-still": "still_ratio", "max-black": "black_ratio", "max-cuts": "scene_cuts",
}  # fmt: skip
FALSE = {"no-silent": "silent", "no-still": "still"}
ONE_OF = {"lang": "lang", "corpus": "corpus", "split": "split"}
NUMBER = st.sampled_from([None, -60.0, -1.0, 0.0, 0.25, 0.5, 1.0, 2.0, 24.0])
WORD = st.sampled_from([None, "a", "b", "c", "A", "a,b"])


def build(folder: Path, columns: dict[str, list[Any]], **fixed: Any) -> Path:
    """A dataset whose rows differ in the given columns alone."""
    count = len(next(iter(columns.values())))
    table = rows(count, **fixed).with_columns(
        pl.Series(name, values, strict=False).cast(MANIFEST_SCHEMA[name]) for name, values in columns.items()
    )
    return dataset(folder, table)


def run(*arguments: object) -> str:
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@contextmanager
def scratch() -> Iterator[Path]:
    with TemporaryDirectory() as folder:
        yield Path(folder)


def test_these_are_all_the_options() -> None:
    assert {name: (column, ">=") for name, column in AT_LEAST.items()} | {
        name: (column, "<=") for name, column in AT_MOST.items()
    } == BOUNDS
    assert FLAGS == FALSE and CHOICES == ONE_OF and len(BOUNDS) == 21


@pytest.mark.parametrize("option", [*AT_LEAST, *AT_MOST])
@settings(max_examples=6)
@given(values=st.lists(NUMBER, min_size=1, max_size=12), bound=NUMBER.filter(lambda value: value is not None))
def test_a_bound_keeps_the_known_values_on_its_side(option: str, values: list[float | None], bound: float) -> None:
    column = (AT_LEAST | AT_MOST)[option]
    if not MANIFEST_SCHEMA[column].is_float():
        values = [None if value is None else float(int(value)) for value in values]
    with scratch() as folder:
        ds = build(folder / "ds", {column: values, "key": [f"k{n:02}" for n in range(len(values))]})
        said = run("filter", ds, f"--{option}={bound}", "--out", folder / "v.parquet")
        kept = pl.read_parquet(folder / "v.parquet")["key"].to_list()
    met = [
        f"k{n:02}"
        for n, value in enumerate(values)
        if value is not None and (value >= bound if option in AT_LEAST else value <= bound)
    ]
    assert kept == met
    unknown = sum(value is None for value in values)
    assert (
        f"{len(values) - len(met)} removed by --{option} {bound:g}" in said
        and f"{len(met)} of {len(values)} kept" in said
    )
    assert (f"({unknown} of them have no value there)" in said) == (unknown > 0)


@pytest.mark.parametrize("option", FALSE)
@settings(max_examples=8)
@given(values=st.lists(st.sampled_from([None, True, False]), min_size=1, max_size=10))
def test_a_flag_keeps_what_is_known_to_be_false(option: str, values: list[bool | None]) -> None:
    with scratch() as folder:
        ds = build(folder / "ds", {FALSE[option]: values, "key": [f"k{n:02}" for n in range(len(values))]})
        run("filter", ds, f"--{option}", "--out", folder / "v.parquet")
        kept = pl.read_parquet(folder / "v.parquet")["key"].to_list()
    assert kept == [f"k{n:02}" for n, value in enumerate(values) if value is False]


@pytest.mark.parametrize("option", ONE_OF)
@settings(max_examples=8)
@given(values=st.lists(WORD, min_size=1, max_size=10), wanted=st.lists(WORD.filter(bool), min_size=1, max_size=3))
def test_a_choice_keeps_the_values_that_were_named(option: str, values: list[str | None], wanted: list[str]) -> None:
    with scratch() as folder:
        ds = build(folder / "ds", {ONE_OF[option]: values, "key": [f"k{n:02}" for n in range(len(values))]})
        run("filter", ds, *(f"--{option}={value}" for value in wanted), "--out", folder / "v.parquet")
        kept = pl.read_parquet(folder / "v.parquet")["key"].to_list()
    assert kept == [f"k{n:02}" for n, value in enumerate(values) if value in wanted]


@settings(max_examples=20)
@given(
    keys=st.lists(st.lists(st.sampled_from("abcde"), max_size=6, unique=True).map(sorted), min_size=1, max_size=3),
    rule=st.sampled_from(["error", "first", "keep"]),
)
def test_merge_does_with_equal_keys_what_it_was_told(keys: list[list[str]], rule: str) -> None:
    with scratch() as folder:
        sets = [
            build(folder / f"ds{n}", {"key": names}) if names else dataset(folder / f"ds{n}", rows(0))
            for n, names in enumerate(keys)
        ]
        every = [(str(ds), key) for ds, names in zip(sets, keys, strict=True) for key in names]
        first = [pair for n, pair in enumerate(every) if pair[1] not in {key for _, key in every[:n]}]
        command = ["merge", *map(str, sets), "--out", str(folder / "v.parquet"), "--on-duplicate", rule]
        result = CliRunner().invoke(cli, command)
        if rule == "error" and first != every:
            assert "--on-duplicate first" in str(result.exception) and not (folder / "v.parquet").exists()
            return
        assert result.exit_code == 0, result.exception
        found = pl.read_parquet(folder / "v.parquet").select("dataset", "key").rows()
    assert found == (every if rule == "keep" else first)


@settings(max_examples=30)
@given(
    parts=st.lists(
        st.tuples(st.sampled_from(["x", "y", "z", None]), st.sampled_from(["train", "val", "test", "dev", None])),
        min_size=1,
        max_size=10,
    ),
    rule=st.sampled_from(["one", "leaks"]),
)
def test_dedupe_keeps_what_its_rule_says(parts: list[tuple[str | None, str | None]], rule: str) -> None:
    keys = [f"k{n:02}" for n in range(len(parts))]
    with scratch() as folder:
        columns = {"key": keys, "source_sha256": [part[0] for part in parts], "split": [part[1] for part in parts]}
        ds = build(folder / "ds", columns, flac_size=5, mp4_size=None)
        run("dedupe", ds, "--rule", rule, "--out", folder / "v.parquet", "--groups", folder / "g.parquet")
        kept = pl.read_parquet(folder / "v.parquet")["key"].to_list()
        members = dict(pl.read_parquet(folder / "g.parquet").select("key", "kept").iter_rows())
    expected = []
    for n, (digest, split) in enumerate(parts):
        group = [m for m, part in enumerate(parts) if part[0] == digest and digest is not None]
        if len(group) < 2:
            expected.append(keys[n])
            continue
        ranks = [EVALUATION.index(parts[m][1]) if parts[m][1] in EVALUATION else len(EVALUATION) for m in group]
        mine = EVALUATION.index(split) if split in EVALUATION else len(EVALUATION)
        best = [m for m, rank in zip(group, ranks, strict=True) if rank == min(ranks)]
        stays = n == best[0] if rule == "one" else mine == min(ranks) or min(ranks) == len(EVALUATION)
        assert members[keys[n]] == stays
        if stays:
            expected.append(keys[n])
    assert kept == expected


@settings(max_examples=30)
@given(
    parts=st.lists(
        st.tuples(
            st.sampled_from([None, "a dog"]),
            st.sampled_from([None, "/s.wav"]),
            st.sampled_from([0, 24]),
            st.sampled_from([0, 1]),
            st.sampled_from([None, "bark"]),
        ),
        min_size=1,
        max_size=8,
    ),
    kind=st.sampled_from(["audio", "prior", "jav"]),
    bare=st.booleans(),
)
def test_export_leaves_out_what_the_trainer_cannot_read_and_counts_it(parts: list[Any], kind: str, bare: bool) -> None:
    names = ("text", "audio_path", "num_frames", "channels", "audio_text")
    ids = [f"i{n}" for n in range(len(parts))]
    columns = {name: [part[i] for part in parts] for i, name in enumerate(names)} | {"id": ids, "relpath": ids}
    with scratch() as folder:
        ds = build(folder / "ds", columns, unpaired_audio_path="/u.wav")
        said = run("export", ds, "--csv", folder / "t.csv", "--kind", kind, *(["--allow-no-caption"] if bare else []))
        with (folder / "t.csv").open() as file:
            found = [row["relpath"] for row in csv.DictReader(file)]
    usable = {
        n for n, (_, path, frames, channels, _) in enumerate(parts) if path and channels and (kind == "audio" or frames)
    }
    captioned = {n for n, (text, *_, heard) in enumerate(parts) if text or (kind == "audio" and heard)}
    kept = [ids[n] for n in sorted(usable & (captioned if not bare else usable))]
    assert found == kept and f"{len(kept)} rows" in said
    assert (f"{len(parts) - len(usable)} rows left out: without sound" in said) == (len(usable) < len(parts))
    silent = usable - captioned
    assert (f"{len(silent)} rows left out: without a caption" in said) == (bool(silent) and not bare)
