"""`javisc merge`: several manifests as one."""

from __future__ import annotations

import click


@click.command()
@click.argument("inputs", metavar="DS…", nargs=-1, required=True)
@click.option("--out", required=True, help="The view to write: a new folder, or one table if it ends in .parquet.")
@click.option(
    "--on-duplicate",
    type=click.Choice(["error", "first", "keep"]),
    default="error",
    show_default=True,
    help="Keys that two inputs share: stop, keep the first, or keep all.",
)
@click.option("--relative", is_flag=True, help="Name the datasets relative to the view, so that all can move together.")
@click.option("--force", is_flag=True, help="Replace a view or table that is there.")
def merge(inputs: tuple[str, ...], out: str, on_duplicate: str, relative: bool, force: bool) -> None:
    """Write one manifest over the rows of datasets, views and .parquet tables, in the order given.

    Shards stay where they are: each row names its dataset in the column `dataset`, and everything that reads a dataset
    reads the result.
    """
    from javisc.manifests import merge as merging
    from javisc.manifests.outputs import check_output

    check_output(out, force=force)
    done = merging.merge(inputs, out, on_duplicate=on_duplicate, relative=relative)
    dropped = f" ({done.repeated} repeated rows left out)" if done.repeated else ""
    click.echo(f"{done.rows} samples of {len(inputs)} inputs → {out}{dropped}")
