"""Using a trained sync selector: which offsets does it see in a video file?"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from javisc.compiler.media.transcode import transcode
from javisc.compiler.recipe import PRESETS
from javisc.manifests.errors import UserError
from javisc.trainer.data.decode import frames, samples
from javisc.trainer.engine.weights import load_strictly, read_weights
from javisc.trainer.models.sync.checkpoint import read_sync_checkpoint
from javisc.trainer.models.sync.model import AVSync
from javisc.trainer.tasks.sync import SyncRecipe
from javisc.trainer.transforms.draws import SeededDraws
from javisc.trainer.transforms.sync_chain import FixedOffset, SyncTransforms, apply, plan
from javisc.trainer.transforms.sync_window import ClassGrid, InfeasibleCrop, Lengths

#: What `loop.save_weights` leaves beside the weights.
RECIPE = "recipe.json"
_MAX_RECIPE_BYTES = 1 << 20


@dataclass(frozen=True)
class Guess:
    """One offset of the grid: its probability, logit, seconds and class."""

    probability: float
    logit: float
    offset_sec: float
    offset_class: int


@dataclass(frozen=True)
class Prediction:
    """The offset that was asked for, as the nearest of the grid, and all offsets from the likeliest down."""

    truth: Guess
    ranked: list[Guess]


def load_selector(path: str) -> tuple[AVSync, SyncTransforms]:
    """A trained selector and the transforms it wants: the reference's `.pt`, or the folder `best` of a run.

    Raises UserError if the file is neither, broken or hostile.
    """
    if path.endswith((".pt", ".pth")):
        checkpoint = read_sync_checkpoint(path)
        model = checkpoint.build()
        data = checkpoint.config.get("data") or {}
        known = SyncTransforms()
        return model.eval(), SyncTransforms(
            crop_len_sec=float(data.get("crop_len_sec", known.crop_len_sec)),
            max_off_sec=float(data.get("max_off_sec", known.max_off_sec)),
            input_size=int(data.get("input_size", known.input_size)),
            classes=(model.config.full_attention or model.config.transformer).classes,
        )
    settings = Path(path) / RECIPE
    if not settings.is_file() or settings.stat().st_size > _MAX_RECIPE_BYTES:
        raise UserError(f"{path} is no trained selector: give the reference's .pt, or the folder 'best' of a run")
    try:
        merged = OmegaConf.merge(OmegaConf.structured(SyncRecipe), json.loads(settings.read_text(encoding="utf-8")))
        recipe = OmegaConf.to_object(merged)
    except (ValueError, OmegaConfBaseException) as error:
        raise UserError(f"{settings} is no recipe of a sync run ({str(error).splitlines()[0]})") from error
    assert isinstance(recipe, SyncRecipe)
    if recipe.model.head.classes != recipe.transforms.classes:
        raise UserError(
            f"{settings}: the model has {recipe.model.head.classes} classes, the transforms {recipe.transforms.classes}: "
            "take the folder 'best' as the run left it"
        )
    model = AVSync(recipe.model)
    load_strictly(model, read_weights(Path(path)), path)
    return model.eval(), recipe.transforms


def short_side(transforms: SyncTransforms) -> int:
    """The short side, in pixels, of the pictures that the centre is cropped from: 256 for the published 224."""
    return 256 if transforms.input_size == 224 else transforms.input_size


@torch.no_grad()
def predict(
    model: AVSync,
    transforms: SyncTransforms,
    video: Path,
    *,
    offset_sec: float = 0.0,
    v_start_sec: float = 0.0,
    fps: int = 25,
) -> Prediction:
    """Rank the offsets of one crop of a video file, which is compiled first by the code that makes datasets.

    The picture's crop starts at `v_start_sec`, the sound's `offset_sec` later. Raises UserError if the clip is too short or
    holds no sound, and the compiler's `Rejected` if it cannot be compiled.
    """
    recipe = PRESETS["sync"].replace(fps=str(fps), short_side=short_side(transforms))
    with tempfile.TemporaryDirectory(prefix="javisc-predict-") as scratch:
        clip = transcode(video, recipe, Path(scratch))
        if clip.mp4 is None or clip.flac is None:
            raise UserError(f"{video} has no {'picture' if clip.mp4 is None else 'sound'}: a selector compares the two")
        mp4, flac = clip.mp4.read_bytes(), clip.flac.read_bytes()
    count, heard = int(str(clip.columns["num_frames"])), int(str(clip.columns["num_samples"]))
    draws = SeededDraws(0)
    lengths = Lengths(count, heard, float(fps), recipe.sample_rate)
    try:
        window = plan(transforms, lengths, draws, train=False, fixed=FixedOffset(offset_sec, v_start_sec))
    except InfeasibleCrop as error:
        raise UserError(f"{video}: {error}; give another --offset-sec or --v-start-sec") from error
    pictures = torch.from_numpy(frames(mp4, window.v_first, window.v_len, fps=recipe.rate, gop=recipe.gop)).permute(
        0, 3, 1, 2
    )
    wave = torch.from_numpy(samples(flac, window.a_first, window.a_len)).mean(1)
    sample = apply(transforms, pictures, wave, window, recipe.sample_rate, draws, train=False)
    device = next(model.parameters()).device
    _, logits = model(sample.vis[None].to(device), sample.aud[None].to(device))
    chances = logits[0].float().softmax(0)
    grid = ClassGrid(transforms.max_off_sec, transforms.classes).values
    guesses = [Guess(float(chances[c]), float(logits[0, c]), float(grid[c]), c) for c in range(transforms.classes)]
    assert window.offset_target is not None
    ranked = sorted(guesses, key=lambda guess: (-guess.logit, guess.offset_class))
    return Prediction(guesses[window.offset_target], ranked)


def told(prediction: Prediction, at_most: int = 5) -> str:
    """The reference's own wording: probability, logit, offset and class, from the likeliest down."""
    truth = prediction.truth
    lines = [f"Ground Truth offset (sec): {truth.offset_sec:.2f} ({truth.offset_class})", "", "Prediction Results:"]
    for guess in prediction.ranked[:at_most]:
        lines.append(f'p={guess.probability:.4f} ({guess.logit:.4f}), "{guess.offset_sec:.2f}" ({guess.offset_class})')
    return "\n".join(lines)
