"""What `javisc render` is told and what it finds out: quality, what clips are larger, whether the films are what they were."""

from __future__ import annotations

import shutil
from pathlib import Path

import polars as pl
import pytest
from click.testing import CliRunner

from javisc.cli import cli
from javisc.compiler.build import BuildOptions, build
from javisc.compiler.fields.render import render
from javisc.compiler.inputs.raw import from_raw
from javisc.compiler.recipe import PRESETS
from javisc.manifests.errors import UserError
from javisc.manifests.io import Dataset
from support.raw import write_clip
from support.sane import sane


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with RAW, films of 96 × 64 and 72 × 48, and DS, which was made of them."""
    root = tmp_path_factory.mktemp("choices")
    for seed, size in enumerate(((96, 64), (72, 48))):
        write_clip(root / f"RAW/{seed}.mp4", seconds=0.5, size=size, seed=seed)
    recipe = PRESETS["jav"].replace(encoder_preset="ultrafast")
    build(from_raw([str(root / "RAW")], captions=None), recipe, root / "DS", BuildOptions(workers=1))
    sane(root / "DS", split=(), inputs=2)
    return root


def test_a_rendition_has_the_quality_that_is_asked_for_and_clips_that_are_larger(made: Path, tmp_path: Path) -> None:
    ds = Path(shutil.copytree(made / "DS", tmp_path / "DS"))

    def bytes_of(*words: object) -> dict[str, int]:
        name = f"as{len(list((ds / 'fields').glob('*'))) if (ds / 'fields').exists() else 0}"
        arguments = ["render", ds, "--short-side", 48, "--workers", 1, "--as", name, *words]
        done = CliRunner().invoke(cli, [str(word) for word in arguments], catch_exceptions=False)
        assert f"{ds}: field {name}: 1 of 2 samples, " in done.stdout
        assert "1 clips are as small already" in done.stdout and "do not decode" not in done.stdout
        field = next(field for field in Dataset.open(ds).fields() if field.name == name)
        return {field.header["settings"]["recipe"]["crf"]: int(field.table().collect()["mp4_size"].sum())}

    (usual, fine), (crf, coarse) = *bytes_of().items(), *bytes_of("--crf", 40).items()
    assert (usual, crf) == (12.0, 40.0) and coarse < 0.7 * fine
    with pytest.raises(UserError, match="--short-side 64: no clip of .* is larger than that"):
        render(str(ds), 64, workers=1)


def test_films_that_are_not_what_they_were_are_not_taken(made: Path, tmp_path: Path) -> None:
    """All there: the films are scaled. One is of another size: the clips are, and that is said."""

    def made_from(change: str) -> str:
        ds = Path(shutil.copytree(made / "DS", tmp_path / change))
        raw = Path(shutil.copytree(made / "RAW", tmp_path / f"{change}-raw"))
        if change == "longer":
            (raw / "0.mp4").write_bytes((raw / "0.mp4").read_bytes() + b"\\0")
        moved = pl.col("path").str.replace(str(made / "RAW"), str(raw), literal=True)
        pl.read_parquet(ds / "manifest.parquet").with_columns(moved).write_parquet(ds / "manifest.parquet")
        said: list[str] = []
        found = render(str(ds), 48, workers=1, say=said.append).made_from
        assert ("since not all of its sources are there" in "".join(said)) == (found == "clips")
        return found

    assert [made_from(change) for change in ("kept", "longer")] == ["sources", "clips"]
