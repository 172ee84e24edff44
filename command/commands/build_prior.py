"""`javisc build prior …`: what stage 2's negatives are made of, a subcommand for each of the three pools."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from javisc.cli import LazyGroup
from javisc.commands.build_options import ENGINE_OPTIONS
from javisc.manifests.extras import need
from javisc.trainer.use.prior.settings import SETTINGS, Setting, given

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
#: How the work is done, whatever the stage.
_RUN = (
    click.option("--out", required=True, metavar="POOL", help="Where the pool goes."),
    click.option("--device", type=click.Choice(["auto", "cuda", "cpu"]), default="auto", show_default=True),
    click.option(
        "--workers", type=click.IntRange(1, 1024),
        help="Processes.  [default: one for each GPU; for each core without networks; else one]",
    ),
    click.option("--part-size", type=click.IntRange(1, 100_000), default=64, show_default=True, help="Inputs of a shard."),
    *ENGINE_OPTIONS,
)  # fmt: skip


def _option(of: Setting) -> Callable[[F], F]:
    """A setting as an option. What is not given stays None: the stage has its default."""
    told = of.help + (f"  [default: {of.default}]" if of.default is not None and of.kind is not bool else "")
    if of.kind is bool:
        return click.option(of.flag, of.name, is_flag=True, help=told)
    kind: Any = of.kind
    if isinstance(kind, tuple):
        kind = click.Choice(kind)
    elif kind is int:
        kind = click.IntRange(of.least)
    return click.option(of.flag, of.name, type=kind, metavar=of.metavar, multiple=of.many, help=told)


def _stage(name: str) -> Callable[[F], F]:
    def with_options(command: F) -> F:
        for option in reversed([*map(_option, SETTINGS[name]), *_RUN]):
            command = option(command)
        return command

    return with_options


def _run(stage: str, settings: dict[str, Any], said: dict[str, Any]) -> Any:
    need("javisc build prior", "scipy")  # its extra brings torch, too
    from javisc.trainer.use.prior.run import RunOptions, run

    options = RunOptions(**{name: said[name] for name in ("part_size", "workers", "device", "engine", "address")})
    made = run(stage, {**settings, **given(stage, said)}, said["out"], options, lambda line: click.echo(line, err=True))
    for reason, count in sorted(made.rejected.items()):
        click.echo(f"{count:>12} refused: {reason}")
    out = said["out"]
    click.echo(f"{made.samples:>12} samples in {out}" + (f", see {out}/rejected.parquet" if made.rejected else ""))
    return made


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("dataset", metavar="DS")
@_stage("unpaired")
@click.option("--view", metavar="VIEW", help="Also write DS's rows, with unpaired_audio_path where there is a sound.")
def unpaired(dataset: str, view: str | None, **said: Any) -> None:
    """Make the pool of unpaired sounds: for each clip of DS one that was made of its caption alone.

    Killed, the same command goes on where it was. Train with `pools.unpaired=POOL`.

    \b
        javisc build prior unpaired DS --out UNPAIRED --baseline other
        javisc build prior unpaired DS --out UNPAIRED --generator audioldm2
    """
    if view is not None:
        from javisc.manifests.errors import UserError
        from javisc.manifests.io import absolute
        from javisc.manifests.outputs import check_output

        if absolute(view.rstrip("/")) == absolute(said["out"].rstrip("/")):
            raise UserError(f"--view {view} is --out, where the pool goes: give the view another folder")
        check_output(view, force=True)
    _run("unpaired", {"dataset": dataset}, said)
    if view is not None:
        from javisc.trainer.use.prior.unpaired import name_sounds

        click.echo(f"{name_sounds(dataset, said['out'], view):>12} clips of {view} name one")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("dataset", metavar="DS")
@_stage("separate")
def separate(dataset: str, **said: Any) -> None:
    """Make the pool of separated sounds: the sources of each clip of DS, and the rest; together they are the clip's sound.

    Killed, the same command goes on where it was. Train with `pools.sources=POOL`.

    \b
        javisc build prior separate DS --out SOURCES --baseline hpss
        javisc build prior separate DS --out SOURCES --separator audiosep --descriptions sounds.csv
    """
    _run("separate", {"dataset": dataset}, said)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("raw", nargs=-1, metavar="RAW…", required=True)
@_stage("masklets")
@click.option(
    "--export", "exported", metavar="DIR", help="Also write JavisDiT's three files of each, and pool_list.txt."
)
def masklets(raw: tuple[str, ...], exported: str | None, **said: Any) -> None:
    """Make the pool of masklets: objects of the videos below RAW, cut out at 24 frames a second: those that SA-V annotates,
    or with --text those that a network finds.

    Killed, the same command goes on where it was. Train with `pools.masklets=POOL`.

    \b
        javisc build prior masklets SA-V --out MASKLETS
        javisc build prior masklets SA-V --out MASKLETS --segmenter sam2.1-hiera-large
        javisc build prior masklets FILMS --out MASKLETS --segmenter sam3 --text "a dog" --text "a car"
    """
    from javisc.trainer.use.prior.objects.export import check_folder, export

    if exported is not None:
        check_folder(exported)
    _run("masklets", {"raw": list(raw)}, said)
    if exported is not None:
        count = export(said["out"], exported)
        click.echo(f"{count:>12} masklets in {exported}/crops, listed in {exported}/pool_list.txt")
