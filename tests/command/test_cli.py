"""The command as a user meets it: light to start, one line per mistake."""

from __future__ import annotations

import subprocess
import sys

from click.testing import CliRunner

from javisc.cli import COMMANDS, cli


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-P", *arguments], capture_output=True, text=True, check=False)


def loaded(code: str, modules: set[str]) -> list[str]:
    """The modules of the set that a fresh interpreter holds after running the code."""
    out = python(
        "-c", f"import sys\ntry:\n    {code}\nfinally:\n    print('\\nloaded', *({modules!r} & set(sys.modules)))"
    )
    return out.stdout.strip().splitlines()[-1].split()[1:]


def test_help_names_every_command() -> None:
    out = python("-m", "javisc", "--help")
    assert out.returncode == 0
    for name in COMMANDS:
        assert name in out.stdout


def test_every_command_has_help() -> None:
    for name in COMMANDS:
        result = CliRunner().invoke(cli, [name, "--help"])
        assert result.exit_code == 0, (name, result.output, result.exception)


def test_unknown_command_is_one_line_and_exit_2() -> None:
    out = python("-m", "javisc", "biuld")
    assert out.returncode == 2
    assert "biuld" in out.stderr
    assert "Traceback" not in out.stderr


def test_compiler_and_manifests_import_no_torch() -> None:
    heavy = {"torch", "nvidia.dali", "triton", "transformers"}
    assert loaded("import javisc.compiler, javisc.manifests", heavy) == []


def test_a_build_starts_with_what_it_needs() -> None:
    """A worker starts before its parent imports tables; workers make no tables, not even where they pack shards."""
    heavy = {"polars", "numpy", "av", "rich", "yaml", "asyncio", "fsspec"}
    assert (
        loaded("import javisc.commands.build_audio, javisc.commands.build_jav, javisc.compiler.run.early", heavy) == []
    )
    parent = "import javisc.compiler.build, javisc.compiler.inputs.raw, javisc.compiler.run.local"
    assert loaded(parent, heavy - {"polars", "av"}) == []
    worker = "import javisc.compiler.run.worker, javisc.compiler.run.measure, javisc.compiler.run.packing, {}"
    media = "javisc.compiler.media.transcode, javisc.compiler.media.sound_only"
    assert loaded(worker.format(media), heavy - {"numpy", "av"}) == []


def test_help_imports_no_heavy_library() -> None:
    code = "sys.argv = ['javisc', '--help']; from javisc.cli import main; main()"
    assert loaded(code, {"torch", "polars", "av", "numpy"}) == []
