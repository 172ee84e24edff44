"""`javisc export-weights`: a checkpoint's weights as a folder that others load."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("run", type=click.Path(file_okay=False, path_type=Path))
@click.option("--from", "begin", default="", metavar="STEP|FOLDER", help="Which checkpoint.  [default: the newest]")
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="Where it goes.  [default: RUN/step-N]")
@click.option("--average/--no-average", default=True, help="The moving average's weights, where there is one.")
def export_weights(run: Path, begin: str, out: Path | None, average: bool) -> None:
    """Write the weights of a checkpoint of RUN as safetensors, with recipe and config.json: what `best` and `last` of a run hold.

    Needs neither the data nor a GPU, and as much memory as the model's weights.
    """
    from javisc.trainer.use import export_weights as exporting

    click.echo(exporting.export_weights(run, out, begin=begin, average=average))
