"""Clips to learn sync from: many kinds of event whose sound is in time by construction, and other kinds kept for the test."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from javisc.compiler.build import BuildOptions, build
from javisc.compiler.demo.acts import HELD_OUT, LEARNT
from javisc.compiler.demo.jav import MARK, write_scene
from javisc.compiler.demo.scenes import Scene, act_scene
from javisc.compiler.inputs.raw import from_raw
from javisc.compiler.recipe import PRESETS
from javisc.compiler.run.spread import spread
from javisc.manifests.errors import UserError

SECONDS = 5.0
#: Pixels of the raw clips, and of the compiled ones: what the recipe sync-demo takes.
RAW_SIDE, SIDE = 64, 32
#: Scenes of the test, and those shifted on purpose, have seeds that no scene to learn from has.
_TEST_SEED, _SHIFTED_SEED = 1_000_000, 2_000_000


@dataclass(frozen=True)
class SyncDemo:
    """The datasets: splits train and val of the kinds to learn, split test of kinds that those do not hold."""

    learn: Path
    test: Path
    clips: int
    test_clips: int


def make_datasets(
    out: Path, *, clips: int, test_clips: int, seed: int = 0, workers: int | None = None, say: Callable[[str], None]
) -> SyncDemo:
    """Make and compile both datasets in `out`, which is replaced if a demonstration made it. Raises UserError."""
    fresh(out)
    say(
        f"making {clips} clips of {len(LEARNT)} kinds of event to learn, {test_clips} of {len(HELD_OUT)} others to test"
    )
    wanted = [
        *_scenes(out / "raw" / "learn", LEARNT, clips, seed),
        *_scenes(out / "raw" / "test", HELD_OUT, test_clips, seed + _TEST_SEED),
    ]
    for folder in {path.parent for path, _, _ in wanted}:
        folder.mkdir(parents=True)
    calls = ((path, {"path": str(path), "kind": kind, "seed": seed}, 120.0) for path, kind, seed in wanted)
    for outcome in spread(f"{__name__}:write", calls, workers=workers):
        if outcome.error:
            raise UserError(f"{outcome.call.tag} could not be made: {outcome.error}: {outcome.message}", exit_code=1)
    recipe = PRESETS["sync"].replace(short_side=SIDE, min_frames=int(3 * PRESETS["sync"].rate))
    for name, split in (("learn", {"train": 0.9, "val": 0.1}), ("test", {"test": 1.0})):
        built = build(
            from_raw([str(out / "raw" / name)], captions=None),
            recipe,
            str(out / name),
            BuildOptions(workers=workers, split=split),
        )
        say(f"built {built.samples} samples in {built.seconds:.1f} s: {out / name}")
    return SyncDemo(out / "learn", out / "test", clips, test_clips)


def shifted_clip(out: Path, kind: str, late: float, seed: int = 0) -> Path:
    """A clip like those of the datasets, but in none of them, whose sound comes `late` seconds after the picture."""
    path = out / f"{kind}_late_{late:.2f}.mp4"
    write_scene(_scene(kind, seed + _SHIFTED_SEED), path, late=late)
    return path


def fresh(out: Path) -> None:
    """An empty folder that says whose it is. Raises UserError if another's is there or it cannot be written."""
    try:
        if out.exists():
            if not (out / MARK).is_file():
                raise UserError(f"{out} is there and is not from a demonstration: it is left alone; give another --out")
            shutil.rmtree(out)
        out.mkdir(parents=True)
        (out / MARK).write_text("Made by `javisc demo`, which replaces this folder when it runs again.\n")
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror}; give another --out") from error


def _scene(kind: str, seed: int) -> Scene:
    return act_scene(seed, kind, seconds=SECONDS, size=(RAW_SIDE, RAW_SIDE))


def _scenes(folder: Path, kinds: tuple[str, ...], count: int, first: int) -> list[tuple[Path, str, int]]:
    """(file, kind, seed) of `count` clips that take turns among the kinds."""
    return [
        (folder / f"{kinds[index % len(kinds)]}_{index:05d}.mp4", kinds[index % len(kinds)], first + index)
        for index in range(count)
    ]


def write(path: str, kind: str, seed: int) -> None:
    """In a worker: make one clip."""
    write_scene(_scene(kind, seed), Path(path))
