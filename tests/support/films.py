"""Six small sounding films with their captions, and the dataset that `javisc build jav` makes of them: built once and shared."""

from __future__ import annotations

import csv
import shutil
from dataclasses import dataclass
from pathlib import Path

from support.raw import write_clip

#: What the table of captions says, by file; None: it has no row, "": its cell is empty.
CAPTIONS: dict[str, str | None] = {
    "a dog.mp4": "a dog barks, then a car passes",
    "dog park.MOV": "Dogs run in a park",
    "rain.mov": 'rain on a roof, "quoted"',
    "sea.MKV": "waves at the sea",
    "sub/ball.mp4": "",
    "sub/wind.mp4": None,
}
SECONDS = 2.3
FRAMES = 55


@dataclass(frozen=True)
class Films:
    """root: a working folder that holds RAW, captions.csv and DS. `given`: the caption of each relpath, None without one."""

    root: Path

    @property
    def raw(self) -> Path:
        return self.root / "RAW"

    @property
    def dataset(self) -> Path:
        return self.root / "DS"

    @property
    def given(self) -> dict[str, str | None]:
        return {name: text or None for name, text in CAPTIONS.items()}

    def copy(self, to: Path) -> Films:
        """The same folder elsewhere, for a test that changes it. Raw paths in the manifest still name the first one."""
        return Films(Path(shutil.copytree(self.root, to, dirs_exist_ok=True)))


def write(root: Path) -> Films:
    """Write RAW and captions.csv: six films and a file that is none."""
    films = Films(root)
    for seed, name in enumerate(CAPTIONS):
        write_clip(films.raw / name, seconds=SECONDS, size=(96, 64), seed=seed)
    (films.raw / "broken.mp4").write_text("this is no film")
    with (root / "captions.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["path", "text"])
        table.writerows((f"RAW/{name}", text) for name, text in CAPTIONS.items() if text is not None)
    return films


def build(films: Films) -> Films:
    """Compile RAW into DS, with its captions and without splits."""
    from javisc.compiler.build import BuildOptions
    from javisc.compiler.build import build as compile_all
    from javisc.compiler.inputs.raw import from_raw
    from javisc.compiler.recipe import PRESETS
    from support.sane import sane

    recipe = PRESETS["jav"].replace(encoder_preset="ultrafast")
    table = films.root / "by relpath.csv"
    with table.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["relpath", "text"])
        rows.writerows((name, text) for name, text in CAPTIONS.items() if text is not None)
    inputs = from_raw([str(films.raw)], out=str(films.dataset), captions=str(table))
    compile_all(inputs, recipe, films.dataset, BuildOptions(workers=2, shard_samples=4))
    sane(films.dataset, captions=films.given, split=(), inputs=7, media=6)
    return films
