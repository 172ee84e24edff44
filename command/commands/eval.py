"""`javisc eval`: a trained model's metrics on a dataset."""

from __future__ import annotations

import json

import click


@click.group("eval", context_settings={"help_option_names": ["-h", "--help"]})
def eval_() -> None:
    """Measure a trained model on a split of a dataset."""


@eval_.command("sync")
@click.argument("checkpoint")
@click.option("--data", multiple=True, required=True, metavar="DS", help="A dataset; may be given several times.")
@click.option(
    "--split", default="test", show_default=True, metavar="NAME", help="The manifest's split; 'all' takes every row."
)
@click.option("--random-crops", is_flag=True, help="Draw offsets and starts, whatever the manifest fixes.")
@click.option("--iter-times", type=click.IntRange(1, 1000), default=1, show_default=True, help="Pool so many passes.")
@click.option("--batch-size", type=click.IntRange(1, 4096), default=10, show_default=True)
@click.option(
    "--audio-advance-sec",
    type=click.FloatRange(0, 1),
    metavar="S",
    help="Take the sound so much later than the clock says.  [default: what the checkpoint is known to want, else 0]",
)
@click.option("--threads", type=click.IntRange(1, 256), default=2, show_default=True, help="Decoding threads.")
def sync(
    checkpoint: str,
    data: tuple[str, ...],
    split: str,
    random_crops: bool,
    iter_times: int,
    batch_size: int,
    audio_advance_sec: float | None,
    threads: int,
) -> None:
    """Print the metrics of a sync selector, CHECKPOINT (a published .pt, or the folder 'best' of a run), as JSON.

    Crops are the manifest's fixed ones where it has them, as in the published evaluation.
    """
    import torch

    from javisc.trainer.tasks.selector import evaluate_selector
    from javisc.trainer.use.selector import load_selector, with_advance

    model, transforms = load_selector(checkpoint)
    transforms = with_advance(transforms, audio_advance_sec)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    metrics = evaluate_selector(
        model,
        transforms,
        data,
        None if split == "all" else split,
        fixed=not random_crops,
        times=iter_times,
        batch_size=batch_size,
        threads=threads,
    )
    click.echo(json.dumps({**metrics, "audio_advance_sec": transforms.audio_advance_sec}, indent=1))
