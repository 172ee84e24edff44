"""What a command says and exits with is what the library found: each number in its own place and unit.

Records of the library stand in, in which no two numbers are alike; that the library counts rightly is shown where it is tested.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest
from click.testing import CliRunner

from javisc import cli
from javisc.compiler.build import BuildResult
from javisc.compiler.check.dataset import Verified
from javisc.compiler.check.status import Status
from javisc.compiler.dedupe.repeats import Deduped
from javisc.compiler.fields.annotate import Annotated
from javisc.compiler.fields.render import Rendered
from javisc.compiler.repair.dataset import Repaired
from javisc.compiler.report import Report
from javisc.compiler.run.estimate import Estimate
from javisc.compiler.sparsesync.files import Done
from javisc.compiler.store.running import Builder
from javisc.kernels.aot import Resources
from javisc.manifests.errors import UserError
from javisc.manifests.filters import Filtered, Removed
from javisc.manifests.javisdit import Exported
from javisc.manifests.merge import Merged
from javisc.trainer.use.encode_field import EncodedField
from javisc.trainer.use.score import Scored
from javisc.trainer.use.score_forecast import Forecast
from javisc.trainer.use.sync_demo import LATE, Learnt
from javisc.trainer.use.sync_demo import told as told_of
from support.options import Command, run
from support.options.training import COMMANDS as TRAINING

_BUILD, _VERIFY = "javisc.compiler.build:build", "javisc.compiler.check.dataset:verify"
_STATUS, _RENDER = "javisc.compiler.check.status:status", "javisc.compiler.fields.render:render"
_EXPORT, _SCORE = "javisc.manifests.javisdit:export_csv", "javisc.trainer.use.score:score"
_SCAN: dict[str, Any] = {"javisc.manifests.io:scan_many": ([], None)}

BUILT = BuildResult("DS", 5, 3, 7_000_000, {"not_media": 4, "corrupt": 2}, 8.0, 9)
FOUND = Verified(5, 3, 7_000_000, ["a defect", "another"], 40, 400, 2, 6)
STANDS = Status(11, 90, 4, 20, 19, {"corrupt": 3, "silent": 2}, 7_000_000, (1, 2, 5, 7, 8, 9, 10), 0.1, False)
COUNTED = Exported(rows=5, without_caption=4, without_media=3, without_unpaired=2, files=7)
SCORED = Scored(9, 6, {"too_short": 2, "crashed": 1}, ["k: crashed: it died"], 3)
COST = Forecast(clips=4, pieces=12, windows=6, flop=5e12, reasons={"too_short": 1}, known=3, keeps=7_000_000)

SAID: list[tuple[str, Mapping[str, Any], str, int]] = [
    # verify: a line of the draw, in samples or, at the level digests, in shards; a sound one exits with 0
    ("verify DS", {_VERIFY: FOUND}, f"""\
6 shards were found sound by a check that was interrupted, and were not read again
DS: 2 defects in 5 samples in 3 shards, 7 MB, 0.0 s
40 of 400 samples were read, 2 are damaged: with 95 % confidence at most {FOUND.missed} (14.75%) of all are
""", 1),
    ("verify DS --level digests --part 1/3", {_VERIFY: replace(FOUND, defects=[], bad=0, resumed=0)}, """\
DS: sound: 5 samples in 3 shards, 7 MB, 0.0 s, part 1/3
40 of 400 shards were read, 0 are damaged: with 95 % confidence at most 28 (7.00%) of all are
""", 0),
    # status: what is left, and at the end what to type
    ("status DS --parts 3", {_STATUS: STANDS}, """\
DS: 4 of 11 shards are published, 20 of 90 inputs
19 samples, 7 MB; 5 inputs rejected (3 corrupt, 2 silent)
missing shards: 1-2,5,7-10
parts to run again, of 3: 0-2
6.0 inputs a minute of late: 12 min left at this rate
""", 0),
    ("status DS", {_STATUS: replace(STANDS, published=11, inputs_done=90, missing=(), rejected={})}, """\
DS: 11 of 11 shards are published, 90 of 90 inputs
19 samples, 7 MB; 0 inputs rejected
every shard is published: the same command with --finish merges them
""", 0),
    ("status DS", {_STATUS: replace(STANDS, missing=(), merged=True, rejected={})}, """\
DS: 4 of 11 shards are published, 20 of 90 inputs
19 samples, 7 MB; 0 inputs rejected
""", 0),
    ("repair DS", {"javisc.compiler.repair.dataset:repair": Repaired(("one thing", "another"), 2)},
     "one thing\nanother\n", 1),
    ("repair DS", {"javisc.compiler.repair.dataset:repair": Repaired(())}, "DS: nothing to repair\n", 0),
    # builds
    ("build jav {raw} --out DS", {_BUILD: BUILT}, """\
