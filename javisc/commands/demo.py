"""`javisc demo`: everything at once, on clips whose sync is known."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), default="demo", show_default=True, metavar="DIR"
)
@click.option("--clips", type=click.IntRange(1, 1000), default=8, show_default=True, metavar="N", help="Clips to make.")
@click.option(
    "--seconds", type=click.FloatRange(1, 60), default=4.0, show_default=True, metavar="S", help="Length of each."
)
@click.option("--workers", type=click.IntRange(1, 1024), metavar="N", help="Worker processes; default: one per core.")
def demo(out: Path, clips: int, seconds: float, workers: int | None) -> int:
    """Make bouncing balls that click when they hit, compile them into a dataset, verify it and measure its sync."""
    from javisc.compiler.demo import demo as run

    made = run(out, clips=clips, seconds=seconds, workers=workers, say=click.echo)
    if made.errors:
        late = sorted(abs(error) * 1000 for error in made.errors)
        click.echo(
            f"measured: {len(late)} clicks, {late[len(late) // 2]:.1f} ms from their hits (median), {late[-1]:.1f} at most, "
            "the raw clips' own AAC included"
        )
    click.echo(f"\nraw clips   {made.raw}\ndataset     {made.dataset}")
    click.echo(f"look        {made.page} (in a browser), or tar tvf {made.dataset}/shards/000000.tar")
    click.echo(f"again       javisc build jav {made.raw} --out {made.dataset} --split train=0.8,val=0.2")
    return 1 if made.verified.defects else 0
