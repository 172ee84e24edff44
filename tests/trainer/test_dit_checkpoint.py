"""The joint DiT's folders: official layout in and out, and what hostile or broken ones are answered with."""

from __future__ import annotations

import dataclasses
import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from javisc.manifests.errors import UserError
from javisc.trainer.engine.weights import read_weights
from javisc.trainer.models.dit import PRESETS, VASTDiT3, VASTDiT3Config, checkpoint


@pytest.fixture(scope="module")
def model() -> VASTDiT3:
    torch.manual_seed(0)
    return VASTDiT3(PRESETS["VASTDiT3-tiny"])


@pytest.mark.parametrize("shard_bytes", [1 << 30, 100_000])
def test_a_saved_model_loads_back_bit_for_bit(model: VASTDiT3, tmp_path: Path, shard_bytes: int) -> None:
    checkpoint.save(model, tmp_path, max_shard_bytes=shard_bytes)
    assert (tmp_path / "model.safetensors").exists() == (shard_bytes > 1 << 20)
    again = checkpoint.load(tmp_path)
    assert again.config == model.config
    for (name, ours), theirs in zip(model.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name


def test_options_replace_entries_and_run_folders_are_found(model: VASTDiT3, tmp_path: Path) -> None:
    checkpoint.save(model, tmp_path / "model")
    assert checkpoint.load(tmp_path, prior_attention="sample", dtype=torch.bfloat16).dtype == torch.bfloat16
    with pytest.raises(
        UserError, match=r"config\.json: prior_attention=row: its type is batch or sample; change prior_attention"
    ):
        checkpoint.load(tmp_path, prior_attention="row")


def test_config_names_of_the_reference_are_understood(tmp_path: Path) -> None:
    options = {
        "model_type": "VASTDiT3",
        "depth": 3,
        "enable_flash_attn": True,
        "skip_y_embedder": False,
        "patch_size": [1, 2, 2],
    }
    (tmp_path / "config.json").write_text(json.dumps(options))
    assert VASTDiT3Config.load(tmp_path / "config.json") == dataclasses.replace(VASTDiT3Config(), depth=3)
    with pytest.raises(UserError, match="unknown option 'dept'; did you mean 'depth'"):
        VASTDiT3Config.from_options({"dept": 3})


def test_what_does_not_fit_is_one_line(model: VASTDiT3, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.json is not there"):
        checkpoint.load(tmp_path)
    model.config.save(tmp_path / "config.json")
    with pytest.raises(UserError, match="holds no weights"):
        checkpoint.load(tmp_path)
    state = model.state_dict()
    state["extra"] = state.pop("rope.freqs")
    save_file({name: value.clone() for name, value in state.items()}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"1 tensors missing \(first 'rope.freqs'\); 1 unknown \(first 'extra'\)"):
        checkpoint.load(tmp_path)


class _Trap:
    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (Path("trapped"),))


def test_hostile_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.pt").write_bytes(pickle.dumps({"a": _Trap()}))
    with pytest.raises(UserError, match="cannot be read|is no|refused|holds"):
        read_weights(tmp_path)
    assert not (tmp_path / "trapped").exists()
    folder = tmp_path / "sharded"
    folder.mkdir()
    save_file({"a": torch.zeros(1)}, tmp_path / "outside.safetensors")
    index = {"weight_map": {"a": "../outside.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="must lie beside their index"):
        read_weights(folder)


def test_null_captions_of_another_length_are_fitted() -> None:
    rows = torch.arange(3.0)[:, None]
    for tokens, expected in ((2, [0, 1]), (5, [0, 1, 2, 2, 2])):
        fitted = checkpoint.fit_caption_length({"y_embedder.y_embedding": rows, "other": rows}, tokens)
        assert fitted["y_embedder.y_embedding"][:, 0].tolist() == expected
        assert len(fitted["other"]) == 3
