"""`javisc verify`: read a dataset again, down to the last frame."""

from __future__ import annotations

import time

import click


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("dataset", metavar="DS")
@click.option("--workers", type=click.IntRange(1, 1024), metavar="N", help="Worker processes; default: one per core.")
def verify(dataset: str, workers: int | None) -> int:
    """Read all of DS again and print a line for every defect; exit with 1 if there is one.

    Digests, index, manifest against shards, every frame's time and kind, colour tags, the sound's length; and that webdataset
    and, where installed, DALI open the shards.
    """
    from javisc.compiler.check.dataset import verify as check
    from javisc.compiler.run.progress import size, span

    began = time.monotonic()
    found = check(dataset, workers=workers, report=click.echo)
    what = f"{found.samples} samples in {found.shards} shards, {size(found.bytes)}, {span(time.monotonic() - began)}"
    click.echo(f"{dataset}: {len(found.defects)} defects in {what}" if found.defects else f"{dataset}: sound: {what}")
    return 1 if found.defects else 0
