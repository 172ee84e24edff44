"""Every option of every command, with a value that is not its default and the place in the library where it must arrive.

`tests/command/test_options.py` runs each row twice, with and without the option, while recorders stand in for the library's
functions. A new option gets a row in `build.py`, `tables.py` or `training.py` beside this file.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from javisc.cli import cli
from javisc.manifests.errors import UserError


@dataclass(frozen=True)
class Row:
    """An option on the command line and what must come of it.

    given: the words, `{name}` being a place of the test's. where: a dotted path from a recorded function's name through its
    parameters, attributes and keys; or `exit`, the command's exit code; or `said`, its output. value: what must be there: for a
    choice None, since each of its values is tried, or what makes of a choice what must be there; for `said` a check of it.
    more: further words that the option needs to be allowed, given both times. alone: words of `Command.words` to leave out, each
    with its value.
    """

    given: str
    where: str
    value: Any = None
    more: str = ""
    alone: tuple[str, ...] = ()


@dataclass(frozen=True)
class Command:
    """A command's rows. words: a line that is allowed without any option below. answers: function → what its stand-in returns.

    calls: functions that are recorded and then run. rows: by option, as `--name`, or an argument's name in capitals.
    """

    words: str
    answers: Mapping[str, Any]
    rows: Mapping[str, Row]
    calls: tuple[str, ...] = ()


@dataclass
class Seen:
    """What one run of a command did."""

    recorded: dict[str, dict[str, Any]]
    code: int
    said: str

    def at(self, where: str) -> Any:
        """Follow `where`; None where a function was not called."""
        if where in ("exit", "said"):
            return self.code if where == "exit" else self.said
        name, *path = where.split(".")
        if name not in self.recorded:
            return None
        found: Any = self.recorded[name]
        for step in path:
            if isinstance(found, Mapping):
                found = found.get(step)
            elif step.lstrip("-").isdigit():
                found = found[int(step)]
            else:
                found = getattr(found, step)
        return found


def leaves(group: click.Group | None = None, path: tuple[str, ...] = ()) -> Iterator[tuple[str, click.Command]]:
    """Every command that a user can run, by its words."""
    top = group or cli
    context = click.Context(top)
    for name in top.list_commands(context):
        command = top.get_command(context, name)
        assert command is not None, name
        if isinstance(command, click.Group):
            yield from leaves(command, (*path, name))
        else:
            yield " ".join((*path, name)), command


def names_of(command: click.Command) -> Iterator[tuple[str, click.Parameter]]:
    """What the table must have for a command: options in their longest spelling, both of a pair, arguments in capitals."""
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            yield max(parameter.opts, key=len), parameter
            if parameter.secondary_opts:
                yield max(parameter.secondary_opts, key=len), parameter
        else:
            yield str(parameter.name).upper(), parameter


def run(command: Command, words: str, places: Mapping[str, Path], patch: pytest.MonkeyPatch) -> Seen:
    """Run one line with recorders in place."""
    recorded: dict[str, dict[str, Any]] = {}
    with patch.context() as patched:
        for target in (*command.answers, *command.calls):
            module, _, name = target.partition(":")
            home = importlib.import_module(module)
            real = getattr(home, name)
            answer = None if target in command.calls else command.answers[target]
            patched.setattr(home, name, _recorder(name, real, answer, recorded, runs=target in command.calls))
        line = [word.format(**places) for word in words.split()]
        result = CliRunner().invoke(cli, line, standalone_mode=False)
    if isinstance(result.exception, (UserError, click.ClickException)):
        pytest.fail(f"javisc {' '.join(line)}: {result.exception} {result.output}")
    if result.exception is not None:
        raise result.exception
    return Seen(
        recorded, int(result.return_value or 0), result.output
    )  # main() makes what a command returns its exit code


def _recorder(
    name: str, real: Callable[..., Any], answer: Any, recorded: dict[str, dict[str, Any]], *, runs: bool
) -> Callable[..., Any]:
    signature = inspect.signature(real)

    def record(*arguments: Any, **named: Any) -> Any:
        bound = signature.bind(*arguments, **named)  # what the real function would refuse is refused
        bound.apply_defaults()
        recorded[name] = dict(bound.arguments)
        if runs:
            return real(*arguments, **named)
        return answer(**bound.arguments) if inspect.isfunction(answer) else answer

    return record
