"""`javisc build …`: one subcommand per kind of dataset."""

from __future__ import annotations

import click

from javisc.cli import LazyGroup
from javisc.commands.build_config import kind_in

#: subcommand → "module:attribute" and its line of help, as in javisc.cli.
KINDS: dict[str, tuple[str, str]] = {
    "audio": ("javisc.commands.build_audio:audio", "sounds alone, with the captions of the known corpora"),
    "jav": ("javisc.commands.build_jav:jav", "videos with sound, and their captions"),
    "masklets": ("javisc.commands.build_masklets:masklets", "objects cut out of videos, for the prior's negatives"),
    "prior": ("javisc.commands.build_prior:prior", "the pools that the prior's negatives draw from, made offline"),
    "sync": ("javisc.commands.build_sync:sync", "clips for SparseSync, with its splits and evaluation offsets"),
}


class _Build(LazyGroup):
    """`build KIND …`, and `build --config FILE …`, where the file says the kind."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        option, _, file = (args[0] if args else "").partition("=")
        if option == "--config" and (file or len(args) > 1):
            args = [kind_in(file or args[1], self.table), *args]
        return super().parse_args(ctx, args)


build = _Build(
    KINDS,
    takes="jav",
    name="build",
    help="Compile raw media into a dataset of shards, with a manifest and a list of rejects.",
)
