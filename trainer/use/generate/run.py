"""A sampling run: models from local folders, prompts from a list, clips and a page of them in a folder."""

from __future__ import annotations

import html
import json
import os
import urllib.parse
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path

import torch

from javisc.manifests.errors import UserError
from javisc.manifests.files import published
from javisc.trainer.engine.distributed import PRECISIONS
from javisc.trainer.engine.weights import run_weights
from javisc.trainer.models.dit import checkpoint
from javisc.trainer.models.encoders import Encoders, EncodersConfig, recorded
from javisc.trainer.use.generate.conditions import parse_conditions
from javisc.trainer.use.generate.output import write_clip
from javisc.trainer.use.generate.pipeline import Generated, Models, Prompt, SampleOptions, clip_size, generate
from javisc.trainer.use.generate.references import reference_latents


def load_models(
    model: Path, config: EncodersConfig, device: torch.device, prior_attention: str | None = None
) -> Models:
    """Every network a run needs, frozen, on `device`, in the precision of `config`.

    Encoders that it does not name are those the model's own recipe tells of. Raises UserError in one line for the first that is
    missing.
    """
    model = run_weights(model)
    known = recorded(model)
    places = {f.name: getattr(config, f.name) or getattr(known, f.name) for f in fields(EncodersConfig)}
    options = {} if prior_attention is None else {"prior_attention": prior_attention}
    dit = checkpoint.load(model, dtype=PRECISIONS[config.precision], **options).to(device).eval().requires_grad_(False)
    encoders = Encoders(EncodersConfig(**places), device, dit.config.model_max_length, decode=True)
    prior = prior_text = video = None
    if dit.config.has_prior:
        if not (encoders.config.prior or encoders.config.tiny):
            raise UserError("the model has prior blocks; give the prior's folder with --prior")
        prior, prior_text = encoders.prior, encoders.prior_text
    if not dit.config.audio_only:
        video = encoders.video
    return Models(dit, encoders.text, encoders.audio, prior, prior_text, video)


def read_prompts(path: Path) -> list[str]:
    """One prompt a line; empty lines are left out."""
    if not path.is_file():
        raise UserError(f"{path} is not there; give a text file with one prompt a line")
    try:
        prompts = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text; give one prompt a line") from None
    if not prompts:
        raise UserError(f"{path} holds no prompts; give one a line")
    return prompts


def place_of_this_process() -> tuple[int, int]:
    """(rank, processes) as torchrun tells them; (0, 1) alone."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def sample_prompts(
    model: Path,
    encoders: EncodersConfig,
    prompts: list[str],
    out: Path,
    options: SampleOptions,
    *,
    device: str = "",
    prior_attention: str | None = None,
    condition: str = "",
    references: Sequence[Path] = (),
    progress: Callable[[int, int, int], None] = lambda done, step, steps: None,
) -> list[Path]:
    """Write a clip per prompt and `index.html`; return this process's files.

    Started by torchrun, every process makes a contiguous share; a clip does not depend on the shares. Clips whose file is there
    already are left alone, so an interrupted run continues. `condition` (see `conditions`) says which parts of every clip are
    given, by the files `references`.
    """
    rank, processes = place_of_this_process()
    where = torch.device(
        device or (f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu")
    )
    models = load_models(model, encoders, where, prior_attention)
    ending = ".wav" if models.dit.config.audio_only else ".mp4"
    if condition and not references:
        raise UserError("--condition says what is given of a clip: give the file too, with --reference FILE")
    parse_conditions(condition)
    size = clip_size(models, options)
    given = tuple(
        reference_latents(path, models.video, models.audio, options.fps, size.height, size.width, options.seed, where)
        for path in references
    )
    names = [out / f"{index:05d}{ending}" for index in range(len(prompts))]
    if rank == 0:
        _write_page(out, prompts, [name.name for name in names], options)
    edges = [len(prompts) * part // processes for part in (rank, rank + 1)]
    written = []
    for index in range(*edges):
        if not names[index].exists():
            (clip,) = generate(
                models, [Prompt(prompts[index], condition, given)], options, first_index=index, progress=progress
            )
            _write(clip, names[index])
        written.append(names[index])
        progress(len(written), 0, edges[1] - edges[0])
    return written


def _write(clip: Generated, path: Path) -> None:
    written = write_clip(clip, path)
    assert written == path


_STYLE = """
:root { color-scheme: light dark; font-family: system-ui, sans-serif }
body { margin: 1.5rem auto; max-width: 80rem; padding: 0 1rem }
main { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(18rem, 1fr)) }
figure { margin: 0; padding: .5rem; border: 1px solid color-mix(in srgb, currentColor 25%, transparent); border-radius: .5rem }
video, audio { width: 100%; display: block; border-radius: .25rem }
figcaption { margin-top: .5rem; overflow-wrap: anywhere }
"""


def _write_page(out: Path, prompts: list[str], names: list[str], options: SampleOptions) -> None:
    """`index.html` beside the clips: a player and the prompt of each. Prompts are text, never mark-up."""
    figures = []
    for name, prompt in zip(names, prompts, strict=True):
        tag = "audio" if name.endswith(".wav") else "video"
        link = urllib.parse.quote(name)
        figures.append(
            f'<figure><{tag} controls preload="metadata" src="{link}"></{tag}>'
            f"<figcaption>{html.escape(prompt)}</figcaption></figure>"
        )
    size = f"{options.aspect_ratio}, {options.num_frames} frames, {options.sampler.num_sampling_steps} steps, seed {options.seed}"
    page = (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{len(names)} clips</title><style>{_STYLE}</style><h1>{len(names)} clips</h1><p>{html.escape(size)}</p>"
        f"<main>{''.join(figures)}</main></html>\n"
    )
    with published(out / "index.html") as temporary:
        temporary.write_text(page, encoding="utf-8")
    with published(out / "prompts.json") as temporary:
        temporary.write_text(json.dumps(dict(zip(names, prompts, strict=True)), indent=1) + "\n", encoding="utf-8")
