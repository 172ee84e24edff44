"""`javisc predict`: what a trained selector says of video files."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("videos", metavar="VIDEO…", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--checkpoint",
    required=True,
    metavar="C",
    help="A published .pt of SparseSync or Synchformer, or the folder 'best' of a run.",
)
@click.option(
    "--offset-sec", type=float, default=0.0, show_default=True, metavar="S", help="Take the sound so much later."
)
@click.option(
    "--v-start-sec", type=float, default=0.0, show_default=True, metavar="S", help="Where the picture's crop starts."
)
@click.option(
    "--fps", type=click.IntRange(1, 240), default=25, show_default=True, help="The rate the selector was trained at."
)
@click.option(
    "--audio-advance-sec",
    type=click.FloatRange(0, 1),
    metavar="S",
    help="Take the sound so much later than the clock says.  [default: what the checkpoint is known to want, else 0]",
)
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON per video.")
def predict(
    videos: tuple[Path, ...],
    checkpoint: str,
    offset_sec: float,
    v_start_sec: float,
    fps: int,
    audio_advance_sec: float | None,
    as_json: bool,
) -> int:
    """Rank the offsets between picture and sound of video files. Positive: the sound shows what will be seen later."""
    import torch

    from javisc.compiler.reasons import Rejected
    from javisc.manifests.errors import UserError
    from javisc.trainer.use.selector import load_selector, told, with_advance
    from javisc.trainer.use.selector import predict as run

    model, transforms = load_selector(checkpoint)
    transforms = with_advance(transforms, audio_advance_sec)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    failed = 0
    for video in videos:
        if video.is_dir() or not video.exists():
            failed += 1
            click.echo(
                f"javisc: {video}: {'a folder: name its videos' if video.exists() else 'no such file'}", err=True
            )
            continue
        try:
            found = run(model, transforms, video, offset_sec=offset_sec, v_start_sec=v_start_sec, fps=fps)
        except (Rejected, UserError) as error:
            failed += 1
            reason = f"{video}: {error.reason}: {error.message}" if isinstance(error, Rejected) else str(error)
            click.echo(f"javisc: {reason}", err=True)
            continue
        if as_json:
            click.echo(json.dumps({"path": str(video), **asdict(found)}))
        else:
            click.echo(f"{video}\n{told(found)}\n")
    return 1 if failed else 0
