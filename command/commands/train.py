"""`javisc train`: a recipe, data, a run's folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

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
@click.option(
    "--from",
    "begin",
    default="",
    metavar="STEP|FOLDER",
    help="Continue from this step's checkpoint, or from that folder's: a checkpoint, or another run's newest.",
)
@click.option(
    "--hook",
    multiple=True,
    metavar="MODULE:CLASS",
    help="A class of your own that the run calls, also FILE.py:CLASS; see docs/train.md.",
)
@click.option("--dry-run", is_flag=True, help="Say what a run would be, and run nothing.")
@click.option("--print-config", is_flag=True, help="Print the recipe with its changes as YAML, and run nothing.")
@click.option(
    "--keys", "list_keys", is_flag=True, help="List every setting of the recipe: value, type, bounds, meaning."
)
@click.option("--json", "as_json", is_flag=True, help="Print --dry-run, --print-config or --keys as JSON.")
def train(
    recipe: str,
    overrides: tuple[str, ...],
    data: tuple[str, ...],
    folder: Path | None,
    resume: bool,
    begin: str,
    hook: tuple[str, ...],
    dry_run: bool,
    print_config: bool,
    list_keys: bool,
    as_json: bool,
) -> None:
    """Train after RECIPE: the name of one that javisc brings, or a YAML file. Settings are changed with KEY=VALUE.

    KEY={...} replaces all that KEY held, KEY.PART=... changes one part of it; --keys lists what there is.

    One process, or as many as torchrun starts:

    \b
        javisc train sync-demo --data DS --run runs/a optimizer.lr=5e-4
        torchrun --nproc-per-node 8 -m -- javisc train sync-lrs3 --data DS --run runs/b --resume

    Without the -- torchrun takes --run for an option of its own. --resume starts a run where there is none yet; a process that
    torchrun starts again resumes by itself.
    """
    from javisc.trainer.tasks import registry

    chosen = [str(Path(path)) if "://" not in path else path for path in data]
    # The option comes last: data={...} would otherwise empty what it set.
    changes = [*overrides, *([f"data.paths={json.dumps(chosen)}"] if chosen else [])]
    if print_config or list_keys:
        shown = registry.recipe_of(recipe, changes)
        click.echo((_keys if list_keys else _config)(shown, as_json))
        return
    loaded, task = registry.load(recipe, changes)
    if dry_run:
        from javisc.trainer.forecast import dry_run as dry

        report = dry.dry_run(loaded, task)
        click.echo(json.dumps(report, indent=1) if as_json else dry.told(report))
        return
    from javisc.trainer.engine import hooks
    from javisc.trainer.engine.loop import train as run
    from javisc.trainer.use.previews import preview_hooks

    folder = folder or Path("runs") / Path(recipe).stem
    outcome = run(
        loaded,
        task,
        folder,
        resume=resume,
        begin=begin,
        name=recipe,
        changes=registry.changes(recipe, changes),
        hooks=[*preview_hooks(loaded, task), *(hooks.hook(name) for name in hook)],
    )
    click.echo(f"{outcome.why} at step {outcome.step}; checkpoints in {folder / 'checkpoints'}", err=True)


def _config(recipe: Any, as_json: bool) -> str:
    from javisc.trainer.engine.config import as_dict, as_yaml

    return json.dumps(as_dict(recipe), indent=1) if as_json else as_yaml(recipe).rstrip()


def _keys(recipe: Any, as_json: bool) -> str:
    from javisc.trainer.engine.settings import keys, told

    found = list(keys(type(recipe), recipe))
    if as_json:
        return json.dumps([vars(key) for key in found], indent=1)
    lines = []
    for key in found:
        kind = f"{key.type} ({key.bounds})" if key.bounds else key.type
        lines += [f"{key.key}={told(key.value)}", f"    {kind}. {key.meaning}"]
    return "\n".join(lines)
