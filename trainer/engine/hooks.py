"""What a user adds to a run: a class with any of five methods, called in every process. Previews are made this way, too."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from javisc.manifests.errors import UserError
from javisc.trainer.engine.config import Recipe
from javisc.trainer.engine.distributed import World
from javisc.trainer.engine.logs import Logs
from javisc.trainer.engine.meter import Meter
from javisc.trainer.engine.optim import EMA
from javisc.trainer.task import Task


@dataclass
class Run:
    """A run as a hook sees it. `model` has no DDP around it; `step` counts the optimizer's steps that were taken. What takes time
    belongs into `with run.meter.paused():`, so that it does not count as training."""

    recipe: Recipe
    task: Task[Any]
    model: nn.Module
    ema: EMA | None
    folder: Path
    world: World
    logs: Logs
    meter: Meter
    step: int = 0
    #: Names of the samples of this process's last batches.
    keys: list[str] = field(default_factory=list)

    @contextmanager
    def evaluating(self) -> Iterator[nn.Module]:
        """The model in eval mode, with the average's weights where there is one; as before afterwards."""
        if self.ema is not None:
            self.ema.swap()
        self.model.eval()
        try:
            yield self.model
        finally:
            self.model.train()
            if self.ema is not None:
                self.ema.swap()


class Hook:
    """Override what you need. Every process calls every method at the same time, so collectives are allowed; what a method draws
    from torch's generators does not change the run, whose steps are keyed by their number."""

    def started(self, run: Run) -> None:
        """Before the first step, the checkpoint loaded."""

    def stepped(self, run: Run) -> None:
        """After an optimizer step."""

    def validated(self, run: Run, metrics: Mapping[str, float]) -> None:
        """After a validation."""

    def saved(self, run: Run, folder: Path) -> None:
        """After weights were written to `folder`: `best` or `last`."""

    def ended(self, run: Run, why: str) -> None:
        """After the last step: done, terminated or stopped early."""


#: What a hook may define.
METHODS = ("started", "stepped", "validated", "saved", "ended")


class Named(Hook):
    """A user's hook under the name it was given by: an error in it ends the run in one line that says where it is.

    Raises UserError.
    """

    def __init__(self, name: str, made: Hook) -> None:
        self.name, self.made = name, made

    def started(self, run: Run) -> None:
        self._call("started", run)

    def stepped(self, run: Run) -> None:
        self._call("stepped", run)

    def validated(self, run: Run, metrics: Mapping[str, float]) -> None:
        self._call("validated", run, metrics)

    def saved(self, run: Run, folder: Path) -> None:
        self._call("saved", run, folder)

    def ended(self, run: Run, why: str) -> None:
        self._call("ended", run, why)

    def _call(self, method: str, run: Run, *arguments: Any) -> None:
        try:
            getattr(self.made, method)(run, *arguments)
        except UserError:
            raise
        except Exception as error:  # whatever stands in a user's code
            raise UserError(
                f"--hook {self.name}: {method} failed at step {run.step}: {_said(error)}; mend it and go on with --resume, or "
                "leave it out (javisc --debug train … shows the whole trace)"
            ) from error


def hook(name: str) -> Hook:
    """The hook `MODULE:CLASS` or `FILE.py:CLASS`, made without arguments. Raises UserError if it cannot be had, or if it defines
    nothing that a run calls."""
    place, _, attribute = name.rpartition(":")
    if not place or not attribute:
        raise UserError(f"--hook {name}: write MODULE:CLASS or FILE.py:CLASS")
    if place.endswith(".py") and not Path(place).is_file():
        raise UserError(f"--hook {name}: there is no file {place}; write MODULE:CLASS or FILE.py:CLASS")
    try:
        module = _file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{place}.".startswith(f"{error.name}."):  # one that it imports
            raise UserError(f"--hook {name}: {_said(error)}; install it, or set PYTHONPATH to its folder") from error
        raise UserError(
            f"--hook {name}: there is no module {error.name}; give a file, as hooks.py:{attribute}, or set PYTHONPATH to its "
            "folder"
        ) from error
    except Exception as error:  # whatever a user's module does while it is imported
        raise UserError(f"--hook {name}: {place} cannot be imported: {_said(error)}") from error
    kind = getattr(module, attribute, None)
    if kind is None:
        near = difflib.get_close_matches(attribute, vars(module), 1)
        there = [key for key, value in vars(module).items() if isinstance(value, type) and issubclass(value, Hook)]
        hint = [key for key in (*near, *there) if key != "Hook"]
        raise UserError(
            f"--hook {name}: {place} has no {attribute}"
            + (f"; did you mean {hint[0]}?" if hint else ": write a class there")
        )
    try:
        made = kind()
    except Exception as error:  # whatever a user's constructor does
        raise UserError(f"--hook {name}: {attribute}() failed: {_said(error)}; it is made without arguments") from error
    if not isinstance(made, Hook):
        raise UserError(f"--hook {name}: {attribute} is no subclass of javisc.trainer.engine.hooks.Hook; make it one")
    if not any(getattr(type(made), method) is not getattr(Hook, method) for method in METHODS):
        own = (
            ", ".join(key for key in vars(type(made)) if not key.startswith("_") and type(made) is not Hook)
            or "nothing"
        )
        raise UserError(f"--hook {name}: {attribute} defines {own}, and a run calls {', '.join(METHODS)}: name one so")
    return Named(name, made)


def _file(path: Path) -> Any:
    """The module in a file. Raises what the file raises."""
    spec = importlib.util.spec_from_file_location(f"javisc_hook_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickle look their module up
    spec.loader.exec_module(module)
    return module


def _said(error: Exception) -> str:
    """An error in one line, and the innermost line of code that it comes from."""
    text = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}".rstrip(": ")
    if isinstance(error, SyntaxError):
        return text
    others = "site-packages", str(Path(traceback.__file__).parent), __file__, "<"
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if others[0] not in frame.filename and not frame.filename.startswith(others[1:])
    ]
    return f"{text} ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else text