DS: 5 samples in 3 shards, 7 MB, 8.0 s
6 inputs were rejected (2 corrupt, 4 not_media): see DS/rejected.parquet
9 shards are of other parts or left: `javisc status` tells which; a last call with --finish merges
""", 0),
    ("build jav {raw} --out DS --part 0/4 --strict", {_BUILD: replace(BUILT, shards_left=0)}, """\
DS: 5 samples in 3 shards, 7 MB, 8.0 s
6 inputs were rejected (2 corrupt, 4 not_media): they are listed when the parts are merged
""", 1),
    ("build jav {raw} --out DS --plan-only --renditions 48 --shard-size 1MB",
     {"javisc.compiler.build:plan_only": Estimate(9, 6_000_000, 0.5, 1e-4, 2e-5, 0.75, 0.25)}, """\
9 inputs of 6 MB, about 10 min of media: about 3 MB in 5 shards and 1.5 MB of renditions beside them, 2 min of one core (75% \
of a probed handful compiled); nothing was written
""", 0),
    ("build jav {raw} --out DS --write-plan", {_BUILD: BUILT},
     "DS: 3 shards are planned: build them with --part 0/3 to 2/3 (or fewer, larger parts), side by side, then once with "
     "--finish\n", 0),
    ("build sync {raw} --corpus folder --out DS --as-files",
     {_BUILD: replace(BUILT, rejected={}, shards_left=0), "javisc.compiler.sparsesync.files:write_files": Done(5, 2),
      "javisc.compiler.sparsesync.files:keep_tables": None}, """\
DS: 5 samples in 3 shards, 7 MB, 8.0 s
5 clips written → DS/h264_video_25fps_256side_16000hz_aac, lists in DS/data; 2 clips left out, whose names others have
""", 0),
    ("build prior separate DS --out POOL --baseline hpss",
     {"javisc.trainer.use.prior.run:run": SimpleNamespace(samples=7, rejected={"silent": 3, "crashed": 2})}, """\
           2 refused: crashed
           3 refused: silent
           7 samples in POOL, see POOL/rejected.parquet
""", 0),
    # tables
    ("merge A B C --out ALL", {"javisc.manifests.merge:merge": Merged(8, 2)},
     "8 samples of 3 inputs → ALL (2 repeated rows left out)\n", 0),
    ("dedupe A --out D", {"javisc.compiler.dedupe.repeats:dedupe": Deduped(9, 5, ["what was found"])},
     "what was found\n5 of 9 samples kept → D\n", 0),
    ("dedupe A", {"javisc.compiler.dedupe.repeats:dedupe": Deduped(9, 5, [])},
     "5 of 9 samples kept (nothing written: say --out)\n", 0),
    ("filter A a>1 b>2 --out F", {"javisc.manifests.filters:filter_table": Filtered(
        90, 83, [Removed("a>1", 4, 0), Removed("b>2", 3, 2)])}, """\
           4 removed by a>1
           3 removed by b>2 (2 of them have no value there)
          83 of 90 kept → F
""", 0),
    ("export A --csv T --kind prior --media M", {**_SCAN, _EXPORT: COUNTED}, """\
5 rows → T
7 files in M: path and audio_path name them
3 rows left out: without sound or picture
4 rows left out: without a caption (--allow-no-caption keeps them)
2 rows have no unpaired_audio_path: JavisDiT's loader fails on them (javisc filter 'unpaired_audio_path is not null')
""", 0),
    ("export A --csv T --kind audio --allow-no-caption", {**_SCAN, _EXPORT: COUNTED}, """\
5 rows → T
path and audio_path name the raw source files; the other columns describe the compiled clips (--media DIR extracts those)
3 rows left out: without sound
""", 0),
    ("export A --energon E", {**_SCAN, "javisc.manifests.energon:export_energon": {"train": 7, "val": 2}},
     "7 train, 2 val → E: megatron.energon.get_train_dataset('E', …) opens it\n", 0),
    ("import --csv A --out L.parquet", {"javisc.manifests.javisdit:import_csv": 7},
     "7 inputs → L.parquet: give it to `javisc build jav` or `javisc build audio` as RAW\n", 0),
    ("report DS", {"javisc.compiler.report:report": Report(Path("P"), 7, 2)},
     "P: 7 samples, 2 of which cannot be shown\n", 0),
    ("report DS", {"javisc.compiler.report:report": Report(Path("P"), 7, 0)}, "P: 7 samples\n", 0),
    # fields
    ("annotate DS {table}", {"javisc.compiler.fields.annotate:annotate": Annotated("n", 5, 9, "key", 3, ("mood", "x"))},
     "DS: field n: 5 of 9 samples, joined by key: mood, x\n3 rows of {table} belong to no sample\n", 0),
    ("render DS --short-side 48", {_RENDER: Rendered("r48", 5, 9, 3, 1, 7_000_000)}, """\
