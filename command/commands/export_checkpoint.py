"""`javisc export-checkpoint`: a run's weights in the layout of published files."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("export-checkpoint", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("run", metavar="RUN/best")
@click.option(
    "--out",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE.pt",
    help="The file to write.",
)
@click.option(
    "--layout",
    type=click.Choice(["training", "bare"]),
    default="training",
    show_default=True,
    help="training: the container that the published trainer writes; bare: the state dict alone.",
)
def export_checkpoint(run: str, out: Path, layout: str) -> None:
    """Write the weights of a Synchformer's run (any stage) under published names, for programs that read those files."""
    from javisc.trainer.use.export_published import export_published

    export_published(run, out, layout)
    click.echo(f"{out}: written")
