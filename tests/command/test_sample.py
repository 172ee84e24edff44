"""`javisc sample` with tiny random models from folders in their official layouts."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
import torch
from click.testing import CliRunner, Result
from numpy.typing import NDArray
from PIL import Image

from javisc.commands.sample import sample
from javisc.compiler.demo.jav import write_scene
from javisc.compiler.demo.scenes import scene
from javisc.manifests.errors import UserError
from javisc.trainer.engine.weights import write_weights
from javisc.trainer.models.dit import PRESETS, VASTDiT3, checkpoint
from javisc.trainer.models.prior import STIBPrior
from javisc.trainer.models.prior import model as prior_files
from javisc.trainer.models.prior.config import TINY
from javisc.trainer.models.text.imagebind import ImageBindText
from javisc.trainer.models.tiny import SPATIAL, TEMPORAL
from javisc.trainer.models.vae.opensora import OpenSoraVAE
from support.encoders import tiny_audio, tiny_t5


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of every model, as a user has them."""
    from transformers import CLIPTokenizer

    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("weights")
    small = {"depth": 1}
    checkpoint.save(VASTDiT3(dataclasses.replace(PRESETS["VASTDiT3-tiny"], **small)), root / "jav")
    checkpoint.save(VASTDiT3(dataclasses.replace(PRESETS["VASTDiT3-tiny-audio"], **small)), root / "audio")
    prior_files.save(STIBPrior(TINY), root / "prior")
    tower = ImageBindText(positions=12, vocabulary=54, width=TINY.text_emb_dim, blocks=1, heads=1)
    write_weights(root / "imagebind", tower.state_dict())
    letters = [chr(i) for i in range(97, 123)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[]).save_pretrained(root / "clip")
    tiny_t5(root / "t5")
    tiny_audio(root)
    vae = OpenSoraVAE(SPATIAL, TEMPORAL)
    write_weights(root / "video", vae.state_dict())
    (root / "video" / "config.json").write_text(json.dumps({"spatial": SPATIAL, "temporal": TEMPORAL}))
    return root


def run(weights: Path, out: Path, *more: str, model: str = "jav", **changed: str) -> Result:
    places = {"prior": "prior", "t5": "t5", "imagebind": "imagebind", "clip-tokenizer": "clip", "video-vae": "video"}
    places |= {"audio-vae": "vae", "vocoder": "vocoder", "model": model} | changed
    options = [word for name, folder in places.items() for word in (f"--{name}", str(weights / folder))]
    small = ["--resolution", "144p", "--aspect-ratio", "1:1", "--num-frames", "18", "--steps", "1", "--device", "cpu"]
    return CliRunner().invoke(
        sample, [*options, *small, "--dtype", "fp32", "--out", str(out), *more], catch_exceptions=False
    )


def pictures(path: Path) -> NDArray[np.float64]:
    with av.open(str(path)) as file:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]).astype(float)


def test_prompts_become_clips_and_a_page(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "prompts.txt").write_text("rain\n\n<script>alert(1)</script>\n")
    out = tmp_path / "out"
    result = run(weights, out, "rain", "--prompts", str(tmp_path / "prompts.txt"))
    assert result.exit_code == 0 and "3 clips" in result.output
    assert sorted(p.name for p in out.iterdir()) == [
        "00000.mp4",
        "00001.mp4",
        "00002.mp4",
        "index.html",
        "prompts.json",
    ]
    with av.open(str(out / "00002.mp4")) as file:
        assert sum(1 for _ in file.decode(video=0)) == 18
    page = (out / "index.html").read_text()
    assert "<script>" not in page and "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    first = pictures(out / "00001.mp4")
    (out / "00001.mp4").unlink()
    times = (out / "00000.mp4").stat().st_mtime_ns
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = run(weights, out, "rain", "--prompts", str(tmp_path / "prompts.txt"))
    assert "2 clips" in result.output
    # Weights that lie elsewhere in memory may round otherwise and H.264 follows, so pictures are compared, not bytes.
    same, other = (np.abs(pictures(out / name) - first).mean() for name in ("00001.mp4", "00002.mp4"))
    assert same < 0.2 * other
    assert np.abs(pictures(out / "00000.mp4") - first).mean() > 0.2 * other, "of one prompt twice, two clips are made"
    assert (out / "00000.mp4").stat().st_mtime_ns == times


