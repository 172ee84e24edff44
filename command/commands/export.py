"""`javisc export`: tables that other trainers read."""

from __future__ import annotations

import click

from javisc.manifests.errors import UserError


@click.command()
@click.argument("inputs", metavar="DS…", nargs=-1, required=True)
@click.option("--csv", metavar="FILE", help="JavisDiT's table to write, e.g. train_jav.csv.")
@click.option("--jsonl", metavar="FILE", help="JSON lines to write instead: path, caption, audio_path.")
@click.option("--card", is_flag=True, help="Write DS/README.md, by which Hugging Face `datasets` opens DS.")
@click.option(
    "--energon", metavar="DIR", help="A folder to write instead that Megatron-Energon opens: shards by split, .nv-meta."
)
@click.option(
    "--kind",
    type=click.Choice(["audio", "prior", "jav"]),
    default="jav",
    show_default=True,
    help="Which of JavisDiT's three tables.",
)
@click.option(
    "--javisdit",
    type=click.Choice(["v0.1", "v1.0"]),
    default="v0.1",
    show_default=True,
    help="Whose table: v1.0 wants clips of 16 frames a second (--recipe jav16) and has the column speech.",
)
@click.option("--media", metavar="DIR", help="Extract the clips there and let the table name them.")
@click.option(
    "--audio-format",
    type=click.Choice(["flac", "wav"]),
    default="flac",
    show_default=True,
    help="Format of extracted sound.",
)
@click.option("--allow-no-caption", is_flag=True, help="Keep rows without a caption.")
def export(
    inputs: tuple[str, ...],
    csv: str | None,
    jsonl: str | None,
    card: bool,
    energon: str | None,
    kind: str,
    javisdit: str,
    media: str | None,
    audio_format: str,
    allow_no_caption: bool,
) -> None:
    """Write datasets as what other trainers read: JavisDiT's CSV, JSON lines of path and caption, a card for Hugging Face,
    shards for Megatron-Energon.

    \b
        javisc export DS --csv train_jav.csv --media MEDIA
        javisc export DS --jsonl train.jsonl --media MEDIA
        javisc export DS --card
        javisc export DS --energon OUT
    """
    from javisc.manifests.exports import export_jsonl, write_card
    from javisc.manifests.io import scan_many
    from javisc.manifests.javisdit import export_csv

    if sum((csv is not None, jsonl is not None, card, energon is not None)) != 1:
        raise UserError("export: give one of --csv FILE, --jsonl FILE, --card and --energon DIR")
    if card:
        for path in inputs:
            click.echo(f"{write_card(path)}: datasets.load_dataset({path!r}) opens the shards")
        return
    frame = scan_many(inputs)[1]
    if energon is not None:
        from javisc.manifests.energon import export_energon

        told = ", ".join(f"{count} {split}" for split, count in export_energon(frame, energon).items())
        click.echo(f"{told} → {energon}: megatron.energon.get_train_dataset({energon!r}, …) opens it")
        return
    if jsonl is not None:
        out = jsonl
        done = export_jsonl(frame, out, media=media, audio_format=audio_format, allow_no_caption=allow_no_caption)
    else:
        out = str(csv)
        done = export_csv(
            frame,
            out,
            kind,
            media=media,
            audio_format=audio_format,
            allow_no_caption=allow_no_caption,
            version=javisdit,
        )
    click.echo(f"{done.rows} rows → {out}")
    if media:
        click.echo(f"{done.files} files in {media}: path and audio_path name them")
    else:
        click.echo(
            "path and audio_path name the raw source files; the other columns describe the compiled clips (--media DIR "
            "extracts those)"
        )
        if done.windows:
            click.echo(
                f"{done.windows} rows are windows of longer files, which the table names whole: they need --media"
            )
    if done.without_media:
        click.echo(f"{done.without_media} rows left out: without {'sound' if kind == 'audio' else 'sound or picture'}")
    if done.without_caption and not allow_no_caption:
        click.echo(f"{done.without_caption} rows left out: without a caption (--allow-no-caption keeps them)")
    if kind == "prior" and done.without_unpaired:
        click.echo(
            f"{done.without_unpaired} rows have no unpaired_audio_path: JavisDiT's loader fails on them (javisc filter "
            f"'unpaired_audio_path is not null')"
        )