DS: field r48: 5 of 9 samples, 7 MB
3 clips are as small already: the loader reads them from the base
1 clips do not decode: see DS/fields/r48/rejected.parquet
""", 0),
    ("render DS --short-side 48", {_RENDER: Rendered("r48", 9, 9, 3, 0, 7_000_000)}, """\
DS: field r48: 9 of 9 samples, 7 MB
3 clips are as small already: the loader reads them from the base
""", 0),
    ("render DS --short-side 48", {_RENDER: Rendered("r48", 9, 9, 0, 0, 7_000_000)}, "DS: field r48: 9 of 9 samples, 7 MB\n", 0),
    ("annotate DS {table}", {"javisc.compiler.fields.annotate:annotate": Annotated("n", 9, 9, "id", 0, ("mood",))},
     "DS: field n: 9 of 9 samples, joined by id: mood\n", 0),
    ("merge A B --out ALL", {"javisc.manifests.merge:merge": Merged(8, 0)}, "8 samples of 2 inputs → ALL\n", 0),
    ("encode DS --recipe prior --passes 2", {"javisc.trainer.use.encode_field:encode_fields": [
        EncodedField("DS", "latents", 5, 9, {}), EncodedField("DS", "latents_p1", 4, 9, {})]}, """\
field latents of DS: latents of 5 of 9 clips
field latents_p1 of DS: latents of 4 of 9 clips
train from it: javisc train prior --data DS data.latents=latents
""", 0),
    ("score DS --checkpoint C --keep-features kept", {_SCORE: SCORED}, """\
javisc: k: crashed: it died
           2 without a score: too_short
           1 without a score: crashed
           3 clips' features kept as the field kept
           6 of 9 scored, 6 looked at now → DS
""", 0),
    ("score DS --checkpoint C", {_SCORE: replace(SCORED, rows=19, named=[])}, """\
           2 without a score: too_short
           1 without a score: crashed
          16 of 19 scored, 6 looked at now → DS
""", 0),
    ("score DS --checkpoint C --dry-run", {"javisc.trainer.use.score_forecast:forecast": COST}, """\
           4 clips, 12 crops or segments, 6 windows
           5 TFLOP, 1.25 a clip
           3 of them have their segments' features in a field: only windows are computed
           7 MB of features would be kept
           1 without a score: too_short
""", 0),
    # what others' programs end with is what the command ends with
    ("bench load", {"subprocess:run": SimpleNamespace(returncode=3)}, "", 3),
    ("demo --train no", {"javisc.compiler.demo.jav:demo": SimpleNamespace(
        errors=[0.003, -0.009, 0.001], raw="R", dataset="D", page="P", verified=SimpleNamespace(defects=["one"]))}, """\
measured: 3 clicks, 3.0 ms from their hits (median), 9.0 at most, the raw clips' own AAC included

raw clips   R
dataset     D
look        P (in a browser), or tar tvf D/shards/000000.tar
again       javisc build jav R --out D --split train=0.8,val=0.2

