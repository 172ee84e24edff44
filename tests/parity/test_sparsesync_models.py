"""The sync models against the reference's numbers: every stage, float32, strict loading."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from javisc.trainer.engine.weights import load_strictly
from javisc.trainer.models.sync.attention import recorded_attention
from javisc.trainer.models.sync.model import AudioClassifier, AVSync
from javisc.trainer.models.sync.official import build_model, build_transformer
from javisc.trainer.models.sync.resnet import ResNet18Audio
from javisc.trainer.models.sync.s3d import S3D
from support.sync_parity import SETS, Fixture, fixtures, rel

#: The sets allow 1e-4; a wrong GELU alone is 1e-4 to 3e-4, so anything over 1e-5 on a CPU is taken for a mistake here.
TOLERANCE = 1e-5


def loaded(module: nn.Module, fixture: Fixture) -> nn.Module:
    load_strictly(module, fixture.state, fixture.meta["name"])
    return module.eval()


def stages(module: nn.Module, names: list[str]) -> tuple[dict[str, Tensor], list[torch.utils.hooks.RemovableHandle]]:
    """Record the outputs of the named submodules during the next forward pass."""
    seen: dict[str, Tensor] = {}

    def hook(name: str) -> torch.utils.hooks.RemovableHandle:
        return module.get_submodule(name).register_forward_hook(
            lambda _m, _i, output: seen.__setitem__(name, output.clone())
        )

    return seen, [hook(name) for name in names]


@torch.no_grad()
def compare(module: nn.Module, fixture: Fixture, *inputs: Tensor) -> dict[str, float]:
    """Run `module`; the relative error of its output and of every stored stage by name."""
    inter = fixture.named("inter/")
    probabilities = tuple(name.removeprefix("attn:") for name in inter if name.startswith("attn:"))
    seen, handles = stages(module, [name for name in inter if not name.startswith("attn:")])
    with recorded_attention(module, probabilities) as attention:
        output = module(*inputs)
    for handle in handles:
        handle.remove()
    got = {**seen, **{f"attn:{name}": value for name, value in attention.items()}}
    errors = {name: rel(got[name], want) for name, want in inter.items()}
    out = fixture.named("out/")
    if isinstance(output, tuple):
        loss, output = output
        if "loss" in out:
            errors["out/loss"] = rel(loss, out["loss"])
    errors["out"] = rel(output, out["features" if "features" in out else "logits"])
    return errors


def check(errors: dict[str, float]) -> None:
    wrong = {name: error for name, error in errors.items() if not error <= TOLERANCE}
    assert not wrong, f"relative errors over {TOLERANCE}: {wrong}"


@pytest.mark.parametrize(("folder", "name"), fixtures("sparsesync_transformer", "full_attention_transformer"))
def test_transformer(folder: Path, name: str) -> None:
    fixture = Fixture(folder, name)
    module = loaded(build_transformer(fixture.meta["config"]), fixture)
    check(compare(module, fixture, fixture.inputs["vis"], fixture.inputs["aud"]))


@pytest.mark.parametrize(("folder", "name"), fixtures("s3d_visual_features"))
def test_s3d(folder: Path, name: str) -> None:
    fixture = Fixture(folder, name)
    check(compare(loaded(S3D(), fixture), fixture, fixture.inputs["vis"]))


@pytest.mark.parametrize(("folder", "name"), fixtures("s3d_visual_features_train_mode"))
def test_s3d_train_mode_moves_the_norm_statistics(folder: Path, name: str) -> None:
    fixture = Fixture(folder, name)
    module = loaded(S3D(), fixture).train()
    with torch.no_grad():
        features = module(fixture.inputs["vis"])
    # Batch statistics over few values amplify rounding: the reference itself moves by 1e-3 between float32 and float64.
    assert rel(features, fixture.tensors["out/features"]) <= 2e-2
    state = module.state_dict()
    for key, want in fixture.named("out/sd:").items():
        assert rel(state[key], want) <= 1e-4, key


@pytest.mark.parametrize(("folder", "name"), fixtures("resnet18_audio_features"))
def test_resnet(folder: Path, name: str) -> None:
    fixture = Fixture(folder, name)
    check(compare(loaded(ResNet18Audio(), fixture), fixture, fixture.inputs["aud"]))


@pytest.mark.parametrize(("folder", "name"), fixtures("resnet18_audio_classifier"))
def test_audio_classifier(folder: Path, name: str) -> None:
    fixture = Fixture(folder, name)
    tensors = fixture.tensors
    module = loaded(AudioClassifier(len(fixture.state["fc.bias"])), fixture)
    with torch.no_grad():
        weighted, logits = module(tensors["in/aud"], tensors["in/targets"], tensors["in/class_weights"])
        plain, _ = module(tensors["in/aud"], tensors["in/targets"])
    check(
        {
            "logits": rel(logits, tensors["out/logits"]),
            "loss_weighted": rel(weighted, tensors["out/loss_weighted"]),
            "loss_plain": rel(plain, tensors["out/loss_plain"]),
        }
    )


@pytest.mark.parametrize(("folder", "name"), fixtures("avsync_model"))
def test_whole_model(folder: Path, name: str) -> None:
    fixture = Fixture(folder, name)
    module = loaded(build_model(fixture.meta["config"]), fixture)
    check(compare(module, fixture, fixture.inputs["vis"], fixture.inputs["aud"], fixture.tensors["in/targets"]))


@pytest.mark.parametrize(
    "path", [path for folder in SETS for path in folder.glob("official_state_dict_keys_*.txt")], ids=str
)
def test_state_dict_is_the_official_list(path: Path) -> None:
    from javisc.trainer.models.sync.config import AVSyncConfig, SyncTransformerConfig

    rows = [line.split("\t") for line in path.read_text().splitlines()]
    classes = next(
        int(shape.strip("[]").split(",")[0]) for key, shape, _ in rows if key == "transformer.off_head.weight"
    )
    with torch.device("meta"):
        model = AVSync(AVSyncConfig(transformer=SyncTransformerConfig(classes=classes)))
    got = [
        [key, str(list(value.shape)), str(value.dtype).removeprefix("torch.")]
        for key, value in model.state_dict().items()
    ]
    # In order too: the optimizer state of an official checkpoint counts the parameters, it does not name them.
    assert got == rows
