"""`javisc build sync`: clips for SparseSync, in its form, splits and evaluation."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from javisc.commands.build_config import BuildCommand
from javisc.commands.build_options import build_options, run_build
from javisc.commands.recipe_options import changed, recipe_options
from javisc.manifests.errors import UserError

FOLDER = click.Path(file_okay=False, path_type=Path)
FILE = click.Path(dir_okay=False, path_type=Path)
SETTINGS = ("fps", "short_side", "crf", "max_seconds")


@click.command(cls=BuildCommand, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("raw", nargs=-1, metavar="RAW…")
@click.option(
    "--corpus",
    required=True,
    metavar="NAME[=ROOT]",
    help="lrs3, vggsound, vggsound-sparse, vggsound-sparse-clean or audioset, with published splits and filters; folder: every "
    "video below RAW.",
)
@click.option("--corpus-split", multiple=True, metavar="NAME", help="Take train, val or test only; may be repeated.")
@click.option(
    "--lists", type=FOLDER, metavar="DIR", help="SparseSync's or Synchformer's data/: split, filter and class lists."
)
@click.option("--lrs3-meta", type=FOLDER, metavar="DIR", help="LRS3's texts: cut its clips out of full videos ID.mp4.")
@click.option(
    "--fixed-offsets", type=FILE, multiple=True, metavar="CSV", help="Published lists of offsets; may be repeated."
)
@click.option(
    "--offset-grid",
    default="21:2:5",
    show_default=True,
    metavar="N:MAX:CROP",
    help="Classes, largest offset and crop (seconds) where offsets are drawn.",
)
@click.option(
    "--face-crop/--no-face-crop",
    default=None,
    help="Crop to the square around the face.  [default: with --lrs3-meta at --short-side 224]",
)
@recipe_options(
    *SETTINGS,
    preset="sync",
    crf=20.0,
    help={
        "short_side": "Pixels of the shorter side; 224 with --lrs3-meta crops to the face.",
        "crf": "x264's quality; SparseSync's own files have 10.",
        "max_seconds": "Cut clips to S seconds; SparseSync uses the first 10.",
    },
)
@click.option(
    "--min-seconds",
    type=float,
    default=9.0,
    show_default=True,
    metavar="S",
    help="Refuse shorter clips: they cannot hold every offset.",
)
@click.option(
    "--as-files", is_flag=True, help="Write SparseSync's folder of MP4 files and its lists instead of shards."
)
@build_options
def sync(
    raw: tuple[str, ...],
    corpus: str,
    corpus_split: tuple[str, ...],
    lists: Path | None,
    lrs3_meta: Path | None,
    fixed_offsets: tuple[Path, ...],
    offset_grid: str,
    face_crop: bool | None,
    min_seconds: float,
    as_files: bool,
    **options: Any,
) -> int:
    """Compile clips for SparseSync: 25 fps, short side 256, 16 kHz mono, with its splits and fixed evaluation offsets.

    \b
      javisc build sync /data --corpus vggsound --lists SparseSync/data --out DS
      javisc build sync /data --corpus lrs3 --lrs3-meta /data/lrs3_txt --short-side 224 --out DS
      javisc build sync /data/clips --corpus folder --split train=0.9,val=0.1 --as-files --out DIR

    Without lists, splits follow SparseSync's rule. Offsets and starts are the manifest's columns offset_sec and vstart_sec: of
    the --fixed-offsets lists, else drawn for val and test. Sound is as long as the picture: the 40 ms that SparseSync's
    preparation of LRS3 cuts off are kept.
    """
    from javisc.compiler.inputs.raw import from_raw
    from javisc.compiler.recipe import PRESETS
    from javisc.compiler.sparsesync.inputs import find_sync, from_sync
    from javisc.compiler.sparsesync.offsets import Offsets
    from javisc.compiler.sparsesync.rules import offset_grid as parse_grid
    from javisc.compiler.sparsesync.rules import read_fixed_offsets

    recipe = changed(PRESETS["sync"], options, *SETTINGS)
    if not 0.04 <= min_seconds <= 86400:
        raise UserError(f"--min-seconds {min_seconds}: 0.04 to 86400 is allowed; SparseSync needs 9")
    recipe = recipe.replace(min_frames=math.ceil(min_seconds * recipe.rate))
    grid = parse_grid(offset_grid)
    out = options["out"]
    if as_files:
        ranged = options["shard_range"] is not None or options["part"] is not None
        if "://" in out or ranged or options["write_plan"]:
            raise UserError(
                "--as-files writes a local folder in one run: give a folder as --out and no --part, --shard-range or --write-plan"
            )
        if (Path(out) / "manifest.parquet").exists() and not (Path(out) / ".dataset").exists():
            raise UserError(
                f"--out {out}: its files are written already; give another folder, or build shards, which can grow"
            )
        options["out"] = os.path.join(out, ".dataset")  # noqa: PTH118 (a name may be undecodable)
    face = face_crop if face_crop is not None else lrs3_meta is not None and recipe.short_side == 224
    source = None
    if corpus != "folder":
        if len(raw) != 1:
            raise UserError(f"--corpus {corpus} takes one RAW, the folder that holds the corpus; {len(raw)} were given")
        source = find_sync(corpus, raw[0], lists=lists, meta=lrs3_meta, face=face)
    elif lists or lrs3_meta or face or corpus_split:
        raise UserError(
            "--corpus folder takes every video: leave --lists, --lrs3-meta, --face-crop and --corpus-split out"
        )

    def inputs(say: Callable[[str], None]) -> Any:
        if options["finish"]:
            return None
        if source is None:
            return from_raw(raw, out=options["out"], say=say)
        return from_sync(source, out=options["out"], splits=corpus_split, dry=options["plan_only"], say=say)

    if source is not None and not fixed_offsets and not options["finish"]:
        fixed_offsets = source.corpus.offset_lists(source.root)
    fixed = read_fixed_offsets(fixed_offsets) if fixed_offsets else None
    offsets = Offsets(grid, None if source is None else source.corpus.name, fixed)
    code = run_build(inputs, recipe, offsets=offsets, **options)
    if any(options[name] for name in ("plan_only", "write_plan", "shard_range", "part")):
        return code
    clip_of = source.clip if source is not None else _plain
    if as_files:
        _as_files(Path(out), clip_of, source, recipe, grid, options["workers"])
    return code


def _plain(relpath: str) -> str:
    from javisc.compiler.inputs.identity import without_extension

    return without_extension(relpath)


def _as_files(
    out: Path, clip_of: Callable[[str], str], source: Any, recipe: Any, grid: Any, workers: int | None
) -> None:
    from javisc.compiler.sparsesync.files import folder_name, keep_tables, write_files, write_texts

    lrs3 = source is not None and source.corpus.name == "lrs3"
    folder = folder_name(
        float(recipe.rate), recipe.short_side, recipe.sample_rate, lrs3=lrs3, face=source is not None and source.face
    )
    name = source.corpus.prefix if source is not None else out.absolute().name
    done = write_files(str(out / ".dataset"), out / folder, clip_of, workers=workers, grid=grid, name=name)
    if source is not None and source.meta is not None:
        write_texts(str(out / ".dataset"), out / folder, clip_of, source.meta, face=source.face)
    keep_tables(out / ".dataset", out)
    clashes = f"; {done.clashes} clips left out, whose names others have" * bool(done.clashes)
    click.echo(f"{done.written} clips written → {out / folder}, lists in {out / 'data'}{clashes}")
