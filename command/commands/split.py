"""`javisc split`: train, validation and test by hash."""

from __future__ import annotations

import click


@click.command()
@click.argument("inputs", metavar="DS…", nargs=-1, required=True)
@click.option(
    "--ratios",
    default="train=0.98,val=0.02",
    show_default=True,
    metavar="NAME=SHARE,…",
    help="Splits and their shares.",
)
@click.option(
    "--by",
    default="group",
    show_default=True,
    metavar="COLUMN",
    help="Rows with one value here land in one split; group: the film.",
)
@click.option("--seed", default=0, show_default=True, help="Another seed, another split.")
@click.option("--out", required=True, help="The view to write: a new folder, or one table if it ends in .parquet.")
@click.option("--relative", is_flag=True, help="Name the datasets relative to the view, so that all can move together.")
@click.option("--force", is_flag=True, help="Replace a view or table that is there.")
def split(inputs: tuple[str, ...], ratios: str, by: str, seed: int, out: str, relative: bool, force: bool) -> None:
    """Fill the column `split` by a hash of the group, so that clips of one film never lie in two splits, or of another column.

    A row's split depends on its group and the seed alone: adding samples moves none, and `javisc build --split` gives the same.
    """
    from javisc.manifests.io import scan_many
    from javisc.manifests.outputs import check_output
    from javisc.manifests.splits import parse_ratios, split_view, unused
    from javisc.manifests.stats import totals

    shares = parse_ratios(ratios)
    check_output(out, force=force)
    split_view(inputs, out, shares, by=by, seed=seed, relative=relative)
    for row in totals(scan_many([out])[1], ["split"]).iter_rows(named=True):
        click.echo(f"{row['samples']:>12} {row['split']} ({row['hours']:.1f} h)")
    for line in unused(scan_many([out])[1], shares):
        click.echo(line)
