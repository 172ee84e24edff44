"""`javisc score` from end to end: columns, views, what a kill leaves, and `javisc filter` after it."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import polars as pl
import pytest
from click.testing import CliRunner, Result
from polars.testing import assert_frame_equal
from safetensors.torch import load_file, save_file

from javisc.cli import cli
from javisc.compiler.build import build
from javisc.compiler.check.dataset import verify
from javisc.compiler.demo.jav import write_scene
from javisc.compiler.demo.scenes import scene
from javisc.compiler.inputs.raw import from_raw
from javisc.compiler.recipe import PRESETS
from javisc.manifests.errors import UserError
from javisc.manifests.io import Dataset, write_view
from javisc.manifests.schema import SCORES_SCHEMA
from javisc.trainer.use import score as scoring
from javisc.trainer.use.rate_crops import Rater
from javisc.trainer.use.score import Scored, ScoreOptions, score
from javisc.trainer.use.score_clip import NEEDED
from javisc.trainer.use.score_worker import WorkerOptions, score_rows
from javisc.trainer.use.selector import load_selector, predict
from support import compiled, selector
from support.processes import alive, workers_of

NAMES = SCORES_SCHEMA.names()
#: Clips are scored in the test's process, but for the command that is killed, whose workers are real.
pytestmark = [pytest.mark.dist, pytest.mark.usefixtures("here")]


@pytest.fixture(scope="module")
def best(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(selector.write_best(tmp_path_factory.mktemp("run") / "best"))


def run(source: Path, best: str, out: Path | None = None, **options: object) -> Scored:
    chosen = ScoreOptions(**{"workers": 1, "part_size": 2, **options})  # type: ignore[arg-type]
    return score(str(source), best, None if out is None else str(out), options=chosen)


def done(*arguments: object) -> Result:
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert result.exit_code == 0, (result.output, result.exception)
    return result


def test_a_dataset_is_scored_in_place_and_grows(tmp_path: Path, best: str) -> None:
    """Real clips, built, scored, verified, added to and scored again: shards and other columns stay as they are."""
    raw, out = tmp_path / "raw", tmp_path / "ds"
    raw.mkdir()
    recipe = PRESETS["sync"].replace(short_side=32)

    def add(*numbers: int) -> None:
        for number in numbers:
            write_scene(scene(number, seconds=2.0, fps=25, size=(64, 80), balls=1), raw / f"{number}.mp4")
        build(from_raw([str(raw)]), recipe, out)

    add(0, 1, 2)
    before, shards = pl.read_parquet(out / "manifest.parquet"), contents(out / "shards")
    told = run(out, best)
    after = pl.read_parquet(out / "manifest.parquet")
    assert (told.rows, told.fresh, dict(told.reasons)) == (3, 3, {})
    assert after.columns == [*before.columns, *sorted(NAMES)] and after.select(before.columns).equals(before)
    assert after.select(NAMES).schema == SCORES_SCHEMA and after["sync_confidence"].is_between(0, 1).all()
    assert after.select((pl.col("sync_margin") <= pl.col("sync_confidence")).all()).item()
    (field,) = Dataset.open(out).fields()
    made_by = field.header["made_by"]
    assert field.name == "scores" and made_by["checkpoint"] == best and len(made_by["weights"]) == 64
    assert contents(out / "shards") == shards and verify(out, workers=1).defects == []
    # The middle crop of a clip in shards says what `javisc predict` says of that second of the video file.
    row = Dataset.open(out).located().filter(pl.col("id") == "1").select(NEEDED).collect().to_dicts()
    (told_here,) = score_rows(row, asdict(WorkerOptions(best, "cpu", 1, 1, "fp32", 1, 25, 32, 0.0, "")))
    first, second = predict(*load_selector(best), raw / "1.mp4", v_start_sec=0.48).ranked[:2]
    assert told_here["sync_offset"] == pytest.approx(first.offset_sec, abs=1e-6)
    assert told_here["sync_confidence"] == pytest.approx(first.probability, abs=1e-4)
    assert told_here["sync_margin"] == pytest.approx(first.probability - second.probability, abs=1e-4)
    add(3)
    grown = pl.read_parquet(out / "manifest.parquet")
    assert grown.filter(pl.col("key").is_in(after["key"].to_list())).select(after.columns).equals(after)
    assert grown["sync_offset"].null_count() == 1, "the new clip's"
    told = run(out, best)
    again = pl.read_parquet(out / "manifest.parquet")
    assert told.rows == 4 and told.fresh <= 2  # the rest was kept; a part holds two
    same(again.filter(pl.col("key").is_in(after["key"].to_list())), after)
    whole = contents(out / "fields" / "scores")
    assert run(out, best).fresh == 0 and contents(out / "fields" / "scores") == whole
    done("annotate", out, "--undo", "scores")
    assert pl.read_parquet(out / "manifest.parquet").columns == before.columns
    for wrong in (["--as", "s", "--out", tmp_path / "v"], ["--as", "S"], ["--keep-features", "scores"]):
        told = CliRunner().invoke(cli, ["score", str(out), "--checkpoint", best, *map(str, wrong)])
        assert told.exit_code and ("--as" in str(told.exception) or "--keep-features" in str(told.exception)), wrong


def same(a: pl.DataFrame, b: pl.DataFrame) -> None:
    """The same clips with the same scores; batches of other neighbours round their sums in another way."""
    assert_frame_equal(a.select("key", *NAMES), b.select("key", *NAMES), abs_tol=1e-3)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_views_and_tables_of_several_rates_then_filter(tmp_path: Path, best: str) -> None:
    a = compiled.write(tmp_path / "a", [40, 50, 20, 45, 60, 38], fps=25, hiss=True)
    b = compiled.write(tmp_path / "b", [70, 80, 90], fps=24, size=(96, 64), hiss=True)
    done("merge", a, b, "--on-duplicate", "keep", "--out", tmp_path / "all")
    options = ["--checkpoint", best, "--workers", 1, "--part-size", 4]
    told = done("score", tmp_path / "all", *options, "--out", tmp_path / "scored")
    assert "1 without a score: too short" in told.output and "8 of 9 scored, 9 looked at now" in told.output
    assert "00000002: too short" in told.stderr
    rows = pl.read_parquet(tmp_path / "scored" / "manifest.parquet")
    # This model tells nothing of synchronizability.
    told = rows.select(pl.col(NAMES).exclude("synchronizable"))
    assert set(told.null_count().row(0)) == {1} and rows["sync_offset"].n_unique() > 2
    assert rows["synchronizable"].null_count() == len(rows)
    assert rows["key"].to_list() == pl.read_parquet(tmp_path / "all" / "manifest.parquet")["key"].to_list()
    assert Dataset.open(tmp_path / "scored").header["made_by"]["command"] == "score"
    # Each clip is what it is by itself, whatever table it stands in.
    run(a, best, tmp_path / "a.parquet")
    same(pl.read_parquet(tmp_path / "a.parquet"), rows[:6])
    # A view gets its columns in place as well; parts that are there already serve it too.
    told_again = score(
        str(tmp_path / "all"), best, options=ScoreOptions(part_size=4), parts=str(tmp_path / ".scored.score")
    )
    assert (told_again.rows, told_again.fresh) == (9, 0)
    inside = pl.read_parquet(tmp_path / "all" / "manifest.parquet")
    assert inside.select(NAMES).equals(rows.select(NAMES)) and inside["dataset"].equals(rows["dataset"])
    assert "sync_offset" not in pl.read_parquet(a / "manifest.parquet").columns
    # And the pair: what is in sync, surely.
    wanted = "sync_confidence > 0.5 and abs(sync_offset) <= 0.2"
    told = done("filter", tmp_path / "scored", wanted, "--out", tmp_path / "good")
    kept = rows.filter((pl.col("sync_confidence") > 0.5) & pl.col("sync_offset").is_in([-0.2, 0.0, 0.2]))
    assert 0 < len(kept) < 8 and f"{len(kept)} of 9 kept" in told.output and "1 of them have no value" in told.output
    good = pl.read_parquet(tmp_path / "good" / "manifest.parquet")
    assert good.select("key", "dataset", *NAMES).equals(kept.select("key", "dataset", *NAMES))


def test_what_may_pass_is_tried_again(tmp_path: Path, best: str) -> None:
    """A shard that is away for a while costs its clips this time only; a damaged part is said."""
    folder = compiled.write(tmp_path / "ds", [30, 35, 40], fps=25, per_shard=2, hiss=True)
    away = folder / "shards" / "000001.tar"
    away.rename(tmp_path / "away")
    told = run(folder, best, tmp_path / "a.parquet")
    assert dict(told.reasons) == {"unreadable": 1} and "000001.tar" in told.named[0]
    (tmp_path / "away").rename(away)
    told = run(folder, best, tmp_path / "a.parquet")
    assert (told.fresh, dict(told.reasons)) == (1, {})
    assert pl.read_parquet(tmp_path / "a.parquet")["sync_offset"].null_count() == 0
    part = next((tmp_path / ".a.parquet.score").glob("*.parquet"))
    part.write_bytes(part.read_bytes()[:50])
    with pytest.raises(UserError, match="holds a part that is damaged"):
        run(folder, best, tmp_path / "a.parquet")


def wait_for(what: Callable[[], bool], seconds: float = 500) -> None:
    """For as long as a very busy machine may need."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_killed_and_resumed_is_the_run_that_was_not(tmp_path: Path, best: str) -> None:
    """SIGKILL in the middle: the manifest is untouched, workers go too; then only what is missing is done."""
    count, few = 16, 3
    lengths = [30 + 5 * (number % 7) for number in range(count)]
    whole = compiled.write(tmp_path / "whole", lengths, fps=25, hiss=True)
    killed = tmp_path / "killed"
    shutil.copytree(whole, killed)
    assert run(whole, best, part_size=1).fresh == count
    before = (killed / "manifest.parquet").read_bytes()
    command = [sys.executable, "-P", "-m", "javisc", "score", str(killed), "--checkpoint", best]
    command += ["--workers", "2", "--part-size", "1"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: len(list(killed.glob(".score/*.parquet"))) >= few or process.poll() is not None)
        workers = [pid for pid, _ in workers_of(process.pid)]
    finally:
        process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL and workers
    wait_for(lambda: not any(alive(pid) for pid in workers))
    assert (killed / "manifest.parquet").read_bytes() == before
    parts = {path: path.stat().st_mtime_ns for path in killed.glob(".score/*.parquet")}
    assert few <= len(parts) < count
    told = run(killed, best, part_size=1)
    assert told.fresh == count - len(parts) and all(path.stat().st_mtime_ns == made for path, made in parts.items())
    assert (killed / "manifest.parquet").read_bytes() == (whole / "manifest.parquet").read_bytes()
    assert {path.name: path.read_bytes() for path in parts} == {
        path.name: (whole / ".score" / path.name).read_bytes() for path in parts
    }


