"""`javisc annotate`: a table's columns become a field of a dataset."""

from __future__ import annotations

import click

from javisc.manifests.errors import UserError


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("dataset", metavar="DS")
@click.argument("table", metavar="[TABLE]", required=False)
@click.option(
    "--by",
    type=click.Choice(["key", "path", "relpath", "id"]),
    help="The column that names the sample.  [default: the one that matches most]",
)
@click.option("--as", "name", metavar="NAME", help="The field's name.  [default: the table's]")
@click.option("--keep-text", is_flag=True, help="Leave text and texts alone; captions become the column NAME_text.")
@click.option("--undo", metavar="NAME", help="Take a field back: the manifest is what it was without it.")
def annotate(
    dataset: str, table: str | None, by: str | None, name: str | None, keep_text: bool, undo: str | None
) -> None:
    """Join captions, scores, labels, any typed column of TABLE (.csv, .tsv, .parquet, .jsonl) onto the samples of DS.

    They become the field DS/fields/NAME and columns of DS's manifest, so that `javisc filter` and the trainers see them at once.
    Nothing is encoded and no shard of DS changes. `text` is then the newest caption, `texts` has all of them.

    \b
        javisc annotate DS captions.csv --as qwen
        javisc annotate DS --undo qwen
    """
    from javisc.manifests.allocator import keep_freed

    keep_freed()
    from javisc.compiler.fields.annotate import annotate as run
    from javisc.compiler.fields.annotate import take_back

    if (table is None) == (undo is None):
        raise UserError("annotate: give a TABLE to join, or --undo NAME, one of the two")
    if undo is not None:
        if by or name or keep_text:
            raise UserError("--undo NAME stands alone: leave out --by, --as and --keep-text")
        take_back(dataset, undo)
        click.echo(f"{dataset}: field {undo} is gone")
        return
    assert table is not None
    done = run(dataset, table, by=by, name=name, keep_text=keep_text)
    click.echo(
        f"{dataset}: field {done.name}: {done.samples} of {done.of} samples, joined by {done.by}: {', '.join(done.columns)}"
    )
    if done.unused:
        click.echo(f"{done.unused} rows of {table} belong to no sample")
