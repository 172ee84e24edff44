"""`javisc filter`: the rows that meet conditions."""

from __future__ import annotations

from typing import Any

import click

#: option → what it bounds; the columns are in manifests/filters.py, which this module imports only when the command runs
_NUMBERS = {
    "min-frames": "Frames.",
    "max-frames": "",
    "min-seconds": "Duration.",
    "max-seconds": "",
    "min-fps": "Frames per second of the compiled clip; for the source's: 'source_fps <= 60'.",
    "max-fps": "",
    "min-resolution": "Pixels, height × width.",
    "max-resolution": "",
    "min-height": "Pixels.",
    "min-width": "Pixels.",
    "min-aspect": "Height / width.",
    "max-aspect": "",
    "min-loudness": "Integrated loudness, LUFS.",
    "max-loudness": "",
    "min-bandwidth": "Effective bandwidth of the sound, Hz.",
    "max-silence": "Share of the sound that is silent.",
    "max-clipping": "Share of samples that clip.",
    "max-still": "Share of frames that repeat the one before.",
    "max-black": "Share of frames that are black.",
    "max-cuts": "Cuts between shots.",
    "min-motion": "Mean difference between neighbouring frames, 0 to 1.",
}
_CHOICES = ("lang", "corpus", "split")


def _options(command: Any) -> Any:
    for name, text in reversed(_NUMBERS.items()):
        command = click.option(f"--{name}", type=float, metavar="N", help=text)(command)
    return command


@click.command()
@click.argument("source", metavar="DS|TABLE")
@click.argument("expressions", metavar="[EXPR]…", nargs=-1)
@click.option(
    "--out",
    help="The view to write: a new folder, or one table if it ends in .parquet. Without it, rows are only counted.",
)
@_options
@click.option("--no-silent", is_flag=True, help="Drop samples without any sound to hear.")
@click.option("--no-still", is_flag=True, help="Drop samples whose picture never changes.")
@click.option("--lang", multiple=True, help="Keep captions in this language; may be given several times.")
@click.option("--corpus", multiple=True, help="Keep this corpus; may be given several times.")
@click.option("--split", multiple=True, help="Keep this split; may be given several times.")
@click.option("--relative", is_flag=True, help="Name the datasets relative to the view, so that all can move together.")
@click.option("--force", is_flag=True, help="Replace a view or table that is there.")
def filter_(
    source: str, expressions: tuple[str, ...], out: str | None, relative: bool, force: bool, **options: Any
) -> None:
    """Keep the rows that meet every condition, and say how many each one removed.

    EXPR is a condition over columns, for example:

    \b
      javisc filter DS 'num_frames >= 48 and loudness > -40 and lang in ("en", "de")' --out GOOD
      javisc filter DS '2 <= duration < 30' 'text is not null' '"dog" in lower(text)' --no-silent
      javisc filter DS 'matches(text, "^a (dog|cat)") or len(texts) > 1' --max-resolution 921600

    A row whose value is missing meets no condition on it; write `loudness is null or loudness > -40` to keep such rows.
    """
    from javisc.manifests.filters import filter_table
    from javisc.manifests.outputs import check_output

    if out:
        check_output(out, force=force)
    bounds = {name: value for name in _NUMBERS if (value := options[name.replace("-", "_")]) is not None}
    flags = [name for name in ("no-silent", "no-still") if options[name.replace("-", "_")]]
    choices = {name: list(options[name]) for name in _CHOICES if options[name]}
    done = filter_table(source, out, expressions, bounds, flags, choices, relative=relative)
    for condition in done.removed:
        unknown = f" ({condition.unknown} of them have no value there)" if condition.unknown else ""
        click.echo(f"{condition.rows:>12} removed by {condition.words}{unknown}")
    click.echo(f"{done.kept:>12} of {done.rows} kept" + (f" → {out}" if out else " (nothing written: say --out)"))
