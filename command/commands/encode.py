"""`javisc encode`: clips become latents and text states, once."""

from __future__ import annotations

import json
from pathlib import Path

import click

from javisc.commands.build_options import ENGINE_OPTIONS


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("datasets", metavar="DS…", nargs=-1, required=True)
@click.option(
    "--out", metavar="DS2", help="A dataset of their own that the latents go to.  [default: a field of each DS]"
)
@click.option(
    "--as",
    "name",
    metavar="NAME",
    help="The field of DS that the latents become; `javisc annotate DS --undo NAME` takes it back.  [default: the recipe's "
    "data.latents, else latents]",
)
@click.option(
    "--recipe", required=True, metavar="NAME", help="The recipe that will train from it: prior, audio, jav, …"
)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change one of the recipe's settings.")
@click.option(
    "--passes",
    default=1,
    show_default=True,
    help="Windows and draws of each clip; for the prior, as many variants of its negatives. Later passes are the fields NAME_p1, "
    "NAME_p2, …",
)
@click.option("--batches", default=64, show_default=True, help="Batches in a shard of --out, and in a worker's part.")
@click.option(
    "--workers", default=0, help="Processes.  [default: one for each GPU, else one; on a cluster as many as fit]"
)
@ENGINE_OPTIONS[0]
@ENGINE_OPTIONS[1]
def encode(
    datasets: tuple[str, ...],
    out: str | None,
    name: str | None,
    recipe: str,
    overrides: tuple[str, ...],
    passes: int,
    batches: int,
    workers: int,
    engine: str,
    address: str | None,
) -> None:
    """Store what the frozen networks make of the clips of datasets DS, for the stage that RECIPE trains.

    The latents become a field of DS, beside its shards, or with --out a dataset of their own. Killed, the same command goes on
    where it was; after a build has added clips, it makes theirs. Training from latents needs no frozen autoencoder.

    \b
        javisc encode DS --recipe prior --set encoders.imagebind=… --passes 2
        javisc train prior --data DS --run RUN data.latents=latents
        javisc encode DS --recipe prior --out DS2
        javisc train prior --data DS2 --run RUN
    """
    from javisc.trainer.use.encode import EncodeOptions

    options = EncodeOptions(passes, batches, workers, engine, address)
    paths = [str(Path(path)) if "://" not in path else path for path in datasets]

    def say(line: str) -> None:
        click.echo(line, err=True)

    if out is not None:
        from javisc.manifests.errors import UserError
        from javisc.trainer.use.encode import encode as run

        if name is not None:
            raise UserError("--as names a field of DS, and --out makes a dataset beside it: leave one of them out")
        rows = run(recipe, [f"data.paths={json.dumps(paths)}", *overrides], out, options, say=say)
        click.echo(f"{rows} rows in {out}")
        return
    from javisc.trainer.use.encode_field import encode_fields

    found = encode_fields(recipe, overrides, paths, name, options, say)
    for made in found:
        click.echo(f"field {made.name} of {made.dataset}: latents of {made.samples} of {made.of} clips")
    for made in found[:1]:  # later passes come with the first
        click.echo(f"train from it: javisc train {recipe} --data {' --data '.join(paths)} data.latents={made.name}")
