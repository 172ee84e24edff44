"""Synchformer's three stages from the command line, on one another's runs; features kept or not; what its files become."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest
import torch
from click.testing import CliRunner, Result

from javisc.cli import cli
from javisc.manifests.errors import UserError
from javisc.trainer.engine.config import load_recipe, recipe_names, task_of
from javisc.trainer.engine.weights import read_weights
from javisc.trainer.models.sync.checkpoint import read_sync_checkpoint
from javisc.trainer.models.synchformer.config import AudioConfig, JoinConfig, SynchformerConfig, VisualConfig
from javisc.trainer.models.synchformer.export import write_published
from javisc.trainer.models.synchformer.model import Synchformer
from javisc.trainer.models.synchformer.official import (
    extractor_states,
    pretrained_audio,
    pretrained_visual,
    published_names,
    trimmed_table,
)
from javisc.trainer.objectives.segment_contrast import segment_contrast
from javisc.trainer.tasks.registry import load
from javisc.trainer.tasks.selector import whole_model_state
from javisc.trainer.tasks.synchformer import SynchformerRecipe, SynchformerTask
from javisc.trainer.tasks.synchformer_avclip import SegmentContrastRecipe, SegmentContrastTask
from javisc.trainer.transforms.segment_chain import SegmentTransforms
from javisc.trainer.use.selector import load_selector
from support import compiled, recipe_training
from support.toy_training import Ranks
from support.warm import in_this_process

#: The tiny recipes, tinier: an extractor's block of width 16, a few steps.
EXTRACTORS = [
    "model.visual.width=16",
    "model.visual.depth=1",
    "model.visual.heads=2",
    "model.audio.width=16",
    "model.audio.depth=1",
    "model.audio.heads=2",
    "model.audio.intermediate=32",
]
RUN = [
    "data.batch_size=2",
    "run.log_every=1",
    "run.validate_every=4",
    "run.checkpoint_every=0",
    "run.tensorboard=false",
    "schedule.warmup_steps=1",
]
JOIN = [
    "model.initial=wide",
    "model.transformer.width=16",
    "model.transformer.n_layer=1",
    "model.transformer.n_head=2",
    "data.iter_times=1",
]
OFFSETS = [*EXTRACTORS, *RUN, *JOIN, "data.offsets_per_clip=2", "data.feature_cache_mb=1", "model.centred=false"]


def done(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [*map(str, arguments)], catch_exceptions=False, standalone_mode=False)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = compiled.write(
        tmp_path_factory.mktemp("segments") / "ds", [125, 130, 125, 125, 60, 125], fps=25, size=(32, 40), hiss=True
    )
    path = folder / "manifest.parquet"
    pl.read_parquet(path).with_columns(split=pl.Series(["train", "val"] * 3)).write_parquet(path)
    return folder


@pytest.fixture(scope="module")
def first(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the first stage."""
    folder = tmp_path_factory.mktemp("first") / "run"
    done("train", "synchformer-avclip-tiny", "--data", dataset, "--run", folder, *EXTRACTORS, *RUN, "run.steps=4")
    return folder