""", 1),
]  # fmt: skip


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("said")
    (folder / "table.csv").write_text("key,mood\n")
    (folder / "recipe.yaml").write_text("task: sync\n")
    return {"raw": folder, "table": folder / "table.csv", "recipe": folder / "recipe.yaml"}


@pytest.mark.parametrize(
    ("words", "answers", "said", "code"), SAID, ids=[f"{n} {row[0]}" for n, row in enumerate(SAID)]
)
def test_every_number_is_said_in_its_place(
    words: str,
    answers: Mapping[str, Any],
    said: str,
    code: int,
    places: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    if words.startswith("bench"):
        monkeypatch.chdir(Path(__file__).parents[2])
    elif words.startswith("build"):  # no raw media are looked for, and no workers begin
        answers = {"javisc.compiler.inputs.raw:from_raw": "scanned", **answers}
        monkeypatch.setattr("javisc.compiler.run.early.early", lambda *_: nullcontext())
    seen = run(Command(words, answers, {}), words, places, monkeypatch)
    assert (seen.said, seen.code) == (said.replace("{table}", str(places["table"])), code)


def test_who_builds_is_said_with_how_long_and_since_when_it_is_silent(
    places: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()
    one = Builder("node3", 4242, "part 1/2", (1, 2), now - 7530, now - 600)
    answers = {_STATUS: replace(STANDS, running=(one,))}
    said = run(Command("status DS", answers, {}), "status DS --parts 2", places, monkeypatch).said
    assert "running: part 1/2, process 4242 on node3, for 2 h 05 min (last sign 10 min ago)\n" in said
    assert "parts to run again, of 2: 0\n" in said, "what runs is not begun again"


@pytest.mark.parametrize(("unsynced", "verdict"), [(-LATE, "right"), (LATE, "wrong")])
def test_the_demonstration_says_whether_it_was_right(unsynced: float, verdict: str) -> None:
    named = SimpleNamespace(ranked=[SimpleNamespace(offset_sec=unsynced, probability=0.8)])
    known = {"accuracy_1": 0.5, "accuracy_1_tol1": 0.75, "clips": 48.0}
    unseen = {"accuracy_1": 0.25, "accuracy_1_tol1": 0.375, "clips": 32.0}
    learnt = Learnt(Path("run"), 95.0, 1 / 21, known, unseen, {Path("d/late.mp4"): named})  # type: ignore[dict-item]
    assert told_of(learnt).splitlines() == [
        "trained for 95 s; the right one of 21 offsets was named",
        "  new clips of the kinds it learnt: 50% of 48 times (10.5 × chance, which is 4.8%), within one step 75%",
        "  kinds it never saw: 25% of 32 times (5.2 × chance, which is 4.8%), within one step 38%",
        f"  late.mp4, sound made 0.30 s late: ranked first {unsynced:+.2f} s (p=0.80), {verdict}",
    ]


@pytest.mark.parametrize(
    ("ends", "code", "said"),
    [
        (lambda: 1, 1, ""),
        (lambda: None, 0, ""),
        (click.exceptions.Abort(), 130, "interrupted"),
        (UserError("what was wrong"), 2, "javisc: what was wrong"),
        (UserError("it was cut short", exit_code=130), 130, "javisc: it was cut short"),
        (click.UsageError("no such option"), 2, "no such option"),
        (ModuleNotFoundError("No module named 'torch'", name="torch"), 2, "javisc[train]"),
    ],
)
def test_a_command_ends_with_its_code(
    ends: Any, code: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def ended(**_: object) -> Any:
        if isinstance(ends, BaseException):
            raise ends
        return ends()

    monkeypatch.setattr(cli.cli, "main", ended)
    monkeypatch.setattr("sys.argv", ["javisc", "train"])
    with pytest.raises(SystemExit) as done:
        cli.main()
    assert done.value.code == code and said in capsys.readouterr().err
    if isinstance(ends, UserError):
        monkeypatch.setattr("sys.argv", ["javisc", "--debug", "train"])
        with pytest.raises(UserError, match=str(ends)):
            cli.main()


@pytest.mark.parametrize(
    ("words", "where", "value"),
    [
        ("train sync-demo data.paths=[B] --data A", "load.overrides", ["data.paths=[B]", 'data.paths=["A"]']),
        ("train {recipe}", "train.folder", Path("runs/recipe")),
        ("eval sync C --data A --split all", "evaluate_selector.split", None),
        ("eval sync C --data A", "evaluate_selector.split", "test"),
        ("encode s3://b/DS ./DS2/ --recipe jav", "encode_fields.datasets", ["s3://b/DS", "DS2"]),
    ],
)
def test_what_is_said_in_short_is_what_is_meant(
    words: str, where: str, value: Any, places: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The option goes before the setting of the same name, a run is called after its recipe, and `all` is no split."""
    name = words.split()[0]
    command = TRAINING["eval sync" if name == "eval" else name]
    assert run(command, words, places, monkeypatch).at(where) == value


def test_a_variant_that_does_not_compile_is_named_and_is_an_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        Resources("norm_fwd", "C=72", 90, 4, 1),
        Resources("norm_bwd", "C=72", 90, 4, 1, problem="no registers left"),
        Resources("norm_bwd", "C=144", 90, 4, 1),
    ]
    monkeypatch.setattr("javisc.kernels.dispatch.interpreting", lambda: False)
    monkeypatch.setattr("javisc.kernels.dispatch.broken_triton", lambda: None)
    monkeypatch.setattr("javisc.trainer.tasks.registry.load", lambda *_: (None, None))
    monkeypatch.setattr("javisc.trainer.forecast.variants.variants", lambda *_: [])
    for code, made in ((1, rows), (0, rows[:1])):
        monkeypatch.setattr("javisc.kernels.aot.compile_all", lambda *_, made=made, **__: made)
        done = CliRunner().invoke(cli.cli, ["kernels", "--warm", "jav-tiny", "--arch", "90"])
        assert done.exit_code == code
        good, names = (2, "norm_bwd, norm_fwd") if code else (1, "norm_fwd")
        assert done.stdout == f"jav-tiny, sm_90: {good} of {len(made)} variants compiled ({names})\n"
        assert done.stderr == "norm_bwd C=72: no registers left\n" * code
