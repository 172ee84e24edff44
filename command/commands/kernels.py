"""`javisc kernels`: which implementation of each kernel runs on this machine, and why the others do not."""

from __future__ import annotations

import json
import os
from dataclasses import asdict

import click


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--device", metavar="DEVICE", help="As if tensors were there: cpu, cuda, cuda:1.  [default: cuda if there is one]"
)
@click.option(
    "--dtype",
    type=click.Choice(["bfloat16", "float16", "float32", "float64"]),
    default="bfloat16",
    show_default=True,
    help="As if tensors were of this type.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def kernels(device: str | None, dtype: str, as_json: bool) -> None:
    """Say for every kernel which backends can run here, why the others cannot, and which one is chosen when.

    JAVISC_KERNELS=auto|triton|xformers|torch (or OP=NAME,…) chooses; a backend named there runs or raises.
    """
    from javisc.manifests.errors import UserError
    from javisc.manifests.extras import missing

    try:
        import torch

        from javisc.kernels import dispatch, survey
    except ModuleNotFoundError as error:
        raise missing("javisc kernels", str(error.name)) from error

    try:
        place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise UserError(f"--device {device}: no such device; allowed are cpu, cuda, cuda:N") from error
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        raise UserError(f"--device {device}: this machine has {torch.cuda.device_count()} CUDA devices")
    try:
        rows = survey.survey(place, getattr(torch, dtype))
    except ValueError as error:
        raise UserError(str(error)) from error
    if as_json:
        click.echo(json.dumps({"device": str(place), "dtype": dtype, "rows": [asdict(row) for row in rows]}, indent=1))
        return
    from rich.console import Console
    from rich.table import Table

    console = Console()
    name = torch.cuda.get_device_name(place) if place.type == "cuda" else "no CUDA device asked for"
    asked = os.environ.get(dispatch.VARIABLE) or "auto"
    console.print(f"{place} ({name}), {dtype}, {dispatch.VARIABLE}={asked}", highlight=False)
    console.print("Chosen: what a plain call takes here, for heads of 32, 64, 72 and 128.", highlight=False)
    table = Table("kernel", "backend", "runs here", "chosen", "rule", show_lines=False)
    previous = ""
    for row in rows:
        if previous and row.op != previous:
            table.add_section()
        if len(row.chosen_for) == len(survey.HEAD_DIMS):
            chosen = "always"
        else:
            chosen = "heads of " + ", ".join(map(str, row.chosen_for)) if row.chosen_for else "no"
        runs = "yes" if row.available else f"no: {row.reason}"
        table.add_row(row.op if row.op != previous else "", row.backend, runs, chosen, row.when)
        previous = row.op
    console.print(table)
