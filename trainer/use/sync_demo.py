"""The demonstration that training works: a sync selector from nothing, on clips whose offsets are known, in minutes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from javisc.compiler.demo.acts import HELD_OUT, LEARNT
from javisc.compiler.demo.sync import make_datasets, shifted_clip
from javisc.trainer.engine.loop import train
from javisc.trainer.tasks.registry import load
from javisc.trainer.tasks.selector import evaluate_selector
from javisc.trainer.use.selector import Prediction, load_selector, predict

#: How late, in seconds, the sound of the clips comes that are shifted on purpose.
LATE = 0.3


@dataclass(frozen=True)
class Learnt:
    """What came of it. Metrics are `sync_metrics` over new clips: of the kinds of event learnt, and of kinds never seen.

    `shifted`: file → what the selector said of it; in each the sound comes LATE seconds after the picture.
    """

    run: Path
    seconds: float
    chance: float
    known: dict[str, float]
    unseen: dict[str, float]
    shifted: dict[Path, Prediction]


def learn(
    out: Path,
    *,
    clips: int,
    test_clips: int,
    steps: int | None = None,
    seed: int = 1337,
    workers: int | None = None,
    say: Callable[[str], None],
) -> Learnt:
    """Make datasets in `out`, train the recipe sync-demo on them, measure it and let it rate shifted clips. Raises UserError."""
    made = make_datasets(out, clips=clips, test_clips=test_clips, workers=workers, say=say)
    changes = [f"data.paths=[{made.learn}]", f"seed={seed}"]
    if steps is not None:
        changes += [f"run.steps={steps}", f"run.validate_every={steps}", f"run.checkpoint_every={steps}"]
    recipe, task = load("sync-demo", changes)
    say(f"training sync-demo from scratch, {recipe.run.steps} steps")
    start = time.monotonic()
    train(recipe, task, out / "run")
    seconds = time.monotonic() - start
    model, transforms = load_selector(str(out / "run" / "best"))

    def measured(data: Path, split: str) -> dict[str, float]:
        return evaluate_selector(model, transforms, [str(data)], split, fixed=False, times=4, batch_size=16)

    shifted = {}
    for kind in (LEARNT[0], HELD_OUT[0]):
        path = shifted_clip(out, kind, LATE)
        shifted[path] = predict(model, transforms, path, v_start_sec=1.0)
    return Learnt(
        out / "run", seconds, 1 / transforms.classes, measured(made.learn, "val"), measured(made.test, "test"), shifted
    )


def told(learnt: Learnt) -> str:
    """The result in a few lines."""
    lines = [f"trained for {learnt.seconds:.0f} s; the right one of {round(1 / learnt.chance)} offsets was named"]
    for name, found in (("new clips of the kinds it learnt", learnt.known), ("kinds it never saw", learnt.unseen)):
        share, near = found["accuracy_1"], found["accuracy_1_tol1"]
        lines.append(
            f"  {name}: {share:.0%} of {found['clips']:.0f} times ({share / learnt.chance:.1f} × chance, which is "
            f"{learnt.chance:.1%}), within one step {near:.0%}"
        )
    for path, said in learnt.shifted.items():
        first = said.ranked[0]
        verdict = "right" if abs(first.offset_sec + LATE) < 1e-3 else "wrong"
        lines.append(
            f"  {path.name}, sound made {LATE:.2f} s late: ranked first {first.offset_sec:+.2f} s "
            f"(p={first.probability:.2f}), {verdict}"
        )
    return "\n".join(lines)
