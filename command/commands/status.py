"""`javisc status`: how far a build is."""

from __future__ import annotations

import time

import click


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("ds", metavar="DS")
@click.option(
    "--parts", type=click.IntRange(1), metavar="N", help="Say which of the parts of `--part I/N` have to run again."
)
def status(ds: str, parts: int | None) -> int:
    """Say what of a build's plan is published, running and missing, at what rate, and what to run again.

    DS: the folder or URL that `javisc build` was given as --out. Builds that run now are not disturbed.
    """
    from javisc.compiler.check.status import ranges
    from javisc.compiler.check.status import status as look
    from javisc.compiler.run.progress import size, span

    found = look(ds)
    click.echo(
        f"{ds}: {found.published} of {found.shards} shards are published, {found.inputs_done} of {found.inputs} inputs"
    )
    reasons = ", ".join(f"{count} {reason}" for reason, count in found.rejected.items())
    click.echo(
        f"{found.samples} samples, {size(found.bytes)}; {sum(found.rejected.values())} inputs rejected"
        + f" ({reasons})" * bool(reasons)
    )
    for one in found.running:
        click.echo(
            f"running: {one.what}, process {one.pid} on {one.host}, for {span(time.time() - one.since)} "
            f"(last sign {span(max(0.0, time.time() - one.seen))} ago)"
        )
    if found.lost:
        shown = "; ".join(found.lost[shard] for shard in sorted(found.lost)[:3]) + "; …" * (len(found.lost) > 3)
        click.echo(
            f"{len(found.lost)} published shards are lost or damaged, and made again with the missing ones: {shown}"
        )
    if found.missing:
        click.echo(f"missing shards: {ranges(found.missing)}")
        if parts:
            click.echo(
                f"parts to run again, of {parts}: {ranges(found.parts(parts)) or 'none, the missing ones run now'}"
            )
        if found.rate and found.seconds_left is not None:
            click.echo(f"{found.rate * 60:.1f} inputs a minute of late: {span(found.seconds_left)} left at this rate")
    elif not found.merged:
        click.echo("every shard is published: the same command with --finish merges them")
    return 0
