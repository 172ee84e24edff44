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
@click.option(
    "--warm",
    metavar="RECIPE",
    help="Compile what this recipe's training steps launch, so that no step waits for it; then KEY=VALUE as for train.",
)
@click.option(
    "--data", multiple=True, metavar="DS", help="With --warm: a dataset, where a recipe's shapes come from it."
)
@click.option("--arch", type=int, metavar="CAPABILITY", help="With --warm: 80, 90, 100, …  [default: this device's]")
@click.option("--processes", type=click.IntRange(1, 1024), help="With --warm: how many compile.  [default: one a core]")
@click.argument("overrides", metavar="[KEY=VALUE]…", nargs=-1)
def kernels(
    device: str | None,
    dtype: str,
    as_json: bool,
    warm: str | None,
    data: tuple[str, ...],
    arch: int | None,
    processes: int | None,
    overrides: tuple[str, ...],
) -> None:
    """Say for every kernel which backends can run here, why the others cannot, and which one is chosen when.

    JAVISC_KERNELS=auto|triton|xformers|torch (or OP=NAME,…) chooses; a backend named there runs or raises.

    --warm RECIPE fills Triton's cache (TRITON_CACHE_DIR) with the kernels of a training run, in parallel, before it starts: that
    needs no GPU.
    """
    from javisc.manifests.errors import UserError
    from javisc.manifests.extras import missing

    try:
        import torch

        from javisc.kernels import dispatch, survey
    except ModuleNotFoundError as error:
        raise missing("javisc kernels", str(error.name)) from error

    if warm:
        chosen = [*overrides, *([f"data.paths={json.dumps(list(data))}"] if data else [])]
        _warm(warm, chosen, arch, processes, as_json)
        return
    if overrides or data or arch or processes:
        raise UserError("--data, --arch, --processes and KEY=VALUE go with --warm RECIPE: give that too")
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
            taken = "always"
        else:
            taken = "heads of " + ", ".join(map(str, row.chosen_for)) if row.chosen_for else "no"
        runs = "yes" if row.available else f"no: {row.reason}"
        table.add_row(row.op if row.op != previous else "", row.backend, runs, taken, row.when)
        previous = row.op
    console.print(table)


def _warm(recipe: str, changes: list[str], arch: int | None, processes: int | None, as_json: bool) -> None:
    """Compile what the recipe's steps launch; exit code 1 if a variant does not compile."""
    import torch

    from javisc.kernels import aot, dispatch
    from javisc.manifests.errors import UserError
    from javisc.trainer.forecast.variants import variants
    from javisc.trainer.tasks import registry

    if dispatch.interpreting():
        raise UserError("--warm: TRITON_INTERPRET is set, and the interpreter compiles nothing: unset it")
    if reason := dispatch.broken_triton():
        raise UserError(f"--warm: {reason}")
    if arch is None:
        if not torch.cuda.is_available():
            raise UserError("--warm: there is no CUDA device here to compile for: give --arch 80, 90 or 100")
        major, minor = torch.cuda.get_device_capability()
        arch = 10 * major + minor
    if arch not in aot.SHARED_LIMIT:
        raise UserError(f"--arch {arch}: it may be {', '.join(map(str, aot.SHARED_LIMIT))}")
    found = variants(*registry.load(recipe, changes), arch)
    rows = aot.compile_all(found, processes or len(os.sched_getaffinity(0)), inspect=False)
    failed = [row for row in rows if row.problem]
    if as_json:
        click.echo(json.dumps([asdict(row) for row in rows], indent=1))
    else:
        names = ", ".join(sorted({row.kernel for row in rows})) or "none of its operations runs on Triton there"
        click.echo(f"{recipe}, sm_{arch}: {len(rows) - len(failed)} of {len(rows)} variants compiled ({names})")
    for row in failed:
        click.echo(f"{row.kernel} {row.label}: {row.problem}", err=True)
    if failed:
        raise SystemExit(1)
