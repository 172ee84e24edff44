"""`javisc build masklets`: objects cut out of videos become a pool for the prior's negatives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from javisc.commands.build_config import BuildCommand
from javisc.commands.build_options import build_options, run_build
from javisc.commands.recipe_options import changed, recipe_options


@click.command(cls=BuildCommand, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("raw", nargs=-1, metavar="RAW…", required=True)
@recipe_options("crf", preset="sync")
@build_options
def masklets(raw: tuple[str, ...], **options: Any) -> int:
    """Compile the masklets below RAW into the pool DS: what JavisDiT's get_masklets wrote.

    An object is three files: V_masklet_N.mp4 (its box), V_mask_N.mp4 (white where it is) and V_meta_N.json (where the box lies in
    every frame). Separated and unpaired sounds are pools too: `javisc build audio` compiles them.
    """
    from javisc.compiler.inputs.masklets import RECIPE, from_masklets

    def inputs(say: Callable[[str], None]) -> Any:
        return None if options["finish"] else from_masklets(raw, out=options["out"], say=say)

    return run_build(inputs, changed(RECIPE, options, "crf"), **options)
