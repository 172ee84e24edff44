"""`javisc encode`: clips become latents and text states, once."""

from __future__ import annotations

import json
from pathlib import Path

import click

from javisc.commands.build_options import ENGINE_OPTIONS


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("datasets", metavar="DS…", nargs=-1, required=True)
@click.option("--out", required=True, metavar="DS2", help="Where the dataset of latents goes.")
@click.option(
    "--recipe", required=True, metavar="NAME", help="The recipe that will train from it: prior, audio, jav, …"
)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change one of the recipe's settings.")
@click.option(
    "--passes",
    default=1,
    show_default=True,
    help="Windows and draws of each clip; for the prior, as many variants of its negatives.",
)
@click.option("--batches", default=64, show_default=True, help="Batches in a shard.")
@click.option(
    "--workers", default=0, help="Processes.  [default: one for each GPU, else one; on a cluster as many as fit]"
)
@ENGINE_OPTIONS[0]
@ENGINE_OPTIONS[1]
def encode(
    datasets: tuple[str, ...],
    out: str,
    recipe: str,
    overrides: tuple[str, ...],
    passes: int,
    batches: int,
    workers: int,
    engine: str,
    address: str | None,
) -> None:
    """Store what the frozen networks make of the clips of datasets DS, for the stage that RECIPE trains.

    Killed, the same command goes on where it was. Afterwards `javisc train RECIPE --data DS2` needs no frozen autoencoder.

    \b
        javisc encode DS --recipe prior --out DS2 --set encoders.imagebind=… --passes 2
    """
    from javisc.trainer.use.encode import EncodeOptions
    from javisc.trainer.use.encode import encode as run

    paths = [str(Path(path)) if "://" not in path else path for path in datasets]
    rows = run(
        recipe,
        [f"data.paths={json.dumps(paths)}", *overrides],
        out,
        EncodeOptions(passes, batches, workers, engine, address),
        say=lambda line: click.echo(line, err=True),
    )
    click.echo(f"{rows} rows in {out}")
