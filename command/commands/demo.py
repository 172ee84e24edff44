"""`javisc demo`: everything at once, on clips whose sync is known."""

from __future__ import annotations

from pathlib import Path

import click

#: Clips to learn from, clips to test on, and steps (None: the recipe's own) of each length of training.
LENGTHS = {"short": (264, 48, 500), "full": (528, 120, None)}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), default="demo", show_default=True, metavar="DIR"
)
@click.option("--clips", type=click.IntRange(1, 1000), default=8, show_default=True, metavar="N", help="Clips to make.")
@click.option(
    "--seconds", type=click.FloatRange(1, 60), default=4.0, show_default=True, metavar="S", help="Length of each."
)
@click.option("--workers", type=click.IntRange(1, 1024), metavar="N", help="Worker processes; default: one per core.")
@click.option(
    "--train",
    "length",
    type=click.Choice(["short", "full", "no"]),
    default="short",
    show_default=True,
    help="Train a sync selector from scratch on clips of its own: two minutes, longer on twice the clips, or no.",
)
@click.option("--seed", type=click.IntRange(0, 1 << 30), default=1337, show_default=True, help="Of the training.")
def demo(out: Path, clips: int, seconds: float, workers: int | None, length: str, seed: int) -> int:
    """Make clips that click when something hits, compile, verify and measure them; then train a selector that tells sync."""
    from javisc.compiler.demo.jav import demo as run

    made = run(out, clips=clips, seconds=seconds, workers=workers, say=click.echo)
    if made.errors:
        late = sorted(abs(error) * 1000 for error in made.errors)
        click.echo(
            f"measured: {len(late)} clicks, {late[len(late) // 2]:.1f} ms from their hits (median), {late[-1]:.1f} at most, "
            "the raw clips' own AAC included"
        )
    click.echo(f"\nraw clips   {made.raw}\ndataset     {made.dataset}")
    click.echo(f"look        {made.page} (in a browser), or tar tvf {made.dataset}/shards/000000.tar")
    click.echo(f"again       javisc build jav {made.raw} --out {made.dataset} --split train=0.8,val=0.2\n")
    if length != "no":
        _train(out / "sync", length, seed, workers)
    return 1 if made.verified.defects else 0


def _train(out: Path, length: str, seed: int, workers: int | None) -> None:
    try:
        from javisc.trainer.use.sync_demo import learn, told
    except ModuleNotFoundError as error:
        click.echo(f"training left out: {error.name} is not installed; pip install 'javisc[train]' and run this again")
        return
    clips, test_clips, steps = LENGTHS[length]
    learnt = learn(out, clips=clips, test_clips=test_clips, steps=steps, seed=seed, workers=workers, say=click.echo)
    click.echo(told(learnt))
    first = next(iter(learnt.shifted))
    click.echo(f"again       javisc train sync-demo --data {out / 'learn'} --run DIR")
    click.echo(f"ask it      javisc predict {first} --checkpoint {learnt.run / 'best'} --v-start-sec 1")
