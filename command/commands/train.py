"""`javisc train`: a recipe, data, a run's folder."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("recipe")
@click.argument("overrides", metavar="[KEY=VALUE]…", nargs=-1)
@click.option("--data", multiple=True, metavar="DS", help="A dataset to train on; may be given several times.")
@click.option(
    "--run",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Where the run's checkpoints and logs go.  [default: runs/RECIPE]",
)
@click.option(
    "--resume", is_flag=True, help="Continue from the newest complete checkpoint in the run's folder, if there is one."
)
@click.option("--dry-run", is_flag=True, help="Say what a run would be, and run nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the dry run as JSON.")
def train(
    recipe: str,
    overrides: tuple[str, ...],
    data: tuple[str, ...],
    folder: Path | None,
    resume: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Train after RECIPE: the name of one that javisc brings, or a YAML file. Settings are changed with KEY=VALUE.

    One process, or as many as torchrun starts:

    \b
        javisc train sync-demo --data DS --run runs/a optimizer.lr=5e-4
        torchrun --nproc-per-node 8 -m -- javisc train sync-lrs3 --data DS --run runs/b --resume

    Without the -- torchrun takes --run for an option of its own. --resume starts a run where there is none yet; a process that
    torchrun starts again resumes by itself.
    """
    from javisc.trainer.tasks.registry import load

    given = (
        [f"data.paths={json.dumps([str(Path(path)) if '://' not in path else path for path in data])}"] if data else []
    )
    loaded, task = load(recipe, [*given, *overrides])
    if dry_run:
        from javisc.trainer.forecast import dry_run as dry

        report = dry.dry_run(loaded, task)
        click.echo(json.dumps(report, indent=1) if as_json else dry.told(report))
        return
    from javisc.trainer.engine.loop import train as run

    folder = folder or Path("runs") / Path(recipe).stem
    outcome = run(loaded, task, folder, resume=resume)
    click.echo(f"{outcome.why} at step {outcome.step}; checkpoints in {folder / 'checkpoints'}", err=True)
