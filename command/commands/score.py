"""`javisc score`: how well picture and sound of a whole dataset belong together, in the eyes of a trained selector."""

from __future__ import annotations

from typing import Any

import click

from javisc.commands.build_options import ENGINE_OPTIONS


@click.command()
@click.argument("source", metavar="DS|TABLE")
@click.option(
    "--checkpoint",
    required=True,
    metavar="C",
    help="A published .pt of SparseSync or Synchformer, or the folder 'best' of a run.",
)
@click.option(
    "--out",
    help="The view to write: a new folder, or one table if it ends in .parquet.  [default: a field of DS]",
)
@click.option(
    "--as",
    "name",
    metavar="NAME",
    help="The field of DS whose columns the scores are; `javisc annotate DS --undo NAME` takes "
    "them back.  [default: scores]",
)
@click.option(
    "--crops", type=click.IntRange(1, 100), default=3, show_default=True, help="Crops of a longer clip, at most."
)
@click.option(
    "--fps", type=click.IntRange(1, 240), default=25, show_default=True, help="The rate the selector was trained at."
)
@click.option(
    "--short-side",
    type=click.IntRange(16, 4096),
    help="The pictures' short side that it was trained at.  [default: 256 for inputs of 224, else the input's size]",
)
@click.option("--device", type=click.Choice(["auto", "cuda", "cpu"]), default="auto", show_default=True)
@click.option(
    "--workers",
    type=click.IntRange(1, 1024),
    help="Processes.  [default: one per GPU, or per core; on a cluster as many as fit]",
)
@click.option(
    "--batch-size", type=click.IntRange(1, 4096), help="Crops of a batch.  [default: 16 on a GPU, 1 on a CPU]"
)
@click.option("--threads", type=click.IntRange(1, 256), help="Decoding threads of a process.")
@click.option(
    "--precision",
    type=click.Choice(["auto", "fp32", "fp16", "bf16"]),
    default="auto",
    show_default=True,
    help="auto: fp16 on a GPU, fp32 on a CPU.",
)
@click.option(
    "--parts", metavar="DIR", help="Where finished parts are kept, for resuming.  [default: DS/.score or .OUT.score]"
)
@click.option("--part-size", type=click.IntRange(1, 100_000), default=100, show_default=True, help="Clips of a part.")
@click.option(
    "--audio-advance-sec",
    type=click.FloatRange(0, 1),
    metavar="S",
    help="Take the sound so much later than the clock says.  [default: what the checkpoint is known to want, else 0]",
)
@click.option(
    "--preset",
    type=click.Choice(["av-benchmark", "javisbench"]),
    help="Compute desync as that evaluator does: its windows, whole pictures, exact sound, fp32. For Synchformer.",
)
@click.option(
    "--keep-features",
    metavar="NAME",
    help="Keep what Synchformer's networks say of segments as the field NAME of DS (43 kB a segment, full size): a later score, "
    "with another head too, whose windows need no other segments reads it and skips nearly all of the work.",
)
@ENGINE_OPTIONS[0]
@ENGINE_OPTIONS[1]
@click.option("--dry-run", is_flag=True, help="Say what it would cost, from the manifest alone, and score nothing.")
@click.option("--relative", is_flag=True, help="Name the datasets relative to the view, so that all can move together.")
@click.option("--force", is_flag=True, help="Replace a view or table that is there.")
def score(
    source: str,
    checkpoint: str,
    out: str | None,
    name: str | None,
    crops: int,
    fps: int,
    short_side: int | None,
    device: str,
    workers: int | None,
    batch_size: int | None,
    threads: int | None,
    precision: str,
    parts: str | None,
    part_size: int,
    audio_advance_sec: float | None,
    preset: str | None,
    keep_features: str | None,
    engine: str,
    address: str | None,
    dry_run: bool,
    relative: bool,
    force: bool,
) -> None:
    """Rate every clip's sync: columns sync_offset (seconds), sync_confidence and sync_margin (0 to 1) of the manifest, desync
    (seconds apart, 0 is in sync), synchronizable (0 to 1, by a checkpoint that tells it) and audio_advance_sec. They are a field
    of DS, which a build that adds clips keeps; no shard changes.

    Kill it at any moment: the same command goes on where it stood. Then keep what is in sync:

    \b
      javisc score DS --checkpoint runs/a/best
      javisc filter DS 'sync_confidence > 0.5 and abs(sync_offset) <= 0.2' --out GOOD
    """
    from javisc.manifests.outputs import check_output
    from javisc.trainer.use.score import ScoreOptions
    from javisc.trainer.use.score import score as run
    from javisc.trainer.use.score_forecast import forecast

    if out:
        check_output(out, force=force)
    options = ScoreOptions(
        crops,
        fps,
        short_side,
        device,
        workers,
        batch_size,
        threads,
        precision,
        part_size,
        audio_advance_sec,
        preset or "",
        keep_features or "",
        engine,
        address,
    )
    if dry_run:
        _tell(forecast(source, checkpoint, options))
        return
    say = lambda line: click.echo(line, err=True)  # noqa: E731
    done = run(source, checkpoint, out, options=options, parts=parts, relative=relative, name=name, say=say)
    for line in done.named:
        click.echo(f"javisc: {line}", err=True)
    for reason, count in done.reasons.items():
        click.echo(f"{count:>12} without a score: {reason}")
    scored = done.rows - sum(done.reasons.values())
    if keep_features:
        click.echo(
            f"{done.kept:>12} clips' features kept as the field {keep_features}"
            + ("" if done.kept else ": nothing new to keep")
        )
    click.echo(f"{scored:>12} of {done.rows} scored, {done.fresh} looked at now → {out or source}")


def _tell(cost: Any) -> None:
    each = cost.flop / max(cost.clips, 1) / 1e12
    click.echo(f"{cost.clips:>12} clips, {cost.pieces} crops or segments, {cost.windows} windows")
    click.echo(f"{cost.flop / 1e12:>12.4g} TFLOP, {each:.3g} a clip")
    if cost.known:
        click.echo(f"{cost.known:>12} of them have their segments' features in a field: only windows are computed")
    if cost.keeps:
        click.echo(f"{cost.keeps / 1e6:>12.4g} MB of features would be kept")
    for reason, count in cost.reasons.items():
        click.echo(f"{count:>12} without a score: {reason}")
