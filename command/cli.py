"""The command line: names every command, imports only the one that runs, and turns users' mistakes into one line."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Mapping
from typing import NoReturn

import click

from javisc import __version__
from javisc.manifests.errors import UserError
from javisc.manifests.extras import extra_of, missing

#: command → "module:attribute" and the line `javisc --help` shows. A module is imported when its command runs: help stays fast.
COMMANDS: dict[str, tuple[str, str]] = {
    "demo": ("javisc.commands.demo:demo", "make, build and verify a small dataset whose sync is known"),
    "build": ("javisc.commands.build:build", "compile raw media into a dataset"),
    "plan": ("javisc.commands.plan:plan", "write the plan of a build, for parts that start together"),
    "status": ("javisc.commands.status:status", "how far a build is, and what of it to run again"),
    "verify": ("javisc.commands.verify:verify", "read a dataset again, down to the last frame"),
    "repair": ("javisc.commands.repair:repair", "make again what of a dataset is missing or damaged"),
    "annotate": (
        "javisc.commands.annotate:annotate",
        "a table's captions, scores or labels become a field and columns",
    ),
    "render": (
        "javisc.commands.render:render",
        "smaller pictures beside a dataset's own, which load many times faster",
    ),
    "merge": ("javisc.commands.merge:merge", "several manifests as one"),
    "filter": ("javisc.commands.filter:filter_", "keep the rows that meet conditions, by expression or option"),
    "dedupe": ("javisc.commands.dedupe:dedupe", "find samples that are there twice or nearly, and drop them"),
    "split": ("javisc.commands.split:split", "train, validation and test by hash of the key or of a group"),
    "stats": ("javisc.commands.stats:stats", "counts, hours and quantiles"),
    "export": ("javisc.commands.export:export", "JavisDiT's train_*.csv, with media if wanted"),
    "import": ("javisc.commands.import_csv:import_csv", "JavisDiT's train_*.csv become inputs of a build"),
    "encode": ("javisc.commands.encode:encode", "store latents and text states once, for every stage to train from"),
    "train": ("javisc.commands.train:train", "train a model after a recipe, on one process or many"),
    "export-weights": (
        "javisc.commands.export_weights:export_weights",
        "weights of a run's checkpoint, for others to load",
    ),
    "eval": ("javisc.commands.eval:eval_", "measure a trained model on a split of a dataset"),
    "predict": ("javisc.commands.predict:predict", "which offset a trained selector sees in a video"),
    "score": ("javisc.commands.score:score", "rate the sync of a whole dataset with a trained selector"),
    "export-checkpoint": (
        "javisc.commands.export_checkpoint:export_checkpoint",
        "a Synchformer's run in the layout of published files",
    ),
    "report": ("javisc.commands.report:report", "a page to look at: counts, histograms, rejects, playable samples"),
    "sample": ("javisc.commands.sample:sample", "prompts become sounding videos"),
    "kernels": ("javisc.commands.kernels:kernels", "which backend of each kernel runs here, and why not the others"),
    "bench": ("javisc.commands.bench:bench", "measure javisc beside its peers, from a checkout"),
}


class LazyGroup(click.Group):
    """A Click group whose commands are imported on first use. takes: the command that takes inputs, for who forgot it."""

    def __init__(self, table: Mapping[str, tuple[str, str]], takes: str = "", **kwargs: object) -> None:
        super().__init__(**kwargs)  # type: ignore[arg-type]
        self.table, self.takes = table, takes

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.table:
            return None
        module, attribute = self.table[cmd_name][0].split(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As Click does, but a name that is none gets the nearest ones, or what takes it for an input."""
        name = args[0]
        if name in self.table or name.startswith("-"):
            return super().resolve_command(ctx, args)
        near = difflib.get_close_matches(name, self.table, n=2, cutoff=0.6)
        if near:
            said = f"did you mean {' or '.join(near)}?"
        elif self.takes:
            said = f"did you mean `{ctx.command_path} {self.takes} {name}`? Known are {', '.join(self.table)}"
        else:
            said = f"known are {', '.join(self.table)}"
        raise UserError(f"{ctx.command_path} has no command {name!r}: {said}")

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if self.table:
            with formatter.section("Commands"):
                formatter.write_dl([(name, line) for name, (_, line) in self.table.items()])


@click.group(cls=LazyGroup, table=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="javisc")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def cli(debug: bool) -> None:
    """Compile folders of sounding videos into training-ready datasets, and train audio-video models on them."""


def main() -> None:
    """Run the command. Exit code 0: done; 1: a check failed; 2: a user's mistake, told in one line; 130: interrupted."""
    debug = "--debug" in sys.argv[1:2]
    try:
        code = cli.main(standalone_mode=False, prog_name="javisc")
        sys.exit(code if isinstance(code, int) else 0)
    except click.exceptions.Abort:
        click.echo("interrupted", err=True)
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except BrokenPipeError:  # `javisc ... | head`: the reader has gone, which is no error of ours
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except UserError as error:
        _stop(error, debug)
    except ModuleNotFoundError as error:
        if extra_of(error.name) is None:
            raise
        command = " ".join(word for word in sys.argv[1:] if word in COMMANDS)
        _stop(missing(f"javisc {command}", (error.name or "").partition(".")[0]), debug)
    except BaseException as error:  # polars panics at some damage, and a panic is no Exception
        if debug or "polars" not in sys.modules or isinstance(error, SystemExit | KeyboardInterrupt):
            raise
        from javisc.manifests.damage import damaged

        if (said := damaged(error)) is None:
            raise
        _stop(said, debug)


def _stop(error: UserError, debug: bool) -> NoReturn:
    if debug:
        raise error
    click.echo(f"javisc: {error}", err=True)
    sys.exit(error.exit_code)
