"""`javisc build audio`: sounds become a dataset for audio-only training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from javisc.commands.build_config import BuildCommand
from javisc.commands.build_options import build_options, run_build
from javisc.commands.corpus_options import corpus_inputs, corpus_options
from javisc.commands.recipe_options import changed, recipe_options


@click.command(cls=BuildCommand, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("raw", nargs=-1, metavar="RAW…")
@corpus_options("audio")
@click.option(
    "--captions",
    metavar="SPEC",
    help="Without --corpus: a CSV, parquet or JSONL file with path, relpath or id and text. "
    "Default: .json or .txt files beside the sounds.",
)
@click.option(
    "--require-caption", is_flag=True, help="Refuse sounds without a caption; those of a corpus must have one."
)
@click.option("--from-video", is_flag=True, help="Take the sound of video files, too.")
@recipe_options(
    "max_seconds", "sample_rate", "channels", preset="audio", help={"max_seconds": "Cut sounds to S seconds."}
)
@build_options
def audio(
    raw: tuple[str, ...],
    corpus: tuple[str, ...],
    corpus_split: tuple[str, ...],
    captions: str | None,
    require_caption: bool,
    from_video: bool,
    **options: Any,
) -> int:
    """Compile sounds into the dataset DS: FLAC of one rate, cut to a length, with captions.

    RAW: the folder that holds the corpora, as JavisDiT lays them out, or one corpus; without --corpus anything that `build
    jav` takes. Files .wav .mp3 .flac .ogg .opus .aac .m4a .aiff of any rate and channels are only read;
    with --from-video those of `build jav` are searched for as well.

    \b
      javisc build audio /data --corpus all --out DS
      javisc build audio /data --corpus esc50 --corpus clotho=/mnt/Clotho --corpus-split all --out DS

    What goes with nothing is counted and listed: files in DS/rejected.parquet, annotations in DS/unmatched.parquet.
    """
    from javisc.compiler.recipe import PRESETS

    recipe = changed(PRESETS["audio"], options, "max_seconds", "sample_rate", "channels")

    def inputs(say: Callable[[str], None]) -> Any:
        from javisc.compiler.inputs.local import AUDIO_SUFFIXES, VIDEO_SUFFIXES  # when a worker has started beside it
        from javisc.compiler.inputs.raw import from_raw

        suffixes = AUDIO_SUFFIXES | VIDEO_SUFFIXES if from_video else AUDIO_SUFFIXES
        if options["finish"]:
            return None
        if corpus:
            return corpus_inputs(raw, corpus, corpus_split, "audio", captions, options, say, suffixes)
        return from_raw(
            raw,
            out=options["out"],
            captions=captions,
            require_caption=require_caption,
            suffixes=suffixes,
            say=say,
        )

    return run_build(inputs, recipe, **options)