def test_an_audio_model_gives_sound(weights: Path, tmp_path: Path) -> None:
    assert run(weights, tmp_path, "rain", model="audio").exit_code == 0
    assert (tmp_path / "00000.wav").stat().st_size == 44 + 2 * 12000


def sound(path: Path) -> NDArray[np.float64]:
    with av.open(str(path)) as file:
        return np.concatenate([frame.to_ndarray()[0] for frame in file.decode(audio=0)]).astype(float)


def test_what_is_given_is_kept_and_the_rest_made(weights: Path, tmp_path: Path) -> None:
    film, picture, noise = tmp_path / "film.mp4", tmp_path / "picture.png", tmp_path / "noise.wav"
    write_scene(scene(3, kind="bounce", seconds=1.0, fps=30), film)
    Image.fromarray(np.tile(np.arange(0, 256, 2, dtype=np.uint8)[None, :, None], (96, 1, 3))).save(picture)
    soundfile.write(noise, np.random.default_rng(0).uniform(-0.5, 0.5, 16000), 16000)

    def make(name: str, condition: str, *references: Path) -> list[Path]:
        out = tmp_path / name
        given = [word for path in references for word in ("--reference", str(path))]
        small = ["--resolution", "48x64", "--steps", "2"]
        assert run(weights, out, "rain", "a dog", "--condition", condition, *given, *small).exit_code == 0
        return sorted(out.glob("*.mp4"))

    def apart(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
        return float(np.abs(a - b).mean() / np.abs(a - a.mean()).mean())

    free = make("free", "")
    seen, heard = apart(*map(pictures, free)), apart(*map(sound, free))
    a, b = make("video", "video", film)
    assert apart(pictures(a), pictures(b)) < 0.1 * seen and apart(sound(a), sound(b)) > 0.5 * heard
    a, b = make("sound", "sound", noise)
    assert apart(sound(a), sound(b)) < 0.1 * heard and apart(pictures(a), pictures(b)) > 0.5 * seen
    # The first latent frame is all that is given: it reaches the first pictures, not the last.
    a, b = make("image", "image", picture)
    assert apart(pictures(a)[:1], pictures(b)[:1]) < 0.7 * apart(pictures(a)[-1:], pictures(b)[-1:])
    # The same film under another name is the same film.
    moved = film.rename(tmp_path / "moved.mp4")
    before = pictures(tmp_path / "video" / "00000.mp4")
    a, b = make("seven", "0,1,0,0,99,0,1;0,0,0,0,99,0,2", noise, moved)
    assert apart(pictures(a), pictures(b)) < 0.1 * seen and apart(sound(a), sound(b)) < 0.1 * heard
    assert apart(pictures(a), before) < 0.1 * seen


@pytest.mark.parametrize(
    ("words", "changed", "message"),
    [
        ([], {}, "nothing to sample"),
        (["x", "--prompts", "none.txt"], {}, r"none\.txt is not there"),
        (["x"], {"t5": "none"}, "download DeepFloyd/t5-v1_1-xxl into it"),
        (["x"], {"vocoder": "none"}, "download cvssp/audioldm2"),
        (["x", "--resolution", "100p"], {}, "resolution '100p' is unknown"),
        (["x", "--condition", "sound"], {}, "give the file too, with --reference FILE"),
        (["x", "--condition", "0,0", "--reference", "y"], {}, "it needs seven"),
        (["x", "--condition", "sound", "--reference", "none.wav"], {}, r"none\.wav cannot be read"),
        (["x", "--condition", "image", "--reference", "none.png"], {}, r"none\.png is no picture that can be read"),
    ],
)
def test_mistakes_are_one_line(
    weights: Path, tmp_path: Path, words: list[str], changed: dict[str, str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        run(weights, tmp_path, *words, model="audio", **changed)
