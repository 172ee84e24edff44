"""A user's own class that a run calls: called with all it needs, changing nothing; and what is wrong with one, in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from javisc.manifests.errors import UserError
from javisc.trainer.engine.hooks import METHODS, Hook, Run, hook
from support.toy_training import losses, run


class Written(Hook):
    """Writes down what it was called for."""

    told: list[str] = []  # noqa: RUF012

    def started(self, run: Run) -> None:
        Written.told.append(f"started {run.step}")

    def stepped(self, run: Run) -> None:
        torch.rand(3)  # what a hook draws changes nothing
        with run.evaluating() as model, run.meter.paused():
            assert not model.training
        Written.told.append(f"stepped {run.step}")

    def validated(self, run: Run, metrics: Any) -> None:
        Written.told.append(f"validated {sorted(metrics)}")

    def saved(self, run: Run, folder: Path) -> None:
        assert (folder / "model.safetensors").exists()
        Written.told.append(f"saved {folder.name}")

    def ended(self, run: Run, why: str) -> None:
        Written.told.append(f"ended {why}")


def test_hooks_are_called_and_change_nothing(tmp_path: Path) -> None:
    overrides = ["run.steps=2", "run.validate_every=2", "run.log_every=1", "run.checkpoint_every=0"]
    run(tmp_path / "plain", overrides)
    run(tmp_path / "hooked", overrides, hooks=[hook(f"{__name__}:Written")])
    seen = ["started 0", "stepped 1", "stepped 2", "validated ['accuracy_1']", "saved best", "saved last", "ended done"]
    assert Written.told == seen
    assert losses(tmp_path / "plain") == losses(tmp_path / "hooked")


OWN = """from javisc.trainer.engine.hooks import Hook

class Own(Hook):
    def METHOD(self, run, *rest):
        self.nothing.there

class Typo(Hook):
    def on_step(self, run): ...

class Asks(Hook):
    def __init__(self, path): ...

class Other:
    def stepped(self, run): ...
"""


@pytest.mark.parametrize("method", METHODS)
def test_an_error_in_a_hook_is_told_with_its_line(method: str, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN.replace("METHOD", method))
    step = {"started": 0, "stepped": 1}.get(method, 2)
    said = (
        rf"own\.py:Own: {method} failed at step {step}: AttributeError: .* 'nothing' \(own\.py, line 5\); .* --resume"
    )
    with pytest.raises(UserError, match=said) as caught:
        run(
            tmp_path,
            ["run.steps=2", "run.validate_every=2", "run.checkpoint_every=0"],
            hooks=[hook(f"{tmp_path}/own.py:Own")],
        )
    assert isinstance(caught.value.__cause__, AttributeError)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nowhere:Hook", r"there is no module nowhere; give a file, as hooks\.py:Hook, or set PYTHONPATH"),
        ("json", "write MODULE:CLASS or FILE.py:CLASS"),
        (":Hook", "write MODULE:CLASS or FILE.py:CLASS"),
        ("json:nothing", "json has no nothing"),
        ("json:JSONDecoder", r"JSONDecoder is no subclass of javisc\.trainer\.engine\.hooks\.Hook"),
        ("pathlib:PurePath.parts", "pathlib has no PurePath.parts"),
        ("{}/gone.py:Own", r"there is no file .*gone\.py"),
        ("{}/own.py:Onw", r"has no Onw; did you mean Own\?"),
        ("{}/own.py:Other", "Other is no subclass"),
        ("{}/own.py:Asks", r"Asks\(\) failed: TypeError: .*'path'; it is made without arguments"),
        ("{}/own.py:Typo", "Typo defines on_step, and a run calls started, stepped, validated, saved, ended"),
        ("{}/needs.py:Own", r"No module named 'not_there' \(needs\.py, line 1\); install it"),
        ("{}/broken.py:Own", r"cannot be imported: SyntaxError: .*\(broken\.py, line 1\)"),
    ],
)
def test_a_hook_that_is_none_is_told_in_one_line(name: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN.replace("METHOD", "stepped"))
    (tmp_path / "needs.py").write_text("import not_there")
    (tmp_path / "broken.py").write_text("def f(:")
    with pytest.raises(UserError, match=f"^--hook .*{said}") as caught:
        hook(name.format(tmp_path))
    assert "\n" not in str(caught.value)
