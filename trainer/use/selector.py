"""Using a trained sync selector: which offsets does it see in a video file?"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn

from javisc.compiler.media.transcode import transcode
from javisc.compiler.recipe import PRESETS
from javisc.manifests.errors import UserError
from javisc.trainer.data.bytes.decode import frames, samples
from javisc.trainer.engine.settings import check_values
from javisc.trainer.engine.weights import load_strictly, read_weights
from javisc.trainer.models.sync.checkpoint import read_sync_checkpoint
from javisc.trainer.tasks.registry import TASKS, parts_of
from javisc.trainer.tasks.selector import PICKLED
from javisc.trainer.transforms.draws import SeededDraws
from javisc.trainer.transforms.sync_chain import FixedOffset, SyncTransforms, plan
from javisc.trainer.transforms.sync_window import ClassGrid, InfeasibleCrop, Lengths
from javisc.trainer.use.families import Family, family_of, family_of_task
from javisc.trainer.use.rating import Rater
from javisc.trainer.use.score_clip import CropOptions

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
    """The offset that was asked for, as the nearest of the grid, and all offsets from the likeliest down.

    A model of synchronizability tells one probability instead: that this crop can be synchronised at all. `audio_advance_sec`: by
    how much later than the clock says the sound was taken, see `SyncTransforms`.
    """

    truth: Guess
    ranked: list[Guess] = field(default_factory=list)
    synchronizable: float | None = None
    audio_advance_sec: float = 0.0


def load_selector(path: str) -> tuple[nn.Module, SyncTransforms]:
    """A trained model of any family and the transforms it wants: a published `.pt`, or the folder `best` of a run.

    Which family it is of, the file says. Raises UserError if the file is neither, broken or hostile.
    """
    return _loaded(path)[1:]


def _loaded(path: str) -> tuple[Family, nn.Module, SyncTransforms]:
    if path.endswith(PICKLED):
        checkpoint = read_sync_checkpoint(path)
        family = family_of(checkpoint.model, checkpoint.source)
        model, transforms = family.published(checkpoint)
        return family, model.eval(), transforms
    name, model, transforms = _run(path)
    found = family_of_task(name)
    if found is None:
        raise UserError(f"{path} is a run of task {name!r}, which trains no selector: give one of another task")
    return found, model, transforms


def load_run(path: str) -> tuple[nn.Module, SyncTransforms]:
    """The model of a run's folder `best` or `last`, of any stage of a sync model, and its transforms. Raises UserError."""
    return _run(path)[1:]


def _run(path: str) -> tuple[str, nn.Module, SyncTransforms]:
    settings = Path(path) / RECIPE
    if not settings.is_file() or settings.stat().st_size > _MAX_RECIPE_BYTES:
        raise UserError(f"{path} is no trained selector: give a published .pt, or the folder 'best' of a run")
    try:
        stored = json.loads(settings.read_text(encoding="utf-8"))
        name = str(stored.get("task")) if isinstance(stored, dict) else ""
        if name not in TASKS:
            raise UserError(f"{settings} is no recipe of a sync run: its task is {name!r}")
        recipe_class, task_class = parts_of(name)
        recipe: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(recipe_class), stored))
    except (ValueError, OmegaConfBaseException) as error:
        raise UserError(f"{settings} is no recipe of a sync run ({str(error).splitlines()[0]})") from error
    if not hasattr(task_class, "selector"):
        raise UserError(f"{settings} is no recipe of a sync run: its task is {name!r}")
    check_values(recipe)
    task_class.check_fit(recipe)
    model: nn.Module = task_class.selector(recipe)
    load_strictly(model, read_weights(Path(path)), path)
    return name, model.eval(), recipe.transforms


def rater_of(path: str, options: CropOptions, advance: float | None) -> Rater:
    """What rates clips with a trained model. `advance`: another `audio_advance_sec` than the model's own. Raises UserError."""
    family, model, transforms = _loaded(path)
    rater: Rater = family.rates()(model, with_advance(transforms, advance), options)
    return rater


def short_side(transforms: SyncTransforms) -> int:
    """The short side, in pixels, of the pictures that the centre is cropped from: 256 for the published 224."""
    return 256 if transforms.input_size == 224 else transforms.input_size


def with_advance(transforms: SyncTransforms, seconds: float | None) -> SyncTransforms:
    """The transforms with another `audio_advance_sec`, None for their own. Raises UserError for one that cannot be."""
    if seconds is None:
        return transforms
    changed = replace(transforms, audio_advance_sec=seconds)
    changed.check()
    return changed


@torch.no_grad()
def predict(
    model: nn.Module,
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
    decoded = frames(mp4, window.v_first, window.v_len, fps=recipe.rate, gop=recipe.gop)
    vis = transforms.pictures(torch.from_numpy(decoded).permute(0, 3, 1, 2), draws, train=False)
    wave = torch.from_numpy(samples(flac, window.a_first, window.a_len)).mean(1)
    aud = transforms.sounds(wave, recipe.sample_rate, draws, train=False)
    device = next(model.parameters()).device
    try:
        logits = model(vis[None].to(device), aud[None].to(device))[1][0].float()
    except IndexError as error:  # its tables of positions are shorter
        raise UserError(f"--fps {fps}: {error}; or give the rate that the selector was trained at") from error
    chances, advance = logits.softmax(0), transforms.audio_advance_sec
    assert window.offset_target is not None and window.offset_label is not None
    if transforms.asks == "synchronizability":
        truth = Guess(0.0, 0.0, window.offset_label, window.offset_target)
        return Prediction(truth, synchronizable=float(chances[1]), audio_advance_sec=advance)
    grid = ClassGrid(transforms.max_off_sec, transforms.classes).values
    guesses = [Guess(float(chances[c]), float(logits[c]), float(grid[c]), c) for c in range(transforms.classes)]
    ranked = sorted(guesses, key=lambda guess: (-guess.logit, guess.offset_class))
    return Prediction(guesses[window.offset_target], ranked, audio_advance_sec=advance)


def told(prediction: Prediction, at_most: int = 5) -> str:
    """The reference's own wording: probability, logit, offset and class, from the likeliest down."""
    truth = prediction.truth
    lines = [f"Ground Truth offset (sec): {truth.offset_sec:.2f} ({truth.offset_class})"]
    if prediction.audio_advance_sec:
        lines.append(
            f"Sound taken {prediction.audio_advance_sec:.3f} s later, as these weights want (--audio-advance-sec)"
        )
    lines += ["", "Prediction Results:"]
    if prediction.synchronizable is not None:
        lines.append(f"p={prediction.synchronizable:.4f}, can be synchronised")
    for guess in prediction.ranked[:at_most]:
        lines.append(f'p={guess.probability:.4f} ({guess.logit:.4f}), "{guess.offset_sec:.2f}" ({guess.offset_class})')
    return "\n".join(lines)
