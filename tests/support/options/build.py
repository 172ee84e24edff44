"""The rows of `javisc build …`, `verify`, `report`, `demo` and `bench`."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from javisc.compiler.check.dataset import Verified
from javisc.compiler.check.status import Status
from javisc.compiler.inputs.local import AUDIO_SUFFIXES, VIDEO_SUFFIXES
from support.options import Command, Row

_BUILT = SimpleNamespace(
    out="OUT", samples=3, shards=1, bytes=10, seconds=1.0, rejected={"corrupt": 1}, shards_left=0, notes=()
)
_ESTIMATE = SimpleNamespace(
    inputs=3, source_bytes=10, media_seconds=1.0, bytes=10, work_seconds=1.0, good=1.0, per_shard=lambda size: 1
)
_ANSWERS: dict[str, Any] = {
    "javisc.compiler.build:build": _BUILT,
    "javisc.compiler.build:plan_only": _ESTIMATE,
    "javisc.compiler.inputs.raw:from_raw": "scanned",
}
_CALLS = ("javisc.compiler.run.progress:Reporter",)

#: The options of every build, each recorded in each of its commands.
COMMON = {
    "--out": Row("--out {folder}/elsewhere", "build.out", "{folder}/elsewhere", alone=("--out",)),
    "--shard-size": Row("--shard-size 3MB", "build.options.shard_size", 3_000_000),
    "--shard-samples": Row("--shard-samples 7", "build.options.shard_samples", 7),
    "--workers": Row("--workers 3", "build.options.workers", 3),
    "--engine": Row("--engine ray", "build.options.engine", "ray"),
    "--address": Row("--address 10.0.0.1:6379", "build.options.address", "10.0.0.1:6379"),
    "--shard-range": Row("--shard-range 2:5", "build.options.shard_range", (2, 5)),
    "--part": Row("--part 3/5", "build.options.part", (3, 5)),
    "--write-plan": Row("--write-plan", "build.options.write_plan", True),
    "--finish": Row("--finish", "build.options.finish", True),
    "--split": Row("--split a=0.9,b=0.1", "build.options.split", {"a": 0.9, "b": 0.1}),
    "--seed": Row("--seed 11", "build.options.seed", 11),
    "--time-limit": Row("--time-limit 17.5", "build.options.time_limit", 17.5),
    "--scratch": Row("--scratch {folder}", "build.options.scratch", Path("{folder}")),
    "--prune": Row("--prune", "build.options.prune", True),
    "--retry-rejected": Row("--retry-rejected", "build.options.retry_rejected", True),
    "--check": Row("--check", "build.options.check", True),
    "--mix-tools": Row("--mix-tools", "build.options.mix_tools", True),
    "--strict": Row("--strict", "exit", 1),
    "--plan-only": Row("--plan-only", "plan_only.out", "{folder}/ds"),
    "--config": Row("--config {config}", "build.options.seed", 12),
    "--print-config": Row("--print-config", "said", lambda said: "\nout: " in said and "# workers: null" in said),
    "--log-json": Row("--log-json {folder}/log", "Reporter.log", Path("{folder}/log")),
}
_KNOWN = "javisc.compiler.inputs.known:from_corpora"


def _recipe(*names: str) -> dict[str, Row]:
    values: dict[str, tuple[str, Any]] = {
        "fps": ("30000/1001", "30000/1001"),
        "sample-rate": ("22050", 22050),
        "channels": ("2", 2),
        "short-side": ("96", 96),
        "crf": ("31.5", 31.5),
        "encoder-preset": ("veryfast", "veryfast"),
        "gop": ("24", 24),
        "tune": ("film", "film"),
        "min-frames": ("9", 9),
        "max-seconds": ("2.5", 2.5),
    }
    return {
        f"--{name}": Row(f"--{name} {values[name][0]}", f"build.recipe.{name.replace('-', '_')}", values[name][1])
        for name in names
    }


_CORPUS = {
    "--corpus-split": Row("--corpus-split val", "from_corpora.splits", ("val",), more="--corpus {corpus}"),
    "--corpus": Row("--corpus {corpus}", "from_corpora.specs", ("{corpus}",)),
    "--list-corpora": Row("--list-corpora", "said", lambda said: "/)\n    " in said),
}
_CAPTIONS = {
    "--captions": Row("--captions {table}", "from_raw.captions", "{table}"),
    "--require-caption": Row("--require-caption", "from_raw.require_caption", True),
}
_OUT = "--out {folder}/ds"

COMMANDS = {
    "build jav": Command(
        "build jav {raw} " + _OUT,
        _ANSWERS | {_KNOWN: "corpora"},
        {
            **COMMON,
            **_recipe(
                "fps",
                "sample-rate",
                "channels",
                "short-side",
                "crf",
                "encoder-preset",
                "gop",
                "tune",
                "min-frames",
                "max-seconds",
            ),
            "RAW": Row("{clip}", "from_raw.raw", ("{raw}", "{clip}")),
            "--recipe": Row("--recipe sync", "build.recipe.name", "sync"),
            "--allow-silent": Row("--allow-silent", "build.recipe.allow_silent", True),
            "--max-hold": Row("--max-hold 60", "build.recipe.max_hold", 60.0),
            "--resized": Row("--resized refuse", "build.recipe.resized", "refuse"),
            "--renditions": Row("--renditions 48,240", "build.options.renditions", (48, 240)),
            **_CAPTIONS,
            **_CORPUS,
        },
        _CALLS,
    ),
    "build audio": Command(
        "build audio {raw} " + _OUT,
        _ANSWERS | {_KNOWN: "corpora"},
        {
            **COMMON,
            **_recipe("sample-rate", "channels", "max-seconds"),
            "--from-video": Row("--from-video", "from_raw.suffixes", AUDIO_SUFFIXES | VIDEO_SUFFIXES),
            "RAW": Row("{clip}", "from_raw.raw", ("{raw}", "{clip}")),
            **_CAPTIONS,
            **_CORPUS,
        },
        _CALLS,
    ),
    "build masklets": Command(
        "build masklets {raw} " + _OUT,
        {**_ANSWERS, "javisc.compiler.inputs.masklets:from_masklets": "masklets"},
        {**COMMON, **_recipe("crf"), "RAW": Row("{clip}", "from_masklets.raw", ("{raw}", "{clip}"))},
        _CALLS,
    ),
    "build sync": Command(
        "build sync {raw} --corpus folder " + _OUT,
        {
            **_ANSWERS,
            "javisc.compiler.sparsesync.inputs:find_sync": SimpleNamespace(
                clip=str,
                face=False,
                meta=None,
                root=Path("root"),
                corpus=SimpleNamespace(name="vggsound", prefix="vggsound", offset_lists=lambda root: ()),
            ),
            "javisc.compiler.sparsesync.inputs:from_sync": "sync",
            "javisc.compiler.sparsesync.rules:read_fixed_offsets": lambda paths: paths,
            "javisc.compiler.sparsesync.files:write_files": SimpleNamespace(written=1, clashes=0),
            "javisc.compiler.sparsesync.files:keep_tables": None,
        },
        {
            **{name: row for name, row in COMMON.items() if name != "--workers"},
            **_recipe("fps", "short-side", "crf", "max-seconds"),
            "--workers": Row("--workers 3", "write_files.workers", 3, more="--as-files"),
            "RAW": Row("{clip}", "from_raw.raw", ("{raw}", "{clip}")),
            "--corpus": Row("--corpus vggsound", "find_sync.spec", "vggsound", alone=("--corpus",)),
            "--corpus-split": Row(
                "--corpus-split val", "from_sync.splits", ("val",), "--corpus vggsound", ("--corpus",)
            ),
            "--lists": Row("--lists {raw}", "find_sync.lists", Path("{raw}"), "--corpus vggsound", ("--corpus",)),
            "--lrs3-meta": Row("--lrs3-meta {raw}", "find_sync.meta", Path("{raw}"), "--corpus lrs3", ("--corpus",)),
            "--face-crop": Row("--face-crop", "find_sync.face", True, "--corpus lrs3", ("--corpus",)),
            "--no-face-crop": Row(
                "--no-face-crop",
                "find_sync.face",
                False,
                "--corpus lrs3 --lrs3-meta {raw} --short-side 224",
                ("--corpus",),
            ),
            "--fixed-offsets": Row("--fixed-offsets {table}", "build.options.offsets.fixed", (Path("{table}"),)),
            "--offset-grid": Row("--offset-grid 3:0.2:0.5", "build.options.offsets.grid.size", 3),
            "--min-seconds": Row("--min-seconds 1.97", "build.recipe.min_frames", 50),
            "--as-files": Row("--as-files", "write_files.dataset", "{folder}/ds/.dataset"),
        },
        _CALLS,
    ),
    "plan": Command(
        "plan {raw} " + _OUT,
        _ANSWERS,
        {"WORDS": Row("--seed 11", "build.options.seed", 11)},
        _CALLS,
    ),
    "verify": Command(
        "verify DS",
        {"javisc.compiler.check.dataset:verify": Verified(1, 1, 1, [])},
        {
            "DATASET": Row("OTHER", "verify.path", "OTHER", alone=("DS",)),
            "--workers": Row("--workers 3", "verify.checks.workers", 3),
            "--level": Row("--level", "verify.checks.level"),
            "--sample": Row("--sample 0.25", "verify.checks.sample", 0.25),
            "--seed": Row("--seed 11", "verify.checks.seed", 11),
            "--part": Row("--part 3/5", "verify.checks.part", (3, 5)),
            "--engine": Row("--engine ray", "verify.checks.engine", "ray"),
            "--address": Row("--address 10.0.0.1:6379", "verify.checks.address", "10.0.0.1:6379"),
        },
    ),
    "repair": Command(
        "repair DS",
        {"javisc.compiler.repair.dataset:repair": SimpleNamespace(lines=(), unfinished=0)},
        {
            "DATASET": Row("OTHER", "repair.path", "OTHER", alone=("DS",)),
            "--workers": Row("--workers 3", "repair.workers", 3),
            "--scratch": Row("--scratch {folder}", "repair.scratch", Path("{folder}")),
        },
    ),
    "status": Command(
        "status DS",
        {
            "javisc.compiler.check.status:status": Status(
                shards=9,
                inputs=90,
                published=2,
                inputs_done=20,
                samples=19,
                rejected={"corrupt": 1},
                bytes=10,
                missing=(2, 3, 4, 5, 6, 7, 8),
                rate=1.0,
                merged=False,
            )
        },
        {
            "DS": Row("OTHER", "status.path", "OTHER", alone=("DS",)),
            "--parts": Row("--parts 4", "said", lambda said: "of 4: 0-3" in said),
        },
    ),
    "report": Command(
        "report DS",
        {"javisc.compiler.report:report": SimpleNamespace(page="page", samples=1, broken=0)},
        {
            "SOURCE": Row("OTHER", "report.path", "OTHER", alone=("DS",)),
            "--out": Row("--out PAGE", "report.out", "PAGE"),
            "--samples": Row("--samples 5", "report.samples", 5),
        },
    ),
    "demo": Command(
        "demo",
        {
            "javisc.compiler.demo.jav:demo": SimpleNamespace(
                errors=[], raw="raw", dataset="ds", page="page", verified=SimpleNamespace(defects=[])
            ),
            "javisc.trainer.use.sync_demo:learn": SimpleNamespace(shifted={"clip": 0}, run=Path("run")),
            "javisc.trainer.use.sync_demo:told": "told",
        },
        {
            "--out": Row("--out {folder}/demo", "demo.out", Path("{folder}/demo")),
            "--clips": Row("--clips 5", "demo.clips", 5),
            "--seconds": Row("--seconds 2.5", "demo.seconds", 2.5),
            "--workers": Row("--workers 3", "learn.workers", 3),
            "--train": Row("--train full", "learn.clips", 528),
            "--seed": Row("--seed 5", "learn.seed", 5),
        },
    ),
    **{
        f"bench {name}": Command(
            f"bench {name}",
            {"subprocess:run": SimpleNamespace(returncode=0)},
            {"ARGUMENTS": Row("-- --flag 3", "run.popenargs.0.-2", "--flag")},
        )
        for name in ("compile", "load", "plan", "tables", "kernels", "train", "selector")
    },
}
