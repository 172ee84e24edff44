"""A build's command as a file: `javisc build --config javisc.yaml`. Its keys are the command's own options and arguments."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from javisc.manifests.errors import UserError

#: Bytes of a file of settings: a person writes it.
_MAX = 1 << 20
_OWN = ("config", "print_config", "help")


@cache
def _loader() -> Any:
    """YAML's plain types, where no key may stand twice. Made at need: most commands are not told by a file."""
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            keys = [self.construct_object(key, deep=deep) for key, _ in node.value]  # type: ignore[no-untyped-call]
            for key in keys:
                if keys.count(key) > 1:
                    raise yaml.constructor.ConstructorError(None, None, f"{key!r} stands there twice", node.start_mark)
            return super().construct_mapping(node, deep)

    return Loader


def read(file: str) -> dict[str, Any]:
    """The settings of a file, by their names with underscores. Raises UserError."""
    import yaml

    try:
        with Path(file).open("rb") as stream:
            content = stream.read(_MAX + 1)
        if len(content) > _MAX:
            raise UserError(f"--config {file}: has more than {_MAX} bytes: give a file of settings")
        found = yaml.load(content, _loader())
    except OSError as error:
        raise UserError(f"--config {file}: cannot be read ({error.strerror}): give a file of settings") from error
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError, TypeError) as error:
        raise UserError(f"--config {file}: no YAML: {' '.join(str(error).split())[:300]}") from error
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise UserError(f"--config {file}: lines of `name: value` are expected, as `out: DS`")
    return {key.replace("-", "_"): value for key, value in found.items()}


def kind_in(file: str, kinds: Mapping[str, object]) -> str:
    """The `kind` that a file names. Raises UserError."""
    kind = read(file).get("kind", "jav")
    if not isinstance(kind, str) or kind not in kinds:
        raise UserError(f"--config {file}: kind {kind!r}: {', '.join(kinds)} are allowed")
    return kind


def _names(command: click.Command) -> dict[str, click.Parameter]:
    """What a file may set, by name as it is written there: dashes, and what a command calls itself."""
    found = {}
    for parameter in command.params:
        if parameter.name in _OWN or not parameter.expose_value:
            continue
        longest = max(parameter.opts, key=len).lstrip("-")
        found[longest if isinstance(parameter, click.Option) else str(parameter.name)] = parameter
    return found


def _take(context: click.Context, _parameter: click.Parameter, file: str | None) -> None:
    """Let the file's settings stand where the command line says nothing."""
    if file is None:
        return
    names = {name.replace("-", "_"): parameter for name, parameter in _names(context.command).items()}
    given: dict[str, Any] = {}
    for name, value in read(file).items():
        if name == "kind":
            if value != context.info_name and context.info_name is not None:
                raise UserError(f"--config {file}: is for `javisc build {value}`, not {context.info_name}")
            continue
        if name not in names:
            raise UserError(f"--config {file}: {_no_setting(name, names, context)}")
        if value is not None:
            parameter = names[name]
            try:
                plain = _plain(parameter, value)
                parameter.type_cast_value(context, plain)
            except click.UsageError as error:
                raise UserError(f"--config {file}: {name.replace('_', '-')}: {error.message}") from error
            given[str(parameter.name)] = plain
    context.default_map = {**(context.default_map or {}), **given}


def _no_setting(name: str, names: Mapping[str, object], context: click.Context) -> str:
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    known = f"did you mean {near[0].replace('_', '-')}?" if near else "known are " + ", ".join(
        known.replace("_", "-") for known in names
    )  # fmt: skip
    return f"{name.replace('_', '-')!r} is no setting of `{context.command_path}`: {known}"


def _plain(parameter: click.Parameter, value: Any) -> Any:
    """A value as the command line would have it: text, a flag, or a list of texts. Raises click.BadParameter."""
    many = parameter.multiple or parameter.nargs == -1
    if isinstance(value, dict) and all(isinstance(each, (str, int, float)) for item in value.items() for each in item):
        if many or parameter.name != "split":
            raise click.BadParameter("one value is expected, names and values were given")
        return ",".join(f"{name}={share}" for name, share in value.items())
    if isinstance(value, list) and many:
        return [_plain_one(parameter, each) for each in value]
    return [_plain_one(parameter, value)] if many else _plain_one(parameter, value)


def _plain_one(parameter: click.Parameter, value: Any) -> Any:
    flag = isinstance(parameter, click.Option) and parameter.is_flag
    if isinstance(value, bool) != flag:
        raise click.BadParameter(
            f"{value!r}: " + ("true or false is expected" if flag else "a value is expected, in quotes")
        )
    if not isinstance(value, (bool, str, int, float)):
        raise click.BadParameter(f"{value!r}: one value is expected; a date or list is written in quotes")
    return value if flag else str(value)


def shown(context: click.Context) -> str:
    """The file that says what this command was told; what it was not told stands there as comments, with its default."""
    lines = [f"kind: {context.info_name}"]
    silent = []
    for name, parameter in _names(context.command).items():
        value = context.params.get(str(parameter.name))
        if context.get_parameter_source(str(parameter.name)) in (ParameterSource.DEFAULT, None):
            if isinstance(parameter, click.Option):
                silent.append(f"# {_line(name, value)}")
            continue
        lines.append(_line(name, value))
    return "\n".join([*lines, *silent])


def _line(name: str, value: Any) -> str:
    import yaml

    if isinstance(value, (tuple, list)):
        value = [str(each) for each in value]
    elif value is not None and not isinstance(value, (bool, int, float)):
        value = str(value)
    text = yaml.safe_dump(value, allow_unicode=True, default_flow_style=True, width=1 << 20)
    return f"{name}: {text.removesuffix(chr(10)).removesuffix(chr(10) + '...')}"


class BuildCommand(click.Command):
    """A command that can be told by a file, and can write the file that tells it."""

    def invoke(self, ctx: click.Context) -> Any:
        if ctx.params.pop("print_config"):
            click.echo(shown(ctx))
            return 0
        return super().invoke(ctx)


#: The options of every command that can be told by a file.
CONFIG_OPTIONS = (
    click.option(
        "--config",
        metavar="FILE",
        is_eager=True,
        expose_value=False,
        callback=_take,
        help="Take from a YAML file what is not said here; its names are those of these options, and `raw` and `kind`.",
    ),
    click.option(
        "--print-config",
        is_flag=True,
        help="Print this command as such a file, and exit: nothing is looked at or written.",
    ),
)
