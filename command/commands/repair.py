"""`javisc repair`: make again what of a dataset is missing or wrong."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("dataset", metavar="DS")
@click.option(
    "--workers", type=click.IntRange(1, 1024), metavar="N", help="Worker processes; default: one per usable core."
)
@click.option(
    "--scratch",
    type=click.Path(file_okay=False, path_type=Path),
    help="Local folder for unpacked clips; default: in DS.",
)
def repair(dataset: str, workers: int | None, scratch: Path | None) -> int:
    """Make again what of DS is missing or damaged, with the bytes it had; leave the rest untouched.

    Shards are compared with the digests of their commits. Lost ones are compiled again from their sources, which must be as they
    were; tables are merged anew; labels that an older javisc wrote as the word None become nulls, without encoding.
    """
    from javisc.compiler.repair.dataset import repair as run
    from javisc.compiler.run.progress import Reporter

    with Reporter() as reporter:
        done = run(dataset, workers=workers, scratch=scratch, reporter=reporter)
    for line in done.lines:
        click.echo(line)
    if not done.lines:
        click.echo(f"{dataset}: nothing to repair")
    return 1 if done.unfinished else 0
