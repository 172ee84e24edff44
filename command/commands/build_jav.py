"""`javisc build jav`: a folder of real videos becomes a dataset."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from javisc.commands.build_options import build_options, run_build
from javisc.commands.corpus_options import corpus_inputs, corpus_options

#: Options that change a setting of the recipe, by the setting's name.
RECIPE_OPTIONS = (
    click.option("--recipe", default="jav", show_default=True, metavar="NAME", help="The preset that the options below change."),
    click.option("--fps", metavar="RATE", help="Frames per second: 24, 25, 30000/1001."),
    click.option("--sample-rate", type=int, metavar="HZ", help="Samples of sound per second."),
    click.option("--channels", type=int, metavar="N", help="1 or 2."),
    click.option("--short-side", type=int, metavar="N", help="Scale so that the shorter side has N pixels."),
    click.option("--crf", type=float, metavar="N", help="x264's quality: lower is finer."),
    click.option("--encoder-preset", metavar="P", help="x264's preset: faster is larger."),
    click.option("--min-frames", type=int, metavar="N", help="Refuse clips with fewer frames."),
    click.option("--max-seconds", type=float, metavar="S", help="Cut clips to S seconds."),
    click.option("--allow-silent", is_flag=True, default=None, help="Keep videos without sound."),
    click.option("--max-hold", type=float, metavar="S", help="Let a picture stand for S seconds (300), as slides do."),
    click.option("--resized", metavar="HOW", help="A picture whose size changes midway: letterbox (default) or refuse the clip."),
)  # fmt: skip
SETTINGS = (
    "fps", "sample_rate", "channels", "short_side", "crf", "encoder_preset", "min_frames", "max_seconds", "allow_silent",
    "max_hold", "resized",
)  # fmt: skip


def recipe_options(command: Any) -> Any:
    """Decorate a command with the options that change the recipe."""
    for option in reversed(RECIPE_OPTIONS):
        command = option(command)
    return command


def recipe_of(options: dict[str, Any], kinds: tuple[str, ...]) -> Any:
    """Take the recipe's options out of `options` and return the recipe. Raises UserError."""
    from javisc.compiler.plan import settings as parse

    changes = {name: value for name in SETTINGS if (value := options.pop(name, None)) is not None}
    return parse.recipe(options.pop("recipe"), changes, kinds)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
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
@recipe_options
def jav(
    raw: tuple[str, ...],
    captions: str | None,
    require_caption: bool,
    corpus: tuple[str, ...],
    corpus_split: tuple[str, ...],
    **options: Any,
) -> int:
    """Compile videos with sound into the dataset DS.

    RAW: folders, searched for .mp4 .mov .m4v .mkv .webm .avi .ts .mts .m2ts .mpg .mpeg .m2v .flv .f4v .3gp .3g2 .wmv .asf
    .ogv .264 .h264 .265 .h265 .hevc; media files; lists of paths (.txt, or .csv, .parquet, .jsonl with a column `path`); or
    URLs of any of these. They are only read.

    The same command resumes what was interrupted, and adds what is new.
    """
    from javisc.compiler.inputs.local import VIDEO_SUFFIXES
    from javisc.compiler.inputs.raw import from_raw

    recipe = recipe_of(options, ("jav", "sync"))

    def inputs(say: Callable[[str], None]) -> Any:
        if options["finish"]:
            return None
        if corpus:
            return corpus_inputs(raw, corpus, corpus_split, "video", captions, options, say, VIDEO_SUFFIXES)
        return from_raw(raw, out=options["out"], captions=captions, require_caption=require_caption, say=say)

    return run_build(inputs, recipe, **options)
