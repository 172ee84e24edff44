"""`javisc build jav`: a folder of real videos becomes a dataset."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from javisc.commands.build_config import BuildCommand
from javisc.commands.build_options import build_options, run_build
from javisc.commands.corpus_options import corpus_inputs, corpus_options
from javisc.commands.recipe_options import changed, recipe_options

SETTINGS = (
    "fps", "sample_rate", "channels", "short_side", "crf", "encoder_preset", "gop", "tune", "min_frames", "max_seconds",
    "allow_silent", "max_hold", "resized",
)  # fmt: skip


@click.command(cls=BuildCommand, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("raw", nargs=-1, metavar="RAW…")
@click.option(
    "--captions",
    metavar="SPEC",
    help="A CSV, parquet or JSONL file with path, relpath or id and text; or tavgbench:FILE. "
    "Default: .json or .txt files beside the videos.",
)
@click.option("--require-caption", is_flag=True, help="Refuse videos without a caption.")
@corpus_options("video")
@build_options
@click.option(
    "--recipe", default="jav", show_default=True, metavar="NAME", help="The preset that the options below change."
)
@recipe_options(*SETTINGS)
@click.option(
    "--renditions",
    default="",
    metavar="N,…",
    help="Also make smaller pictures of these shorter sides, as 240,480, for reading.",
)
def jav(
    raw: tuple[str, ...],
    captions: str | None,
    require_caption: bool,
    corpus: tuple[str, ...],
    corpus_split: tuple[str, ...],
    renditions: str,
    **options: Any,
) -> int:
    """Compile videos with sound into the dataset DS.

    RAW: folders, searched for .mp4 .mov .m4v .mkv .webm .avi .ts .mts .m2ts .mpg .mpeg .m2v .flv .f4v .3gp .3g2 .wmv .asf
    .ogv .264 .h264 .265 .h265 .hevc; media files; lists of paths (.txt, or .csv, .parquet, .jsonl with a column `path`);
    manifest.json of an S3 Inventory; or URLs of any of these. They are only read.

    The same command resumes what was interrupted, and adds what is new.
    """
    from javisc.compiler.plan.settings import preset, sides

    recipe = changed(preset(options.pop("recipe"), ("jav", "sync")), options, *SETTINGS)

    def inputs(say: Callable[[str], None]) -> Any:
        from javisc.compiler.inputs.local import VIDEO_SUFFIXES  # when a worker has started beside it
        from javisc.compiler.inputs.raw import from_raw

        if options["finish"]:
            return None
        if corpus:
            return corpus_inputs(raw, corpus, corpus_split, "video", captions, options, say, VIDEO_SUFFIXES)
        return from_raw(raw, out=options["out"], captions=captions, require_caption=require_caption, say=say)

    return run_build(inputs, recipe, renditions=sides(renditions), **options)
