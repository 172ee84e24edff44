"""`javisc import`: JavisDiT's tables become inputs of a build."""

from __future__ import annotations

import click


@click.command()
@click.option(
    "--csv",
    "tables",
    multiple=True,
    required=True,
    metavar="FILE",
    help="A train_*.csv or .parquet; may be given several times.",
)
@click.option("--out", required=True, metavar="LIST.parquet", help="The list to write; `javisc build` takes it as RAW.")
@click.option(
    "--root", metavar="DIR", help="What relative paths in the tables are relative to.  [default: the working folder]"
)
def import_csv(tables: tuple[str, ...], out: str, root: str | None) -> None:
    """Turn JavisDiT's CSV tables into a list for `javisc build`, with captions and unpaired sounds kept."""
    from javisc.manifests import javisdit
    from javisc.manifests.errors import UserError

    if not out.endswith(".parquet"):
        raise UserError(f"--out {out}: the list is a parquet table, give a name that ends in .parquet")
    click.echo(
        f"{javisdit.import_csv(tables, out, root=root)} inputs → {out}: give it to `javisc build jav` or `javisc build "
        f"audio` as RAW"
    )
