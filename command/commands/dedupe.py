"""`javisc dedupe`: samples that are there twice, or nearly."""

from __future__ import annotations

import click


@click.command()
@click.argument("inputs", metavar="DS…", nargs=-1, required=True)
@click.option("--out", help="The view to write without the repeats: a new folder, or one table if it ends in .parquet.")
@click.option("--near", metavar="DIR", help="Find near-duplicates too; DIR keeps the fingerprints for the next run.")
@click.option(
    "--match",
    type=click.Choice(["either", "both", "picture", "sound"]),
    default="either",
    show_default=True,
    help="What must be alike for near-duplicates.",
)
@click.option(
    "--rule",
    type=click.Choice(["one", "leaks"]),
    default="one",
    show_default=True,
    help="one: keep one of a group, of test or val if it has any. leaks: drop only training rows that repeat test or val.",
)
@click.option("--groups", metavar="FILE.parquet", help="Write who belongs together and who stays.")
@click.option(
    "--workers", type=click.IntRange(1, 1024), help="Processes that make fingerprints.  [default: one per core]"
)
@click.option("--relative", is_flag=True, help="Name the datasets relative to the view, so that all can move together.")
@click.option("--force", is_flag=True, help="Replace a view or table that is there.")
def dedupe(
    inputs: tuple[str, ...],
    out: str | None,
    near: str | None,
    match: str,
    rule: str,
    groups: str | None,
    workers: int | None,
    relative: bool,
    force: bool,
) -> None:
    """Find samples made of the same bytes and, with --near, of the same pictures or sounds, within and across splits.

    Near-duplicates are found by perceptual hashes of frames and by audio fingerprints, through buckets: never all pairs.
    """
    from javisc.compiler.dedupe.repeats import dedupe as run
    from javisc.manifests.outputs import check_output

    if out:
        check_output(out, force=force)
    done = run(inputs, out, near=near, match=match, rule=rule, groups=groups, workers=workers, relative=relative)
    for line in done.lines:
        click.echo(line)
    click.echo(f"{done.kept} of {done.rows} samples kept" + (f" → {out}" if out else " (nothing written: say --out)"))
