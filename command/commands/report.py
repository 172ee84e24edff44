"""`javisc report`: a page to look at."""

from __future__ import annotations

import click


@click.command()
@click.argument("source", metavar="DS|TABLE")
@click.option("--out", metavar="DIR", help="Where to write it.  [default: DS/report]")
@click.option(
    "--samples", type=click.IntRange(0, 200), default=12, show_default=True, help="How many samples to show and play."
)
def report(source: str, out: str | None, samples: int) -> None:
    """Write a static page about a dataset: counts, distributions, rejected inputs, and samples to play.

    The page opens from disk and from a web server; it needs nothing but the files in its folder.
    """
    from javisc.compiler.report import report as write

    done = write(source, out, samples=samples)
    broken = f", {done.broken} of which cannot be shown" if done.broken else ""
    click.echo(f"{done.page}: {done.samples} samples{broken}")
