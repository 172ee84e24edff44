"""`javisc export`: JavisDiT's tables."""

from __future__ import annotations

import click


@click.command()
@click.argument("inputs", metavar="DS…", nargs=-1, required=True)
@click.option("--csv", "out", required=True, metavar="FILE", help="The table to write, e.g. train_jav.csv.")
@click.option(
    "--kind",
    type=click.Choice(["audio", "prior", "jav"]),
    default="jav",
    show_default=True,
    help="Which of JavisDiT's three tables.",
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
    inputs: tuple[str, ...], out: str, kind: str, media: str | None, audio_format: str, allow_no_caption: bool
) -> None:
    """Write datasets as the CSV that JavisDiT's trainer reads: its columns, its order, its types."""
    from javisc.manifests.io import scan_many
    from javisc.manifests.javisdit import export_csv

    done = export_csv(
        scan_many(inputs)[1], out, kind, media=media, audio_format=audio_format, allow_no_caption=allow_no_caption
    )
    click.echo(f"{done.rows} rows → {out}")
    if media:
        click.echo(f"{done.files} files in {media}: path and audio_path name them")
    else:
        click.echo(
            "path and audio_path name the raw source files; the other columns describe the compiled clips (--media DIR "
            "extracts those)"
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