@pytest.fixture(scope="module")
def second(dataset: Path, first: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the second stage on it."""
    folder = tmp_path_factory.mktemp("second") / "run"
    done("train", "synchformer-tiny", "--data", dataset, "--run", folder, *OFFSETS, "run.steps=4",
         f"start.extractors={first / 'best'}")  # fmt: skip
    return folder


def rows_of(folder: Path, kind: str) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in lines if row["kind"] == kind]


def test_the_first_stage_measures_what_it_learns(first: Path) -> None:
    (measured,) = rows_of(first, "validate")
    assert measured["chance"] == pytest.approx(1 / 21) and measured["clips"] == 3
    assert 0 <= measured["precision_a"] <= 1
    assert measured["precision"] == pytest.approx((measured["precision_a"] + measured["precision_v"]) / 2)


def test_extractors_rest_and_features_may_be_kept(dataset: Path, first: Path, second: Path, tmp_path: Path) -> None:
    ours, theirs = read_weights(second / "best"), read_weights(first / "best")
    for part, whole in (("v_encoder.", "vfeat_extractor."), ("a_encoder.", "afeat_extractor.")):
        for name, value in theirs.items():
            if name.startswith(part):
                assert torch.equal(ours[name.replace(part, whole)], value), name
    done("train", "synchformer-tiny", "--data", dataset, "--run", tmp_path, *OFFSETS, "run.steps=4",
         f"start.extractors={first / 'best'}", "data.feature_cache_mb=0")  # fmt: skip
    kept, live = (rows_of(folder, "train") for folder in (second, tmp_path))
    assert [row["loss"] for row in kept] == pytest.approx([row["loss"] for row in live], rel=1e-5)


def test_resumes_bitwise(dataset: Path, first: Path, second: Path, tmp_path: Path) -> None:
    """Features that were kept before the stop are computed again after it: to the bit the same."""
    given = ["train", "synchformer-tiny", "--data", dataset, "--run", tmp_path, *OFFSETS]
    given.append(f"start.extractors={first / 'best'}")
    done(*given, "run.steps=2", "run.checkpoint_every=2")
    done(*given, "run.steps=4", "--resume")
    whole, cut = read_weights(second / "last"), read_weights(tmp_path / "last")
    assert whole.keys() == cut.keys() and all(torch.equal(whole[name], cut[name]) for name in whole)


def test_the_third_stage_tells_what_can_be_synchronised(
    dataset: Path, second: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_this_process(monkeypatch)
    done("train", "synchformer-synchability-tiny", "--data", dataset, "--run", tmp_path, *EXTRACTORS, *RUN, *JOIN,
         "run.steps=4", f"start.model={second / 'best'}")  # fmt: skip
    (measured,) = rows_of(tmp_path, "validate")
    assert {"accuracy_1", "mROCAUC"} <= set(measured) and "accuracy_1_tol1" not in measured
    state = read_weights(tmp_path / "best")
    assert state["transformer.sync_head.weight"].shape == (2, 16) and "transformer.off_head.weight" not in state
    assert state["transformer.pos_emb_cfg.pos_emb"].shape == (1, 32, 16)
    # The checkpoint says by itself what it tells.
    out = tmp_path / "scored.parquet"
    done("score", dataset, "--checkpoint", second / "best", "--workers", 1, "--out", out)
    offsets = pl.read_parquet(out)
    done("score", out, "--checkpoint", tmp_path / "best", "--workers", 1)
    both = pl.read_parquet(out)
    told = both.filter(pl.col("num_frames") >= 125)
    assert told["synchronizable"].is_between(0, 1).all() and told["synchronizable"].null_count() == 0
    kept = ["sync_offset", "sync_confidence", "sync_margin", "desync"]
    assert both.select(kept).equals(offsets.select(kept)) and told["desync"].null_count() == 0


@pytest.mark.slow
@pytest.mark.dist
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_one_step_is_the_same_on_one_and_two_processes(
    dataset: Path, first: Path, tmp_path: Path, strategy: str
) -> None:
    """Two micro-batches of one process, or one of each of two; extractors at rest, their features kept. So large an eps makes
    Adam's update nearly the gradient."""
    overrides = [f"data.paths=[{dataset}]", *OFFSETS, "run.steps=1", "run.validate_every=0", "data.batch_size=1"]
    overrides += [f"start.extractors={first / 'best'}", "optimizer.eps=1.0", "optimizer.lr=0.5"]
    recipe_training.run(tmp_path / "one", [*overrides, "run.accumulate=2"], recipe="synchformer-tiny")
    options = [*overrides, f"parallel.strategy={strategy}"]
    ranks = Ranks(tmp_path / "two", options, world=2, program="support.recipe_training:run", recipe="synchformer-tiny")
    assert len(ranks.digests()) == 1
    one, two = (read_weights(tmp_path / name / "last") for name in ("one", "two"))
    assert all(torch.allclose(two[name], one[name], rtol=1e-4, atol=1e-6) for name in one)
    a, b = (rows_of(tmp_path / name, "train")[0]["loss"] for name in ("one", "two"))
    assert a == pytest.approx(b, rel=1e-5)


def test_predict_and_eval_take_either_family(dataset: Path, second: Path) -> None:
    result = done("eval", "sync", second / "best", "--data", dataset, "--split", "val", "--random-crops",
                  "--audio-advance-sec", 0.064)  # fmt: skip
    told = json.loads(result.stdout[result.stdout.index("{") :])
    assert told["clips"] == 3 and told["audio_advance_sec"] == 0.064 and 0 <= told["accuracy_1"] <= 1


def test_candidates_and_what_is_in_common(dataset: Path) -> None:
    """Among a clip's own segments the loss is the mean of clips' losses; centred features sum to nothing over a clip."""
    losses = {}
    for candidates in ("batch", "clip"):
        wanted = [f"data.paths=[{dataset}]", *EXTRACTORS, *RUN, f"candidates={candidates}", "model.centred=false"]
        task = load("synchformer-avclip-tiny", wanted)[1]
        source = task.source(0, 1)
        batch = next(iter(source))
        source.close()
        torch.manual_seed(0)
        model = task.build().eval()
        losses[candidates] = float(task.loss(model, batch, torch.device("cpu")))
        vis = batch.pictures(torch.device("cpu"))
        seen, heard, scale = model(vis, batch.aud)
    alone = [segment_contrast(v, a, scale) for v, a in zip(seen.chunk(2), heard.chunk(2), strict=True)]
    assert losses["clip"] == pytest.approx(float(sum(alone)), rel=1e-5)
    assert losses["batch"] == pytest.approx(2 * float(segment_contrast(seen, heard, scale)), rel=1e-5)
    model.config.centred = True
    features = model.v_encoder(vis).mean(2)
    want = torch.nn.functional.normalize(features - features.mean(1, keepdim=True), dim=-1).flatten(0, 1)
    assert torch.allclose(model(vis, batch.aud)[0], want, atol=1e-6)


@pytest.mark.parametrize("layout", ["training", "bare"])
def test_published_layouts_round_trip(first: Path, second: Path, tmp_path: Path, layout: str) -> None:
    """Written under published names, read without unpickling anything, the same weights and the same windows."""
    out = tmp_path / "24-01-02T10-00-53.pt"
    done("export-checkpoint", second / "best", "--out", out, "--layout", layout)
    torch.load(out, weights_only=True)
    checkpoint = read_sync_checkpoint(out)
    assert any(".encoder.layer.0.attention.attention.query." in name for name in checkpoint.model)
    if layout == "training":
        model, transforms = load_selector(str(out))
        ours, own = load_selector(str(second / "best"))
        assert all(torch.equal(value, model.state_dict()[name]) for name, value in ours.state_dict().items())
        # Its name says that it is a published experiment, whose sound was early.
        assert transforms.audio_advance_sec == 0.064 and own.audio_advance_sec == 0
        for name in ("segments", "segment_frames", "step", "crop_len_sec", "max_off_sec", "classes", "mels", "columns"):
            assert getattr(transforms, name) == getattr(own, name), name
    earlier = tmp_path / "epoch_best.pt"
    done("export-checkpoint", first / "best", "--out", earlier, "--layout", layout)
    theirs = read_weights(first / "best")
    for state, prefix in zip(
        extractor_states(whole_model_state(str(earlier)), "x"), ("v_encoder.", "a_encoder."), strict=True
    ):
        assert all(torch.equal(value, theirs[prefix + name]) for name, value in state.items()) and state
    with pytest.raises(UserError, match="first stage, which tells no offsets"):
        load_selector(str(earlier))


def test_what_a_windows_segments_have_in_common_does_not_count_where_centred(tmp_path: Path) -> None:
    """Nor is it lost in a file: the container says so, and a state dict alone, which cannot, is refused."""
    visual = VisualConfig(16, 1, 2, 32, 8, 4, 4, 0.0, "mean")
    audio = AudioConfig(16, 1, 2, 32, 46, 17, "mean")
    config = SynchformerConfig(
        visual, audio, JoinConfig(n_layer=1, n_head=2, width=16, rows=8, classes=3), centred=True, initial="wide"
    )
    model = Synchformer(config).eval()
    vis, aud, common = torch.randn(2, 3, 1, 16), torch.randn(2, 3, 1, 16), torch.randn(2, 1, 1, 16)
    want = model.join(vis, aud)
    assert torch.allclose(model.join(vis + common, aud - common), want, atol=1e-4)
    model.config.centred = False
    assert not torch.allclose(model.join(vis + common, aud - common), want, atol=1e-2)
    model.config.centred = True
    out = tmp_path / "own.pt"
    transforms = SegmentTransforms(segments=3, segment_frames=4, classes=3, mels=46, columns=17, input_size=32)
    write_published(model, transforms, out, "training")
    read, _ = load_selector(str(out))
    assert isinstance(read, Synchformer) and read.config.centred
    with pytest.raises(UserError, match="centred=true; give training"):
        write_published(model, transforms, out, "bare")


@pytest.mark.parametrize("kind", ["official", "by part"])
def test_tables_are_cut_as_asked(kind: str) -> None:
    """OFF, 14 x 8 of the picture, MOD, 14 x 6 of the sound → 13 segments: the published cut, and the one that keeps meanings."""
    table = torch.arange(198.0).view(1, 198, 1)
    got = trimmed_table(table, 13, 8, 6, kind).flatten().tolist()
    want = list(range(184)) if kind == "official" else [0, *range(1, 105), 113, *range(114, 192)]
    assert got == want


def test_networks_of_others_are_taken_apart() -> None:
    recipe = load_recipe("synchformer-avclip-tiny", SegmentContrastRecipe, ["data.paths=[x]", *EXTRACTORS])
    model = SegmentContrastTask.selector(recipe)
    own = model.v_encoder.state_dict()
    theirs = {name: value + 1 for name, value in own.items() if not name.startswith("spatial_attn_agg.")}
    got = pretrained_visual({**theirs, "head.weight": torch.ones(1)}, model.v_encoder, "x.pyth")
    assert got.keys() == own.keys() and torch.equal(got["pos_embed"], own["pos_embed"] + 1)
    with pytest.raises(UserError, match="no Motionformer"):
        pretrained_visual({"a": torch.ones(1)}, model.v_encoder, "x.pyth")
    state = published_names(model.a_encoder.state_dict())
    ast = {f"audio_spectrogram_transformer.{name.removeprefix('ast.')}": value for name, value in state.items()
           if name.startswith("ast.")}  # fmt: skip
    ast["classifier.dense.weight"] = torch.ones(1)
    bands, steps = model.a_encoder.config.grid
    table = torch.arange(2.0 + bands * 9).view(1, -1, 1).expand(1, -1, 16)
    ast["audio_spectrogram_transformer.embeddings.position_embeddings"] = table
    first, grid = (
        pretrained_audio(ast, model.a_encoder, kind, "x")["ast.embeddings.position_embeddings"][0, :, 0].tolist()
        for kind in ("official", "grid")
    )
    assert first == list(range(2 + bands * steps))
    assert grid == [0, 1, *(2 + band * 9 + step for band in range(bands) for step in range(steps))]


def test_every_recipe_is_valid_and_says_what_was_published() -> None:
    names = [name for name in recipe_names() if task_of(name).startswith("synchformer")]
    assert len(names) == 6
    for name in names:
        load(name, ["data.paths=[somewhere]"])
    first = load_recipe("synchformer-avclip", SegmentContrastRecipe)
    assert (first.optimizer.lr, first.optimizer.eps, first.optimizer.weight_decay) == (1e-4, 1e-8, 0.0)
    assert (first.data.batch_size, first.transforms.segments, first.transforms.step) == (2, 14, 1.0)
    assert first.transforms.covered_sec == 8.96 and not first.transforms.do_offset
    second = load_recipe("synchformer", SynchformerRecipe)
    assert (second.optimizer.lr, second.optimizer.eps, second.optimizer.scale_lr_by_world) == (2e-6, 1e-7, True)
    assert second.transforms.covered_sec == 4.8 and second.model.transformer.rows == 198
    third = load_recipe("synchformer-synchability", SynchformerRecipe)
    assert third.transforms.room_sec == 8.96 and third.model.transformer.rows == 184
    with torch.device("meta"):
        assert sum(p.numel() for p in Synchformer(SynchformerConfig()).parameters()) == 237_460_245


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["transforms.segments=13"], "13 segments of 14 tokens need 184; change it or transforms.segments"),
        (["transforms.columns=64"], "transforms.columns=64, the model's extractors take 66"),
        (["transforms.classes=11"], "the model has 21 classes, transforms.classes=11"),
        (["transforms.target=synchronizability"], "model.transformer.head=offset tells no synchronizability"),
        (["transforms.crop_len_sec=4.0"], "14 segments cover 4.8 s, give at least that"),
        (["data.feature_cache_mb=1"], "it needs transforms.grid_starts=true"),
        (["model.visual.heads=7"], "model.visual.heads=7 does not divide model.visual.width=768"),
    ],
)
def test_mistakes_are_told_before_anything_runs(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        SynchformerTask(load_recipe("synchformer", SynchformerRecipe, ["data.paths=[x]", *overrides]))


def test_extractors_never_stay_random_in_silence(dataset: Path) -> None:
    with pytest.raises(UserError, match="would keep random extractors: give start.extractors=FILE"):
        load("synchformer-tiny", [f"data.paths=[{dataset}]"])[1].build()
    with pytest.raises(UserError, match="holds no extractor"):
        extractor_states({"a": torch.ones(1)}, "x.pt")
