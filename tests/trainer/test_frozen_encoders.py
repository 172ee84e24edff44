"""The frozen encoders with tiny random weights in the libraries' own layouts, and what a missing folder is answered with."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from javisc.manifests.errors import UserError
from javisc.trainer.data.index.lengths import latent_frames
from javisc.trainer.engine.weights import write_weights
from javisc.trainer.models.frozen import SOURCES, need_weights
from javisc.trainer.models.text import captions
from javisc.trainer.models.text.imagebind import ImageBindText
from javisc.trainer.models.text.t5 import T5
from javisc.trainer.models.text.tokens import ClipTokens, ImageBindEncoder
from javisc.trainer.models.tiny import SPATIAL, TEMPORAL
from javisc.trainer.models.vae.audio import AudioLDM2
from javisc.trainer.models.vae.diffusers_video import DiffusersVideoVAE
from javisc.trainer.models.vae.opensora import SCALE, SHIFT, OpenSoraVAE
from support.encoders import tiny_audio, tiny_t5
from support.parity import table


def test_t5_pads_and_masks(tmp_path: Path) -> None:
    encoder = T5.load(tiny_t5(tmp_path), length=7)
    hidden, mask = encoder.encode(["a dog barks", "a", "dog " * 20])
    assert hidden.shape == (3, 1, 7, 32) and mask.sum(1).tolist() == [7, 2, 7]
    alone, _ = encoder.encode(["a"])
    assert torch.allclose(hidden[1, 0, :2], alone[0, 0, :2], atol=1e-5)


def test_audio_codec_shapes_and_scale(tmp_path: Path) -> None:
    torch.manual_seed(0)
    folder = tiny_audio(tmp_path)
    codec = AudioLDM2.load(folder / "vae", folder / "vocoder")
    z = codec.encode(torch.randn(2, 1, 32, 64), mode=True)
    assert z.shape == (2, 8, 8, 16)
    mel = codec.decode(z)
    assert mel.shape == (2, 1, 32, 64)
    wave = codec.wave(mel)
    assert wave.ndim == 2 and 32 * 160 <= wave.shape[1] < 33 * 160
    plain = codec.vae.encode(torch.ones(1, 1, 32, 64)).latent_dist.mode()
    assert torch.allclose(codec.encode(torch.ones(1, 1, 32, 64), mode=True), plain * 0.41)
    silent = AudioLDM2.load(folder / "vae", decode=False)
    with pytest.raises(ValueError, match="without its vocoder"):
        silent.wave(mel)


@pytest.mark.parametrize("frames", [1, 6, 17, 20])
def test_opensora_vae_round_trip_shapes(frames: int) -> None:
    torch.manual_seed(0)
    vae = OpenSoraVAE(SPATIAL, TEMPORAL)
    video = torch.rand(1, 3, frames, 16, 24) * 2 - 1
    z = vae.encode(video, mode=True)
    assert z.shape == (1, 4, *vae.latent_size(frames, 16, 24)) and z.shape[2] == latent_frames(frames)
    assert vae.decode(z, frames).shape == video.shape


def test_opensora_vae_normalises_each_channel_and_encodes_groups_apart() -> None:
    torch.manual_seed(0)
    vae = OpenSoraVAE(SPATIAL, TEMPORAL)
    video = torch.rand(2, 3, 34, 16, 16) * 2 - 1
    z = vae.encode(video, mode=True)
    for half in range(2):
        alone = vae.encode(video[:, :, half * 17 : half * 17 + 17], mode=True)
        assert torch.allclose(z[:, :, half * 5 : half * 5 + 5], alone, atol=1e-5)
    shift, scale = torch.tensor(SHIFT), torch.tensor(SCALE)
    raw = vae.temporal_vae.encode(
        torch.stack(
            [vae.spatial_vae.module.encode(f).latent_dist.mode() * 0.18215 for f in video[:, :, :17].unbind(2)], 2
        ),
        mode=True,
    )
    expected = (raw - shift.view(1, 4, 1, 1, 1)) / scale.view(1, 4, 1, 1, 1)
    assert torch.allclose(z[:, :, :5], expected, atol=1e-5)


def test_opensora_weights_load_under_their_official_names(tmp_path: Path) -> None:
    vae = OpenSoraVAE(SPATIAL, TEMPORAL)
    state = vae.state_dict()
    assert {name.split(".")[0] for name in state} == {"spatial_vae", "temporal_vae", "scale", "shift"}
    flat = {"scale": state["scale"].flatten(), "shift": state["shift"].flatten()}
    write_weights(tmp_path, state | flat)
    (tmp_path / "config.json").write_text(
        json.dumps({"spatial": SPATIAL, "temporal": TEMPORAL, "micro_frame_size": 17})
    )
    again = OpenSoraVAE.load(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(state.values(), again.state_dict().values(), strict=True))
    (tmp_path / "config.json").write_text(json.dumps({"spatial": SPATIAL, "temporal": TEMPORAL | {"res": 2}}))
    with pytest.raises(UserError, match="tensors missing"):
        OpenSoraVAE.load(tmp_path)


def test_the_text_tower_is_found_in_a_whole_file() -> None:
    tower = ImageBindText(positions=6, vocabulary=54, width=8, blocks=2, heads=1)
    tensors = tower.state_dict() | {"modality_trunks.vision.blocks.0.weight": torch.zeros(1)}
    again = ImageBindText.load(tensors, "file")
    tokens = torch.tensor([[1, 2, 3, 53, 0, 0]])
    assert torch.equal(again(tokens), tower.eval()(tokens))
    with pytest.raises(UserError, match="holds no ImageBind text tower"):
        ImageBindText.load({}, "file")


def test_a_diffusers_video_autoencoder_is_a_codec(tmp_path: Path) -> None:
    from diffusers import AutoencoderKLWan

    torch.manual_seed(0)
    options: dict[str, Any] = {"base_dim": 4, "z_dim": 16, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1}
    AutoencoderKLWan(**options).save_pretrained(tmp_path)
    codec = DiffusersVideoVAE.load(tmp_path)
    video = torch.rand(1, 3, 5, 16, 16) * 2 - 1
    z = codec.encode(video, mode=True)
    assert z.shape == (1, codec.latent_channels, *codec.latent_size(5, 16, 16))
    assert codec.decode(z, 5).shape == video.shape
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "UNet2DModel"}))
    with pytest.raises(UserError, match="a video autoencoder of diffusers is needed"):
        DiffusersVideoVAE.load(tmp_path)


def clip_vocabulary() -> Path:
    path = Path(os.environ.get("JAVISC_CLIP_TOKENIZER", ""))
    if not path.name or not path.exists():
        pytest.skip("JAVISC_CLIP_TOKENIZER names no CLIP tokenizer (a folder, or bpe_simple_vocab_16e6.txt.gz)")
    return path


def test_clip_tokens_are_imagebinds() -> None:
    rows = table("imagebind_tokens.json")
    ours = ClipTokens.load(clip_vocabulary())([text for text, _ in rows])
    for (text, expected), ids in zip(rows, ours.tolist(), strict=True):
        assert ids == expected, text


def test_a_long_caption_is_cut_and_loses_its_end_token(tmp_path: Path) -> None:
    """With a vocabulary of single letters: the rules around the byte pairs, without the published ones."""
    from transformers import CLIPTokenizer

    letters = [chr(i) for i in range(97, 123)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[]).save_pretrained(tmp_path)
    tokens = ClipTokens.load(tmp_path, length=6)
    assert tokens(["  AB\n&amp;lt; "])[0].tolist()[:3] == [52, 0, 27]
    assert tokens(["ab"])[0].tolist() == [52, 0, 27, 53, 0, 0]
    assert tokens(["abcdefgh"])[0].tolist() == [52, 0, 1, 2, 3, 4]
    tower = ImageBindText(positions=6, vocabulary=54, width=8, blocks=1, heads=2)
    assert ImageBindEncoder(tower, tokens).encode(["ab", "c"]).shape == (2, 6, 8)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A Dog  BARKS — twice!!! see https://example.com/x?y=1", "a dog barks - twice! see"),
        ("birds &amp;amp; rain \u4e2d\u6587 <b>now</b>", "birds & rain now"),
        ('"quoted caption"', "quoted caption"),
        ("clip 20230101234 by @someone, 1920x1080", "clip by"),
    ],
)
def test_captions_are_cleaned(text: str, expected: str) -> None:
    assert captions.clean(text).rstrip(",").strip() == expected


def test_the_score_is_appended_once() -> None:
    assert captions.with_score("a dog") == "a dog aesthetic score: 6.5."
    assert captions.with_score("a dog aesthetic score: 5.0.") == "a dog aesthetic score: 5.0."
    assert captions.with_score("a dog", None) == "a dog"


@pytest.mark.parametrize("what", SOURCES)
def test_a_missing_folder_says_what_to_download_where(what: str, tmp_path: Path) -> None:
    option, source = SOURCES[what]
    for given in (None, tmp_path / "nowhere"):
        with pytest.raises(UserError) as error:
            need_weights(given, what)
        assert option in str(error.value) and source in str(error.value) and "\n" not in str(error.value)
