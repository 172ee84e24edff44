"""The options that every `javisc build …` has, and the one way in which such a command runs."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from javisc.commands.build_config import CONFIG_OPTIONS
from javisc.manifests.errors import UserError

F = TypeVar("F", bound=Callable[..., Any])

#: What runs the work, for whatever command can run it elsewhere.
ENGINE_OPTIONS = (
    click.option(
        "--engine",
        default="local",
        show_default=True,
        metavar="NAME",
        help="What runs the work: local, or ray for a cluster.",
    ),
    click.option(
        "--address",
        metavar="HOST:PORT|auto|local",
        help="The cluster of --engine ray; default: auto, the one this machine is part of; local makes one here.",
    ),
)
_OPTIONS = (
    click.option(
        "--out",
        required=True,
        metavar="DS",
        help="Folder or URL of the dataset; an earlier build in it is resumed or added to.",
    ),
    click.option(
        "--shard-size", default="512MB", show_default=True, metavar="SIZE", help="Bytes per shard, by estimate."
    ),
    click.option("--shard-samples", type=click.IntRange(1), metavar="N", help="Samples per shard instead."),
    click.option(
        "--workers",
        type=click.IntRange(1, 1024),
        metavar="N",
        help="Worker processes; default: one per core. With --engine ray: CPUs for one shard; default: up to 4.",
    ),
    *ENGINE_OPTIONS,
    click.option(
        "--shard-range", metavar="A:B", help="Build only shards A ≤ n < B of the plan; a last call without it merges."
    ),
    click.option(
        "--part",
        metavar="I/N|auto",
        help="Build only every N-th shard, from the I-th of 0 to N-1; auto: as this task of a Slurm, SGE or LSF array says.",
    ),
    click.option(
        "--write-plan", is_flag=True, help="Only write the plan, so that calls with --part need not wait for it."
    ),
    click.option("--finish", is_flag=True, help="Only merge what calls with --part or --shard-range have built."),
    click.option(
        "--split", default="", metavar="NAME=SHARE,…", help="Splits by a hash of the key, as train=0.98,val=0.02."
    ),
    click.option(
        "--seed", type=int, default=0, show_default=True, help="Seed of the spread over shards and of the split."
    ),
    click.option(
        "--time-limit",
        type=click.FloatRange(1),
        default=120.0,
        show_default=True,
        metavar="S",
        help="Seconds of CPU time that a file may take; 10 per megabyte and 20 per second of a million pixels are added.",
    ),
    click.option(
        "--scratch",
        type=click.Path(file_okay=False, path_type=Path),
        help="Local folder for unpacked clips; default: in DS.",
    ),
    click.option("--prune", is_flag=True, help="Rewrite the shards whose inputs changed or are gone."),
    click.option(
        "--retry-rejected", is_flag=True, help="Try inputs again that crashed, timed out or could not be read."
    ),
    click.option("--check", is_flag=True, help="Compare published shards with their digests, not only their sizes."),
    click.option("--mix-tools", is_flag=True, help="Go on with other versions of encoders than DS was begun with."),
    click.option("--strict", is_flag=True, help="Exit with 1 if an input was rejected."),
    click.option("--plan-only", is_flag=True, help="Say what would be done, from a probed handful; write nothing."),
    click.option(
        "--log-json",
        type=click.Path(dir_okay=False, path_type=Path),
        metavar="FILE",
        help="Append every event as a JSON line.",
    ),
    *CONFIG_OPTIONS,
)
OPTION_NAMES = (
    "shard_samples",
    "workers",
    "engine",
    "address",
    "write_plan",
    "finish",
    "seed",
    "time_limit",
    "scratch",
    "prune",
    "retry_rejected",
    "check",
    "mix_tools",
)


def build_options(command: F) -> F:
    """Decorate a command with the options of every build; they arrive as keyword arguments for `run_build`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


#: Options that decide a setting of another name.
_DECIDES = {"min_seconds": "min_frames"}


def _said() -> set[str]:
    """Names of the settings that the command's user gave, not its defaults."""
    context = click.get_current_context()
    given = {name for name in context.params if context.get_parameter_source(name) is not ParameterSource.DEFAULT}
    return {_DECIDES.get(name, name) for name in given}


