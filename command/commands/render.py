"""`javisc render`: smaller pictures beside a dataset's own, for reading."""

from __future__ import annotations

import click


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("dataset", metavar="DS")
@click.option(
    "--short-side", type=click.IntRange(16, 4096), required=True, metavar="N", help="Pixels of the shorter side, even."
)
@click.option("--crf", type=float, metavar="N", help="x264's quality: lower is finer.  [default: 12]")
@click.option(
    "--from",
    "made_from",
    type=click.Choice(["sources", "clips"]),
    help="Scale the films that DS was compiled of, or DS's clips, which were encoded once already.  [default: sources where they "
    "all are there]",
)
@click.option("--as", "name", metavar="NAME", help="The field's name.  [default: r and N, as r240]")
@click.option("--workers", type=click.IntRange(1, 1024), metavar="N", help="Worker processes; default: one per core.")
@click.option(
    "--engine",
    default="local",
    show_default=True,
    metavar="NAME",
    help="What runs the work: local, or ray for a cluster.",
)
@click.option("--address", metavar="HOST:PORT|auto|local", help="The cluster of --engine ray.")
def render(
    dataset: str,
    short_side: int,
    crf: float | None,
    made_from: str | None,
    name: str | None,
    workers: int | None,
    engine: str,
    address: str | None,
) -> None:
    """Add smaller pictures of DS's clips, encoded to be decoded fast, as the field DS/fields/rN; no shard of DS changes.

    The trainers then read the smallest pictures that lose nothing in a bucket. Frame numbers, grid and sound are the clips' own.

    \b
        javisc render DS --short-side 240
    """
    from javisc.compiler.fields.render import render as run
    from javisc.compiler.run.progress import size

    say = lambda line: click.echo(line, err=True)  # noqa: E731
    done = run(
        dataset,
        short_side,
        crf=crf,
        name=name,
        made_from=made_from,
        workers=workers,
        engine=engine,
        address=address,
        say=say,
    )
    click.echo(f"{dataset}: field {done.name}: {done.samples} of {done.of} samples, {size(done.bytes)}")
    if done.smaller:
        click.echo(f"{done.smaller} clips are as small already: the loader reads them from the base")
    if done.broken:
        click.echo(f"{done.broken} clips do not decode: see {dataset}/fields/{done.name}/rejected.parquet")
