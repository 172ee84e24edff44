"""`javisc predict`: any video file, official or own checkpoints, the reference's wording."""

from __future__ import annotations

import json
import re
from pathlib import Path

import av
import pytest
import torch
from click.testing import CliRunner
from omegaconf import OmegaConf

from javisc.cli import cli
from javisc.compiler.demo.jav import write_scene
from javisc.compiler.demo.scenes import scene
from javisc.compiler.media.transcode import transcode
from javisc.manifests.errors import UserError
from javisc.trainer.engine.config import as_dict, load_recipe
from javisc.trainer.engine.weights import write_weights
from javisc.trainer.models.sync.model import AVSync
from javisc.trainer.tasks.sync import SyncRecipe
from javisc.trainer.use import selector
from javisc.trainer.use.selector import load_selector, predict, told


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("video") / "ball.mp4"
    write_scene(scene(1, seconds=3.0, fps=30, size=(64, 80), balls=1), path)
    return path


@pytest.fixture(scope="module")
def best(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run of sync-demo leaves, its weights untrained."""
    folder = tmp_path_factory.mktemp("run") / "best"
    recipe = load_recipe("sync-demo", SyncRecipe)
    torch.manual_seed(0)
    write_weights(folder, AVSync(recipe.model).state_dict())
    (folder / "recipe.json").write_text(json.dumps(as_dict(recipe)))
    return folder


def test_ranks_every_offset_of_the_grid(video: Path, best: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, transforms = load_selector(str(best))
    assert not model.training and transforms.classes == 15
    found = predict(model, transforms, video, offset_sec=0.4, v_start_sec=0.2)
    assert (found.truth.offset_class, round(found.truth.offset_sec, 4)) == (11, 0.4)
    assert sorted(guess.offset_class for guess in found.ranked) == list(range(15))
    assert sum(guess.probability for guess in found.ranked) == pytest.approx(1, abs=1e-5)
    assert [g.logit for g in found.ranked] == sorted((g.logit for g in found.ranked), reverse=True)
    again = predict(model, transforms, video, offset_sec=0.4, v_start_sec=0.2)
    assert again == found
    shifted = predict(model, transforms, video, offset_sec=-0.2, v_start_sec=0.2)
    assert [g.logit for g in shifted.ranked] != [g.logit for g in found.ranked]
    assert (shifted.truth.offset_class, round(shifted.truth.offset_sec, 4)) == (5, -0.2)
    later = predict(model, transforms, video, offset_sec=0.4, v_start_sec=0.6)
    assert [g.logit for g in later.ranked] != [g.logit for g in found.ranked]
    compiled = []
    monkeypatch.setattr(
        selector, "transcode", lambda path, recipe, to: compiled.append(recipe.fps) or transcode(path, recipe, to)
    )
    predict(model, transforms, video, fps=30)
    assert compiled == ["30"], "a clip is compiled at the rate that the selector was trained at"


def test_says_it_in_the_references_words(video: Path, best: Path) -> None:
    lines = told(predict(*load_selector(str(best)), video)).splitlines()
    assert lines[0] == "Ground Truth offset (sec): 0.00 (7)" and lines[2] == "Prediction Results:"
    assert len(lines) == 8 and all(
        re.fullmatch(r'p=0\.\d{4} \(-?\d+\.\d{4}\), "-?\d\.\d\d" \(\d+\)', line) for line in lines[3:]
    )


def test_the_command_prints_lines_or_json_and_counts_failures(video: Path, best: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no film")
    arguments = ["predict", str(video), str(broken), "--checkpoint", str(best), "--json"]
    result = CliRunner().invoke(cli, arguments, standalone_mode=False, catch_exceptions=False)
    assert result.return_value == 1 and "broken.mp4" in result.stderr
    told_json = json.loads(result.stdout.splitlines()[0])
    assert told_json["path"] == str(video) and len(told_json["ranked"]) == 15


def test_a_published_container_is_used_as_it_is(tmp_path: Path, video: Path) -> None:
    """A .pt laid out as the reference's, config inside; small, so its trunks stand for the real ones in name only."""
    selectors = {
        "num_selectors": 2,
        "n_layer": 1,
        "n_head": 2,
        "pos_emb_cfg": {"target": "x.PositionEmbeddingSelectors"},
    }
    params = {
        "num_offset_cls": 3,
        "visual_block_shape": [7, 2, 2],
        "audio_block_shape": [9, 8],
        "n_layer": 1,
        "n_head": 2,
        "n_embd": 512,
        "pre_norm_cfg": {"target": "torch.nn.LayerNorm"},
        "vis_pos_emb_module": {"target": "x.PositionEmbeddingLearnedVisual"},
        "aud_pos_emb_module": {"target": "x.PositionEmbeddingLearnedAudio"},
        "v_selector_cfg": {"params": selectors},
        "a_selector_cfg": {"params": selectors},
        "global_transformer_cfg": {"target": "x.GlobalTransformer", "params": {"n_layer": 1, "n_head": 2}},
    }
    config = {
        "model": {
            "target": "x.AVSyncModel",
            "params": {
                "vfeat_extractor": {"is_trainable": True},
                "afeat_extractor": {"is_trainable": True},
                "v_bridge_cfg": {"target": "x.ConvBridgeVisual"},
                "a_bridge_cfg": {"target": "x.DoNothingBridge"},
                "transformer": {"target": "x.SparseSync", "params": params},
            },
        },
        "data": {"crop_len_sec": 1, "max_off_sec": 1, "input_size": 64},
    }
    from javisc.trainer.models.sync.official import build_model

    torch.manual_seed(0)
    path = tmp_path / "22-01-01T00-00-00.pt"
    torch.save({"model": build_model(config["model"]).state_dict(), "args": OmegaConf.create(config), "epoch": 1}, path)
    model, transforms = load_selector(str(path))
    assert (transforms.crop_len_sec, transforms.max_off_sec, transforms.classes) == (1.0, 1.0, 3)
    found = predict(model, transforms, video, offset_sec=1.0)
    assert (found.truth.offset_class, len(found.ranked)) == (2, 3)


def test_what_fails_stops_no_other_video(video: Path, best: Path, tmp_path: Path) -> None:
    """A folder, a file that is not there, a picture without sound: each is told in a line, the rest is predicted."""
    still = tmp_path / "still.mp4"
    with av.open(str(video)) as source, av.open(str(still), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    paths = [tmp_path, tmp_path / "nowhere.mp4", video, still, video]
    result = CliRunner().invoke(cli, ["predict", *map(str, paths), "--checkpoint", str(best)], standalone_mode=False)
    assert result.exception is None and result.return_value == 1
    assert result.stdout.count("Ground Truth offset (sec): 0.00 (7)") == 2 == result.stdout.count(f"{video}\n")
    told_lines = [line for line in result.stderr.splitlines() if line.startswith("javisc: ")]
    assert [path.name in line for path, line in zip((tmp_path, paths[1], still), told_lines, strict=True)] == [True] * 3
    assert told_lines[0].endswith(": a folder: name its videos") and told_lines[1].endswith("nowhere.mp4: no such file")
    for option in ("--offset-sec", "--v-start-sec"):
        for value in ("nan", "inf", "-3", "1e300"):
            arguments = ["predict", str(video), "--checkpoint", str(best), option, value]
            result = CliRunner().invoke(cli, arguments, standalone_mode=False)
            assert result.exception is None and result.return_value == 1, (option, value, result.exception)
            assert "give another --offset-sec or --v-start-sec" in result.stderr


def test_mistakes_are_told(video: Path, best: Path, tmp_path: Path) -> None:
    model, transforms = load_selector(str(best))
    with pytest.raises(UserError, match=r"ball\.mp4: .*; give another --offset-sec or --v-start-sec"):
        predict(model, transforms, video, offset_sec=0.8, v_start_sec=2.0)
    with pytest.raises(UserError, match="no trained selector"):
        load_selector(str(tmp_path))
    (tmp_path / "recipe.json").write_text('{"nothing": 1}')
    with pytest.raises(UserError, match="no recipe of a sync run"):
        load_selector(str(tmp_path))
