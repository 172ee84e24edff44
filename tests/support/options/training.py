"""The rows of the commands that need torch: train, encode, sample, score, predict, eval, kernels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import torch

from javisc.trainer.transforms.sync_chain import SyncTransforms
from support.options import Command, Row


@dataclass
class _Found:
    truth: float = 0.0


_SELECTOR = {"javisc.trainer.use.selector:load_selector": (torch.nn.Identity(), SyncTransforms())}

_MADE = SimpleNamespace(samples=3, rejected={})
#: What every command of `build prior` has.
_STAGE = {
    "--out": Row("--out {folder}/b", "run.out", "{folder}/b", alone=("--out",)),
    "--seed": Row("--seed 5", "run.settings.seed", 5),
    "--device": Row("--device", "run.options.device"),
    "--workers": Row("--workers 3", "run.options.workers", 3),
    "--part-size": Row("--part-size 9", "run.options.part_size", 9),
    "--engine": Row("--engine ray", "run.options.engine", "ray"),
    "--address": Row("--address local", "run.options.address", "local"),
}
_GENERATED = "--generator G"

#: What the options of warming go with.
_WARM = "--warm jav-tiny --arch 90"
COMMANDS: dict[str, Command] = {
    "build prior unpaired": Command(
        "build prior unpaired A --out {folder}/a --baseline other",
        {"javisc.trainer.use.prior.run:run": _MADE, "javisc.trainer.use.prior.unpaired:name_sounds": 3},
        {
            "DATASET": Row("B", "run.settings.dataset", "B", alone=("A",)),
            **_STAGE,
            "--generator": Row("--generator G", "run.settings.generator", "G", alone=("--baseline",)),
            "--baseline": Row("--baseline phase", "run.settings.baseline", "phase", alone=("--baseline",)),
            "--view": Row("--view {folder}/v", "name_sounds.view", "{folder}/v"),
            "--match-duration": Row("--match-duration", "run.settings.match_duration", True),
            **{
                f"--{name}": Row(f"--{name} {value}", f"run.settings.{name.replace('-', '_')}", made, more=_GENERATED)
                for name, value, made in (
                    ("steps", "7", 7),
                    ("guidance", "2.5", 2.5),
                    ("negative", "hum", "hum"),
                    ("batch-size", "3", 3),
                    ("precision", "bf16", "bf16"),
                )
            },
        },
    ),
    "build prior separate": Command(
        "build prior separate A --out {folder}/a --baseline hpss",
        {"javisc.trainer.use.prior.run:run": _MADE},
        {
            "DATASET": Row("B", "run.settings.dataset", "B", alone=("A",)),
            **_STAGE,
            "--separator": Row("--separator S", "run.settings.separator", "S", alone=("--baseline",)),
            "--baseline": Row("--baseline nmf", "run.settings.baseline", "nmf", alone=("--baseline",)),
            "--descriptions": Row("--descriptions T", "run.settings.descriptions", "T", more="--separator S"),
            "--activity": Row("--activity P", "run.settings.activity", "P", more="--separator S"),
        },
    ),
    "build prior masklets": Command(
        "build prior masklets {raw} --out {folder}/a",
        {"javisc.trainer.use.prior.run:run": _MADE, "javisc.trainer.use.prior.objects.export:export": 3},
        {
            "RAW": Row("B", "run.settings.raw", ["{raw}", "B"]),
            **{name: row for name, row in _STAGE.items() if name != "--seed"},  # nothing is drawn
            "--annotations": Row("--annotations", "run.settings.annotated"),
            "--segmenter": Row("--segmenter S", "run.settings.segmenter", "S"),
            "--text": Row("--text dog --text car", "run.settings.text", ["dog", "car"], more="--segmenter S"),
            "--detector": Row("--detector D", "run.settings.detector", "D", more="--segmenter S --text dog"),
            "--score": Row("--score 0.4", "run.settings.score", 0.4, more="--segmenter S --text dog"),
            "--precision": Row("--precision bf16", "run.settings.precision", "bf16", more="--segmenter S"),
            "--export": Row("--export {folder}/e", "export.out", "{folder}/e"),
        },
    ),
    "train": Command(
        "train sync-demo",
        {
            "javisc.trainer.tasks.registry:load": ("recipe", "task"),
            "javisc.trainer.use.previews:preview_hooks": [],
            "javisc.trainer.engine.hooks:hook": lambda name: name,
            "javisc.trainer.engine.loop:train": SimpleNamespace(why="done", step=1),
            "javisc.trainer.forecast.dry_run:dry_run": {"batches": 1},
            "javisc.trainer.forecast.dry_run:told": "told",
        },
        {
            "RECIPE": Row("jav-tiny", "load.name", "jav-tiny", alone=("sync-demo",)),
            "OVERRIDES": Row("run.steps=3", "load.overrides", ["run.steps=3"]),
            "--data": Row("--data A --data B", "load.overrides", ['data.paths=["A", "B"]']),
            "--run": Row("--run {folder}/run", "train.folder", Path("{folder}/run")),
            "--resume": Row("--resume", "train.resume", True),
            "--from": Row("--from 40", "train.begin", "40"),
            "--hook": Row("--hook a:B --hook c:D", "train.hooks", ["a:B", "c:D"]),
            "--dry-run": Row("--dry-run", "dry_run.recipe", "recipe"),
            "--print-config": Row("--print-config", "said", lambda said: "optimizer:" in said),
            "--keys": Row("--keys", "said", lambda said: "optimizer.lr" in said and "optimizer:" not in said),
            "--json": Row("--json", "said", lambda said: '"batches": 1' in said, more="--dry-run"),
        },
    ),
    "export-weights": Command(
        "export-weights {folder}/run",
        {"javisc.trainer.use.export_weights:export_weights": "said"},
        {
            "RUN": Row("{folder}/other", "export_weights.run", Path("{folder}/other"), alone=("{folder}/run",)),
            "--from": Row("--from 40", "export_weights.begin", "40"),
            "--out": Row("--out {folder}/out", "export_weights.out", Path("{folder}/out")),
            "--average": Row("--average", "export_weights.average", True, more="--no-average"),
            "--no-average": Row("--no-average", "export_weights.average", False),
        },
    ),
    "encode": Command(
        "encode A --out {folder}/out --recipe audio",
        {"javisc.trainer.use.encode:encode": 5, "javisc.trainer.use.encode_field:encode_fields": []},
        {
            "DATASETS": Row("B", "encode.overrides", ['data.paths=["A", "B"]']),
            "--out": Row("--out {folder}/other", "encode.out", "{folder}/other", alone=("--out",)),
            "--as": Row("--as small", "encode_fields.name", "small", alone=("--out",)),
            "--recipe": Row("--recipe prior", "encode.recipe", "prior", alone=("--recipe",)),
            "--set": Row("--set a.b=1 --set c=2", "encode.overrides", ['data.paths=["A"]', "a.b=1", "c=2"]),
            "--passes": Row("--passes 3", "encode.options.passes", 3),
            "--batches": Row("--batches 5", "encode.options.batches", 5),
            "--workers": Row("--workers 2", "encode.options.workers", 2),
            "--engine": Row("--engine ray", "encode.options.engine", "ray"),
            "--address": Row("--address h:1", "encode.options.address", "h:1"),
        },
    ),
    "sample": Command(
        "sample rain --model {folder}/model",
        {"javisc.trainer.use.generate.run:sample_prompts": []},
        {
            "PROMPT": Row("wind", "sample_prompts.prompts", ["rain", "wind"]),
            "--prompts": Row("--prompts {prompts}", "sample_prompts.prompts", ["rain", "first line", "second line"]),
            "--model": Row("--model {folder}/b", "sample_prompts.model", Path("{folder}/b"), alone=("--model",)),
            **{
                f"--{name}": Row(f"--{name} PLACE", f"sample_prompts.encoders.{name.replace('-', '_')}", "PLACE")
                for name in ("prior", "t5", "imagebind", "clip-tokenizer", "video-vae", "audio-vae", "vocoder")
            },
            "--out": Row("--out {folder}/out", "sample_prompts.out", Path("{folder}/out")),
            "--resolution": Row("--resolution 48x64", "sample_prompts.options.resolution", "48x64"),
            "--aspect-ratio": Row("--aspect-ratio 1:1", "sample_prompts.options.aspect_ratio", "1:1"),
            "--num-frames": Row("--num-frames 17", "sample_prompts.options.num_frames", "17"),
            "--fps": Row("--fps 12", "sample_prompts.options.fps", 12.0),
            "--steps": Row("--steps 3", "sample_prompts.options.sampler.num_sampling_steps", 3),
            "--guidance": Row("--guidance 3.5", "sample_prompts.options.sampler.cfg_scale", 3.5),
            "--seed": Row("--seed 5", "sample_prompts.options.seed", 5),
            "--score": Row("--score 5.5", "sample_prompts.options.score", 5.5),
            "--condition": Row("--condition sound", "sample_prompts.condition", "sound"),
            "--reference": Row("--reference A --reference B", "sample_prompts.references", (Path("A"), Path("B"))),
            "--edit-masks": Row("--edit-masks", "sample_prompts.options.sampler.edit_masks"),
            "--dtype": Row("--dtype", "sample_prompts.encoders.precision"),
            "--device": Row("--device cpu", "sample_prompts.device", "cpu"),
            "--prior-attention": Row("--prior-attention", "sample_prompts.prior_attention"),
        },
    ),
    "score": Command(
        "score A --checkpoint C",
        {
            "javisc.trainer.use.score:score": SimpleNamespace(named=[], reasons={}, rows=3, fresh=3, kept=0),
            "javisc.trainer.use.score_forecast:forecast": SimpleNamespace(
                clips=3, pieces=42, windows=6, flop=5e12, known=0, keeps=0.0, reasons={}
            ),
        },
        {
            "SOURCE": Row("B", "score.source", "B", alone=("A",)),
            "--checkpoint": Row("--checkpoint D", "score.checkpoint", "D", alone=("--checkpoint",)),
            "--out": Row("--out {folder}/view", "score.out", "{folder}/view"),
            "--as": Row("--as mine", "score.name", "mine"),
            "--crops": Row("--crops 5", "score.options.crops", 5),
            "--fps": Row("--fps 30", "score.options.fps", 30),
            "--short-side": Row("--short-side 128", "score.options.short_side", 128),
            "--device": Row("--device", "score.options.device"),
            "--workers": Row("--workers 3", "score.options.workers", 3),
            "--batch-size": Row("--batch-size 7", "score.options.batch_size", 7),
            "--threads": Row("--threads 6", "score.options.threads", 6),
            "--precision": Row("--precision", "score.options.precision"),
            "--parts": Row("--parts PARTS", "score.parts", "PARTS"),
            "--part-size": Row("--part-size 9", "score.options.part_size", 9),
            "--keep-features": Row("--keep-features segments", "score.options.keep_features", "segments"),
            "--audio-advance-sec": Row("--audio-advance-sec 0.064", "score.options.audio_advance_sec", 0.064),
            "--preset": Row("--preset", "score.options.preset"),
            "--engine": Row("--engine ray", "score.options.engine", "ray"),
            "--address": Row("--address h:1", "score.options.address", "h:1"),
            "--dry-run": Row("--dry-run", "said", lambda said: "3 clips, 42 crops or segments, 6 windows" in said),
            "--relative": Row("--relative", "score.relative", True),
            "--force": Row("--force", "check_output.force", True, more="--out {folder}/view"),
        },
        ("javisc.manifests.outputs:check_output",),
    ),
    "predict": Command(
        "predict {clip} --checkpoint C",
        {**_SELECTOR, "javisc.trainer.use.selector:predict": _Found(), "javisc.trainer.use.selector:told": "told"},
        {
            "VIDEOS": Row("{other}", "predict.video", Path("{other}")),
            "--checkpoint": Row("--checkpoint D", "load_selector.path", "D", alone=("--checkpoint",)),
            "--offset-sec": Row("--offset-sec 0.3", "predict.offset_sec", 0.3),
            "--v-start-sec": Row("--v-start-sec 1.5", "predict.v_start_sec", 1.5),
            "--fps": Row("--fps 30", "predict.fps", 30),
            "--audio-advance-sec": Row("--audio-advance-sec 0.064", "predict.transforms.audio_advance_sec", 0.064),
            "--json": Row("--json", "said", lambda said: said.startswith('{"path"')),
        },
    ),
    "export-checkpoint": Command(
        "export-checkpoint runs/a/best --out {folder}/a.pt",
        {"javisc.trainer.use.export_published:export_published": None},
        {
            "RUN": Row("runs/b/best", "export_published.run", "runs/b/best", alone=("runs/a/best",)),
            "--out": Row("--out {folder}/b.pt", "export_published.out", Path("{folder}/b.pt"), alone=("--out",)),
            "--layout": Row("--layout", "export_published.layout"),
        },
    ),
    "eval sync": Command(
        "eval sync C --data A",
        {**_SELECTOR, "javisc.trainer.tasks.selector:evaluate_selector": {"accuracy": 1.0}},
        {
            "CHECKPOINT": Row("D", "load_selector.path", "D", alone=("C",)),
            "--data": Row("--data B", "evaluate_selector.paths", ("A", "B")),
            "--split": Row("--split val", "evaluate_selector.split", "val"),
            "--random-crops": Row("--random-crops", "evaluate_selector.fixed", False),
            "--iter-times": Row("--iter-times 4", "evaluate_selector.times", 4),
            "--batch-size": Row("--batch-size 7", "evaluate_selector.batch_size", 7),
            "--threads": Row("--threads 6", "evaluate_selector.threads", 6),
            "--audio-advance-sec": Row(
                "--audio-advance-sec 0.064", "evaluate_selector.transforms.audio_advance_sec", 0.064
            ),
        },
    ),
    "kernels": Command(
        "kernels --device cpu",
        {
            "javisc.kernels.survey:survey": [],
            "javisc.kernels.dispatch:interpreting": False,
            "javisc.trainer.tasks.registry:load": (None, None),
            "javisc.trainer.forecast.variants:variants": [],
            "javisc.kernels.aot:compile_all": [],
        },
        {
            "--warm": Row("--warm audio-tiny", "load.name", "audio-tiny", more=_WARM),
            "--data": Row("--data A", "load.overrides", ['data.paths=["A"]'], more=_WARM),
            "--arch": Row("--arch 100", "variants.arch", 100, more=_WARM),
            "--processes": Row("--processes 3", "compile_all.processes", 3, more=f"{_WARM} --processes 1"),
            "OVERRIDES": Row("a.b=1", "load.overrides", ["a.b=1"], more=_WARM),
            "--device": Row("--device meta", "survey.device", torch.device("meta"), alone=("--device",)),
            "--dtype": Row("--dtype", "survey.dtype", lambda choice: getattr(torch, choice)),
            "--json": Row("--json", "said", lambda said: said.lstrip().startswith("{")),
        },
    ),
}
