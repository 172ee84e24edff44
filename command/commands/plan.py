"""`javisc plan`: write the plan of a build, so that its parts can start together."""

from __future__ import annotations

import click

from javisc.commands.build import KINDS, build


@click.command(context_settings={"help_option_names": ["-h", "--help"], "ignore_unknown_options": True})
@click.argument("words", nargs=-1, required=True, type=click.UNPROCESSED, metavar="[KIND] RAW… --out DS …")
@click.pass_context
def plan(context: click.Context, words: tuple[str, ...]) -> int:
    """Scan RAW, join its captions, write the plan into DS and say how many shards it has. Builds nothing.

    KIND: audio, jav (the default), masklets or sync. It takes the arguments and options of `javisc build KIND`: give the parts
    (`javisc build KIND … --part I/N`) the same ones.
    """
    kind, rest = (words[0], words[1:]) if words[0] in KINDS else ("jav", words)
    command = build.get_command(context, kind)
    assert command is not None
    made = command.make_context(f"javisc plan {kind}", [*rest, "--write-plan"], parent=context.parent)
    with made:
        return int(command.invoke(made) or 0)
