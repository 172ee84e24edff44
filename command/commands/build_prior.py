"""`javisc build prior …`: what stage 2's negatives are made of, a subcommand for each of the three pools."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from javisc.cli import LazyGroup
from javisc.manifests.extras import need

F = TypeVar("F", bound=Callable[..., Any])
_HERE = "javisc.commands.build_prior"

prior = LazyGroup(
    {
        "unpaired": (f"{_HERE}:unpaired", "a sound for each caption, unrelated to its clip"),
        "separate": (f"{_HERE}:separate", "each clip's sound taken apart into its sources"),
        "masklets": (f"{_HERE}:masklets", "objects cut out of videos, with exact masks"),
    },
    name="prior",
    help="Make the prior's raw material offline: three pools that `javisc train prior` draws its negatives from.",
)


def _common(command: F) -> F:
    """The options that every stage has."""
    for option in reversed((
        click.option("--out", required=True, metavar="POOL", help="Where the pool goes."),
        click.option("--seed", default=0, show_default=True, help="Of whatever is drawn, with each clip's key."),
        click.option("--device", type=click.Choice(["auto", "cuda", "cpu"]), default="auto", show_default=True),
        click.option(
            "--workers", type=click.IntRange(1, 1024), help="Processes.  [default: one per GPU; a core without networks]"
        ),
        click.option(
            "--part-size", type=click.IntRange(1, 100_000), default=64, show_default=True, help="Inputs of a shard."
        ),
    )):  # fmt: skip
        command = option(command)
    return command


def _run(stage: str, settings: dict[str, Any], out: str, device: str, workers: int | None, part_size: int) -> Any:
    need("javisc build prior", "scipy")  # its extra brings torch, too
    from javisc.trainer.use.prior.run import RunOptions, run

    made = run(stage, settings, out, RunOptions(part_size, workers, device), lambda line: click.echo(line, err=True))
    for reason, count in sorted(made.rejected.items()):
        click.echo(f"{count:>12} refused: {reason}")
    click.echo(f"{made.samples:>12} samples in {out}" + (f", see {out}/rejected.parquet" if made.rejected else ""))
    return made


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("dataset", metavar="DS")
@_common
@click.option("--generator", metavar="PATH", help="A folder of diffusers' with a text-to-sound pipeline.")
@click.option(
    "--baseline",
    type=click.Choice(["other", "phase"]),
    help="Without weights: the sound of a clip with another caption, or the clip's own spectrum with random phases.",
)
@click.option("--view", metavar="VIEW", help="Also write DS's rows, with unpaired_audio_path where there is a sound.")
@click.option("--match-duration", is_flag=True, help="Cut sounds to their clip's length.")
@click.option("--steps", default=50, show_default=True, help="Steps of denoising.")
@click.option("--guidance", type=float, help="Scale of guidance.  [default: the pipeline's own]")
@click.option("--negative", default="", metavar="TEXT", help="What the sound shall not be.")
@click.option("--batch-size", type=click.IntRange(1, 4096), default=8, show_default=True, help="Captions of a batch.")
@click.option(
    "--precision", type=click.Choice(["auto", "fp32", "fp16", "bf16"]), default="auto", show_default=True,
    help="auto: bf16 on a GPU, fp32 on a CPU.",
)  # fmt: skip
def unpaired(dataset: str, **given: Any) -> None:
    """Make the pool of unpaired sounds: for each clip of DS one that was made of its caption alone.

    Killed, the same command goes on where it was. Train with `pools.unpaired=POOL`.

    \b
        javisc build prior unpaired DS --out UNPAIRED --baseline other
        javisc build prior unpaired DS --out UNPAIRED --generator audioldm2
    """
    settings = {"dataset": dataset, "seed": given["seed"], "match_duration": given["match_duration"]}
    if given["baseline"] is not None:
        settings["baseline"] = given["baseline"]
    if given["generator"] is not None:
        settings["generator"] = given["generator"]
        settings |= {name: given[name] for name in ("steps", "guidance", "negative", "batch_size", "precision")}
    if given["view"] is not None:
        from javisc.manifests.io import check_output

        check_output(given["view"], force=True)
    _run("unpaired", settings, given["out"], given["device"], given["workers"], given["part_size"])
    if given["view"] is not None:
        from javisc.trainer.use.prior.unpaired import name_sounds

        count = name_sounds(dataset, given["out"], given["view"])
        click.echo(f"{count:>12} clips of {given['view']} name one")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("dataset", metavar="DS")
@_common
@click.option("--separator", metavar="PATH", help="A folder with AudioSep's checkpoint and CLAP's text tower.")
@click.option(
    "--baseline",
    type=click.Choice(["hpss", "nmf"]),
    help="Without weights: harmonic and percussive parts, or four spectra that the sound is made of.",
)
@click.option(
    "--descriptions",
    metavar="TABLE",
    help="What to look for in each clip: a table, or JSON {name: [descriptions]}.  [default: phrases of its caption]",
)
def separate(dataset: str, **given: Any) -> None:
    """Make the pool of separated sounds: the sources of each clip of DS, and the rest; together they are the clip's sound.

    Killed, the same command goes on where it was. Train with `pools.sources=POOL`.

    \b
        javisc build prior separate DS --out SOURCES --baseline hpss
        javisc build prior separate DS --out SOURCES --separator audiosep --descriptions sounds.csv
    """
    settings = {"dataset": dataset, "seed": given["seed"]}
    settings |= {name: given[name] for name in ("baseline", "separator", "descriptions") if given[name] is not None}
    _run("separate", settings, given["out"], given["device"], given["workers"], given["part_size"])


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("raw", nargs=-1, metavar="RAW…", required=True)
@_common
@click.option(
    "--annotations", "annotated", type=click.Choice(["first", "manual", "auto", "both"]), default="first", show_default=True,
    help="V_manual.json, V_auto.json, both, or the first of them that is there.",
)  # fmt: skip
@click.option(
    "--segmenter", metavar="PATH", help="A folder of transformers' Sam2Video.  [default: masks are interpolated]"
)
@click.option("--export", metavar="DIR", help="Also write JavisDiT's three files of each, and pool_list.txt.")
def masklets(raw: tuple[str, ...], **given: Any) -> None:
    """Make the pool of masklets: the objects that SA-V annotates in the videos below RAW, cut out at 24 frames a second.

    Killed, the same command goes on where it was. Train with `pools.masklets=POOL`.

    \b
        javisc build prior masklets SA-V --out MASKLETS
        javisc build prior masklets SA-V --out MASKLETS --segmenter sam2.1-hiera-large
    """
    from javisc.trainer.use.prior.objects.export import check_folder, export

    if given["export"] is not None:
        check_folder(given["export"])
    settings: dict[str, Any] = {"raw": list(raw), "annotated": given["annotated"], "seed": given["seed"]}
    if given["segmenter"] is not None:
        settings["segmenter"] = given["segmenter"]
    _run("masklets", settings, given["out"], given["device"], given["workers"], given["part_size"])
    if given["export"] is not None:
        count = export(given["out"], given["export"])
        click.echo(f"{count:>12} masklets in {given['export']}/crops, listed in {given['export']}/pool_list.txt")
