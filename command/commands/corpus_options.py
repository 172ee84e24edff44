"""The options by which `javisc build …` takes known corpora."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from javisc.manifests.errors import UserError

F = TypeVar("F", bound=Callable[..., Any])


def _list_corpora(kind: str) -> Callable[[click.Context, click.Parameter, bool], None]:
    def show(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
        if not value:
            return
        from javisc.compiler.inputs.corpora import of_kind

        for corpus in of_kind(kind).values():  # type: ignore[arg-type]
            click.echo(f"{corpus.name}  ({corpus.folders[0]}/)\n    {corpus.layout}")
        ctx.exit()

    return show


def corpus_options(kind: str) -> Callable[[F], F]:
    """Decorate a command with --corpus, --corpus-split and --list-corpora; they arrive as `corpus` and `corpus_split`."""

    def decorate(command: F) -> F:
        for option in (
            click.option(
                "--list-corpora",
                is_flag=True,
                is_eager=True,
                expose_value=False,
                callback=_list_corpora(kind),
                help="Say which corpora are known and how they must lie, and exit.",
            ),
            click.option(
                "--corpus-split",
                multiple=True,
                metavar="NAME",
                help="Take this split of the corpora, may be given several times; all: every one.  [default: training data]",
            ),
            click.option(
                "--corpus",
                multiple=True,
                metavar="NAME[=ROOT]",
                help="Take files and captions of a known corpus below RAW or at ROOT; may be given several times."
                + " all: whichever are there.",
            ),
        ):
            command = option(command)
        return command

    return decorate


def corpus_inputs(
    raw: tuple[str, ...],
    corpus: tuple[str, ...],
    corpus_split: tuple[str, ...],
    kind: str,
    captions: str | None,
    options: dict[str, Any],
    say: Callable[[str], None],
    suffixes: frozenset[str],
) -> Any:
    """What `compiler.build` takes, for the corpora asked for. suffixes: of the files that are scanned."""
    from javisc.compiler.inputs.known import from_corpora

    if captions is not None:
        raise UserError("--captions and --corpus exclude each other: a corpus brings its captions; give one of them")
    return from_corpora(
        corpus,
        raw,
        kind,  # type: ignore[arg-type]
        suffixes,
        out=options["out"],
        splits=corpus_split,
        dry=options["plan_only"],
        say=say,
    )
