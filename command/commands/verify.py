"""`javisc verify`: read a dataset again, down to the last frame."""

from __future__ import annotations

import os
import time

import click

from javisc.commands.build_options import ENGINE_OPTIONS


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("dataset", metavar="DS")
@click.option(
    "--level",
    type=click.Choice(("sizes", "digests", "structure", "frames")),
    default="frames",
    show_default=True,
    help="How deep: names and sizes; and SHA-256 of every file; and every member's place, CRC-32 and record, the index and what "
    "webdataset and DALI read; and every frame and sample decoded.",
)
@click.option(
    "--sample",
    type=float,
    metavar="SHARE",
    help="Read only a drawn share of the samples (of the shards, at --level digests), as 0.01, and say what may be missed.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the draw.")
@click.option(
    "--part", metavar="I/N|auto", help="Check only every N-th shard, from the I-th of 0 to N-1; part 0 has the tables."
)
@click.option("--workers", type=click.IntRange(1, 1024), metavar="N", help="Worker processes; default: one per core.")
@ENGINE_OPTIONS[0]
@ENGINE_OPTIONS[1]
def verify(
    dataset: str,
    level: str,
    sample: float | None,
    seed: int,
    part: str | None,
    workers: int | None,
    engine: str,
    address: str | None,
) -> int:
    """Read DS again and print a line for every defect; exit with 1 if there is one.

    Digests, index, manifest against shards, every frame's time and kind, colour tags, the sound's length; and that webdataset
    and, where installed, DALI open the shards. The result is kept in DS/.verify; run an interrupted check again and it goes on.
    """
    from javisc.compiler.check.dataset import Checks
    from javisc.compiler.check.dataset import verify as check
    from javisc.compiler.plan.settings import part as parse_part
    from javisc.compiler.run.progress import size, span

    began = time.monotonic()
    chosen = Checks(
        level,
        sample,
        seed,
        parse_part(part, os.environ) if part is not None else None,
        workers,
        engine,
        address,
        keep=True,
    )
    found = check(dataset, report=click.echo, checks=chosen)
    what = f"{found.samples} samples in {found.shards} shards, {size(found.bytes)}, {span(time.monotonic() - began)}"
    if part:
        what += f", part {part}"
    if found.resumed:
        click.echo(f"{found.resumed} shards were found sound by a check that was interrupted, and were not read again")
    click.echo(f"{dataset}: {len(found.defects)} defects in {what}" if found.defects else f"{dataset}: sound: {what}")
    if found.drawn is not None:
        unit = "shards" if level == "digests" else "samples"
        share = found.missed / found.whole if found.missed is not None and found.whole else 0.0
        click.echo(
            f"{found.drawn} of {found.whole} {unit} were read, {found.bad} are damaged: with 95 % confidence at most "
            f"{found.missed} ({share:.2%}) of all are"
        )
    if found.note:
        click.echo(found.note, err=True)
    return 1 if found.defects else 0
