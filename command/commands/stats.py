"""`javisc stats`: counts, hours and quantiles."""

from __future__ import annotations

import json

import click


@click.command()
@click.argument("inputs", metavar="DS…", nargs=-1, required=True)
@click.option(
    "--by",
    multiple=True,
    metavar="COLUMN",
    help="Count per value of this column; may be given several times.  [default: corpus, split]",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def stats(inputs: tuple[str, ...], by: tuple[str, ...], as_json: bool) -> None:
    """Say how many samples and hours there are, per corpus and split, and how their measures are distributed."""
    from javisc.manifests.io import scan_many
    from javisc.manifests.stats import distributions, totals

    _, frame = scan_many(inputs)
    groups = list(by) or ["corpus", "split"]
    everything, table, measures = totals(frame), totals(frame, groups), distributions(frame)
    if as_json:
        told = {"total": everything.row(0, named=True), "groups": table.to_dicts(), "columns": measures.to_dicts()}
        click.echo(json.dumps(told, indent=1))
        return
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    console = Console()
    counted = Table(
        *groups, "samples", "hours", "GB", "captions", "silent", "still", title="Samples", title_justify="left"
    )
    for column in counted.columns[len(groups) :]:
        column.justify = "right"
    for row in [*table.iter_rows(named=True), dict.fromkeys(groups, "") | everything.row(0, named=True)]:
        names = ["–" if row[name] is None else str(row[name]) for name in groups]
        numbers = [f"{row['samples']:,}", f"{row['hours']:,.1f}", f"{row['bytes'] / 1e9:,.2f}"]
        shares = [f"{row[name] / max(1, row['samples']):.1%}" for name in ("captioned", "silent", "still")]
        counted.add_row(*names, *numbers, *shares)
    console.print(counted)
    if measures.height:
        spread = Table(
            *measures.columns, title="Measures", title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0), pad_edge=False
        )
        spread.columns[0].no_wrap, spread.columns[0].overflow = True, "fold"  # a name is never cut
        for column in spread.columns[1:]:
            column.justify = "right"
        for values in measures.iter_rows():
            spread.add_row(values[0], f"{values[1]:,}", *map(_short, values[2:]))
        console.print(spread)


def _short(value: float) -> str:
    """Three digits, or whole thousands: seven columns of them go into 80 characters."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