def test_mistakes_are_told_before_anything_runs(tmp_path: Path, best: str) -> None:
    folder = compiled.write(tmp_path / "ds", [30], fps=25)
    for options, message in [
        ({"short_side": 16}, "--short-side 16: the selector looks at 32 pixels"),
        (
            {"fps": 50},
            "--fps 50: 25 positions along time, but the table has 20: .* rate that the selector was trained at",
        ),
        ({"device": "cuda"}, "--device cuda: this machine has no CUDA device"),
    ]:
        if message.startswith("--device") and Path("/dev/nvidiactl").exists():
            continue
        with pytest.raises(UserError, match=message):
            run(folder, best, **options)
    half = selector.write_best(tmp_path / "best", [*selector.TINY, "transforms.crop_len_sec=1.5"])
    with pytest.raises(UserError, match=r"--fps 25: the selector's 1\.5 s are no whole number of frames"):
        run(folder, str(half))
    with pytest.raises(UserError, match="table of a compiled dataset"):
        run(folder / "manifest.parquet", best)
    write_view(Dataset.open(folder).located().filter(pl.lit(False)), str(tmp_path / "none"), made_by={})
    with pytest.raises(UserError, match="no rows"):
        run(tmp_path / "none", best)


def test_a_dataset_that_changed_meanwhile_is_left_alone(
    tmp_path: Path, best: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = compiled.write(tmp_path / "ds", [30, 35], fps=25)
    table = scoring._Run.table

    def changing(self: scoring._Run, names: list[str]) -> pl.LazyFrame:
        rows = pl.read_parquet(folder / "manifest.parquet")
        rows.with_columns(num_frames=pl.col("num_frames") + 1).write_parquet(folder / "manifest.parquet")
        return table(self, names)

    monkeypatch.setattr(scoring._Run, "table", changing)
    with pytest.raises(UserError, match="has changed meanwhile"):
        run(folder, best)
    assert "sync_offset" not in pl.read_parquet(folder / "manifest.parquet").columns


#: Of each option another value, and whether it has a say in a score: then parts that were made otherwise are not taken for it.
SHAPING = {"crops": (2, True), "fps": (20, True), "short_side": (48, True), "precision": ("bf16", True),
           "audio_advance_sec": (0.1, True), "batch_size": (3, False), "threads": (3, False), "workers": (2, False),
           "device": ("cpu", False), "keep_features": ("", False), "engine": ("local", False), "address": (None, False),
           "preset": ("", False), "part_size": (100, False)}  # fmt: skip


def test_parts_of_other_options_are_not_taken_for_what_is_asked(
    tmp_path: Path, best: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Rater, "_each", 1.0)  # what a crop costs has no say in it
    assert set(SHAPING) == set(asdict(ScoreOptions())), "a new option: say whether scores depend on it"
    folder = compiled.write(tmp_path / "ds", [30, 35], fps=25)

    def names(checkpoint: str = best, **options: object) -> list[str]:
        chosen = ScoreOptions(**options)  # type: ignore[arg-type]
        return [
            name
            for name, _ in scoring._Run(
                Dataset.open(str(folder)), checkpoint, chosen, str(tmp_path / "p"), print
            ).units()
        ]

    usual = names()
    for option, (value, shapes) in SHAPING.items():
        assert (names(**{option: value}) != usual) == shapes, option
    other = Path(shutil.copytree(best, tmp_path / "other"))
    (file,) = other.glob("*.safetensors")
    weights = load_file(file)
    weights[min(weights)] += 1
    save_file(weights, file)
    assert names(str(other)) != usual, "other weights"


def test_what_a_model_does_not_give_keeps_what_another_gave() -> None:
    """In a view or a table: columns of this model anew, those of another as they were, each once and in their order."""
    had = pl.DataFrame(
        {"key": ["a", "b"], "synchronizable": [0.9, None], "sync_offset": [0.4, 0.2], "text": ["x", "y"]}
    )
    made = pl.DataFrame([{"key": key, "sync_offset": -0.2, "desync": 0.2} for key in "ab"], schema=scoring.PART_SCHEMA)
    given = [name for name in SCORES_SCHEMA if name != "synchronizable"]
    told = scoring._with_scores(had.lazy(), made.lazy(), given).collect()
    assert told.columns == ["key", "text", *SCORES_SCHEMA]
    assert told["synchronizable"].to_list() == [0.9, None] and told["sync_offset"].to_list() == [-0.2, -0.2]
    assert told["desync"].round(3).to_list() == [0.2, 0.2] and told["text"].to_list() == ["x", "y"]
    first = scoring._with_scores(had.drop("synchronizable", "sync_offset").lazy(), made.lazy(), given).collect()
    assert first["synchronizable"].null_count() == 2 and first.columns == told.columns