def run_build(
    inputs: Callable[[Callable[[str], None]], Any],
    recipe: Any,
    *,
    out: str,
    plan_only: bool,
    **options: Any,
) -> int:
    """Build and print. inputs: gets a function that says a line, returns what compiler.build takes. Returns the exit code."""
    from javisc.compiler.run.early import early

    idle = plan_only or options["write_plan"] or options["finish"] or options["engine"] != "local"
    with nullcontext() if idle else early(recipe.kind, out, options["workers"]) as pool:
        return _run_build(inputs, recipe, pool, out=out, plan_only=plan_only, **options)


def _run_build(
    inputs: Callable[[Callable[[str], None]], Any],
    recipe: Any,
    pool: Any,
    *,
    out: str,
    shard_size: str,
    shard_range: str | None,
    part: str | None,
    split: str,
    strict: bool,
    plan_only: bool,
    log_json: Path | None,
    offsets: Any = None,
    renditions: tuple[int, ...] = (),
    **options: Any,
) -> int:
    from javisc.compiler.build import BuildOptions, build
    from javisc.compiler.build import plan_only as estimate
    from javisc.compiler.plan import settings as parse
    from javisc.compiler.plan.saved import as_begun
    from javisc.compiler.reasons import A_HANDFUL
    from javisc.compiler.run.progress import Reporter, size, span
    from javisc.manifests.splits import parse_ratios

    chosen = BuildOptions(
        shard_size=parse.size(shard_size, "--shard-size"),
        shard_range=parse.shard_range(shard_range) if shard_range is not None else None,
        part=parse.part(part, os.environ) if part is not None else None,
        offsets=offsets,
        renditions=renditions,
        split=parse_ratios(split, "--split") if split else {},
        **{name: options[name] for name in OPTION_NAMES},
    )
    recipe, chosen = as_begun(out, recipe, chosen, _said())
    try:
        reporter = Reporter(log=log_json)
    except OSError as error:
        raise UserError(f"--log-json {log_json} cannot be written: {error.strerror}") from error
    with reporter:
        if plan_only:
            found = estimate(inputs(reporter.say), recipe, out, chosen)
            shards = -(-found.inputs // (chosen.shard_samples or found.per_shard(chosen.shard_size)))
            beside = f" and {size(found.rendition_bytes)} of renditions beside them" if renditions else ""
            click.echo(
                f"{found.inputs} inputs of {size(found.source_bytes)}, about {span(found.media_seconds)} of media: "
                f"about {size(found.bytes)} in {max(1, shards)} shards{beside}, {span(found.work_seconds)} of one core "
                f"({found.good:.0%} of a probed handful compiled); nothing was written"
            )
            return 0
        result = build(inputs(reporter.say), recipe, out, chosen, reporter=reporter, pool=pool)
    if chosen.write_plan:
        parts = f"--part 0/{result.shards} to {result.shards - 1}/{result.shards}"
        click.echo(
            f"{result.out}: {result.shards} shards are planned: build them with {parts} (or fewer, larger parts), "
            "side by side, then once with --finish"
        )
        return 0
    rejected = sum(result.rejected.values())
    click.echo(
        f"{result.out}: {result.samples} samples in {result.shards} shards, {size(result.bytes)}, {span(result.seconds)}"
    )
    if rejected:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(result.rejected.items()))
        where = (
            "they are listed when the parts are merged"
            if chosen.partial
            else f"see {result.out.rstrip('/')}/rejected.parquet"
        )
        click.echo(f"{rejected} inputs were rejected ({reasons}): {where}")
    if result.shards_left:
        click.echo(
            f"{result.shards_left} shards are of other parts or left: `javisc status` tells which; a last call with --finish "
            "merges"
        )
    if (internal := result.rejected.get("internal", 0)) > A_HANDFUL:
        click.echo(
            f"javisc: {internal} inputs were refused by a fault of javisc itself, not theirs: please report the messages in "
            "rejected.parquet; --retry-rejected tries them again",
            err=True,
        )
        return 1
    if not result.samples and not chosen.partial:
        click.echo(f"javisc: nothing came out: all {rejected} inputs were refused", err=True)
        return 1
    return 1 if strict and rejected else 0
