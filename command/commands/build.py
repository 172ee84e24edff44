"""`javisc build …`: one subcommand per kind of dataset."""

from __future__ import annotations

from javisc.cli import LazyGroup

#: subcommand → "module:attribute" and its line of help, as in javisc.cli.
KINDS: dict[str, tuple[str, str]] = {
    "audio": ("javisc.commands.build_audio:audio", "sounds alone, with the captions of the known corpora"),
    "jav": ("javisc.commands.build_jav:jav", "videos with sound, and their captions"),
    "masklets": ("javisc.commands.build_masklets:masklets", "objects cut out of videos, for the prior's negatives"),
    "prior": ("javisc.commands.build_prior:prior", "the pools that the prior's negatives draw from, made offline"),
    "sync": ("javisc.commands.build_sync:sync", "clips for SparseSync, with its splits and evaluation offsets"),
}

build = LazyGroup(
    KINDS,
    takes="jav",
    name="build",
    help="Compile raw media into a dataset of shards, with a manifest and a list of rejects.",
)
