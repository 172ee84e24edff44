"""`javisc sample`: prompts become sounding videos."""

from __future__ import annotations

from pathlib import Path

import click

_FOLDER = click.Path(path_type=Path)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("prompt", nargs=-1)
@click.option("--prompts", "prompt_file", type=_FOLDER, metavar="FILE", help="A text file with one prompt a line.")
@click.option("--model", required=True, type=_FOLDER, metavar="DIR", help="The joint DiT: config.json and its weights.")
@click.option("--prior", type=_FOLDER, metavar="PATH", help="The prior; not needed by an audio-only model.")
@click.option("--t5", type=_FOLDER, metavar="DIR", help="T5 encoder (DeepFloyd/t5-v1_1-xxl).")
@click.option(
    "--imagebind", type=_FOLDER, metavar="PATH", help="ImageBind, unless the prior's file holds the text tower."
)
@click.option("--clip-tokenizer", type=_FOLDER, metavar="PATH", help="A CLIP tokenizer's folder or its merges file.")
@click.option("--video-vae", type=_FOLDER, metavar="PATH", help="OpenSora-VAE v1.2, or a diffusers video autoencoder.")
@click.option("--audio-vae", type=_FOLDER, metavar="DIR", help="cvssp/audioldm2's vae folder.")
@click.option("--vocoder", type=_FOLDER, metavar="DIR", help="cvssp/audioldm2's vocoder folder.")
@click.option(
    "--out", type=_FOLDER, default=Path("samples"), show_default=True, help="Where the clips and index.html go."
)
@click.option(
    "--resolution", default="", help="144p to 4k, or HEIGHTxWIDTH.  [default: 240p; 144p for an audio-only model]"
)
@click.option("--aspect-ratio", default="9:16", show_default=True, help="Height to width.")
@click.option("--num-frames", default="4s", show_default=True, help="A number, or 2s, 4s, 8s, 16s.")
@click.option("--fps", default=24.0, show_default=True)
@click.option("--steps", default=30, show_default=True)
@click.option("--guidance", default=7.0, show_default=True)
@click.option("--seed", default=42, show_default=True)
@click.option("--score", default=6.5, show_default=True, help="The aesthetic score asked for; 0 for none.")
@click.option(
    "--condition",
    default="",
    metavar="WHAT",
    help="What of every clip is given by --reference: image (its first picture), video (all pictures: make the sound), "
    "sound (all sound: make the pictures), sound-and-image; or groups of seven numbers, see below.",
)
@click.option(
    "--reference",
    "references",
    type=_FOLDER,
    multiple=True,
    metavar="FILE",
    help="A picture, film or sound; several are counted from 0.",
)
@click.option(
    "--edit-masks",
    type=click.Choice(["clean", "reference"]),
    default="clean",
    show_default=True,
    help="How a part that is edited (ratio between 0 and 1) moves: the noised part, or the published code's un-noised one.",
)
@click.option("--dtype", type=click.Choice(["bf16", "fp16", "fp32"]), default="bf16", show_default=True)
@click.option("--device", default="", help="cuda:0, cpu, …  [default: the GPU of this process, else cpu]")
@click.option(
    "--prior-attention",
    type=click.Choice(["batch", "sample"]),
    help="Whether rows of a batch see each other's prior, as the official weights do.  [default: what config.json says]",
)
def sample(
    prompt: tuple[str, ...], model: Path, prompt_file: Path | None, out: Path, resolution: str, aspect_ratio: str,
    num_frames: str, fps: float, steps: int, guidance: float, seed: int, score: float, dtype: str, device: str,
    prior_attention: str | None, condition: str, references: tuple[Path, ...], edit_masks: str,
    **folders: Path | None,
) -> None:  # fmt: skip
    """Generate a sounding video for each PROMPT, from official or own checkpoints.

    One process, or a share of the prompts each:

    \b
        javisc sample "a dog barks at the sea" --model jav --prior prior --t5 t5 …
        torchrun --nproc-per-node 8 -m -- javisc sample --prompts prompts.txt --model jav …

    Parts of a clip may be given, the rest is made to fit:

    \b
        javisc sample "waves" --condition image --reference beach.png …
        javisc sample "a door" --condition 0,0,-5,0,5,0,0 --reference before.mp4 …

    A condition's groups are separated by ";", each of them loop, reference, its first frame, the clip's first frame, length, edit
    ratio, modality. Frames are latent ones (5 are 17 frames of video; a start is moved down to a multiple of 5, a negative one
    counts from the end). Edit ratio 0 keeps what is given, 1 makes it anew, between them it is changed. Modality: 0 both,
    1 video, 2 sound, 3 all sound and these pictures.
    """
    from javisc.manifests.errors import UserError
    from javisc.trainer.models.encoders import EncodersConfig
    from javisc.trainer.objectives.sampling import SamplerConfig
    from javisc.trainer.use.generate.pipeline import SampleOptions
    from javisc.trainer.use.generate.run import read_prompts, sample_prompts

    prompts = [*prompt, *(read_prompts(prompt_file) if prompt_file else [])]
    if not prompts:
        raise UserError('nothing to sample; give "a prompt" or --prompts FILE')
    options = SampleOptions(
        resolution=resolution,
        aspect_ratio=aspect_ratio,
        num_frames=num_frames,
        fps=fps,
        seed=seed,
        score=score or None,
        sampler=SamplerConfig(num_sampling_steps=steps, cfg_scale=guidance, edit_masks=edit_masks),
    )
    from rich.progress import Progress

    with Progress(transient=True) as bar:
        clip, step = bar.add_task("clips", total=None), bar.add_task("steps", total=steps)

        def told(done: int, now: int, total: int) -> None:
            if now:
                bar.update(step, completed=now)
            else:
                bar.update(clip, completed=done, total=total)

        written = sample_prompts(
            model,
            EncodersConfig(precision=dtype, **{name: str(path or "") for name, path in folders.items()}),  # type: ignore[arg-type]
            prompts,
            out,
            options,
            device=device,
            prior_attention=prior_attention,
            condition=condition,
            references=references,
            progress=told,
        )
    click.echo(f"{len(written)} clips in {out}; look at {out / 'index.html'}")
