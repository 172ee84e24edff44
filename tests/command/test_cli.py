"""The command as a user meets it: light to start, one line per mistake."""

from __future__ import annotations

import subprocess
import sys


def run(*arguments: str, code: str | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", *(["-c", code] if code else ["-m", "javisc"]), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_help_names_every_command() -> None:
    from javisc.cli import COMMANDS

    out = run("--help")
    assert out.returncode == 0
    for name in COMMANDS:
        assert name in out.stdout


def test_every_command_has_help() -> None:
    from click.testing import CliRunner
    from javisc.cli import COMMANDS, cli

    for name in COMMANDS:
        result = CliRunner().invoke(cli, [name, "--help"])
        assert result.exit_code == 0, (name, result.output, result.exception)


def test_unknown_command_is_one_line_and_exit_2() -> None:
    out = run("biuld")
    assert out.returncode == 2
    assert "biuld" in out.stderr
    assert "Traceback" not in out.stderr


def test_compiler_and_manifests_import_no_torch() -> None:
    out = run(code="import sys, javisc.compiler, javisc.manifests; print(sorted({'torch', 'nvidia.dali', 'triton'} & set(sys.modules)))")
    assert out.stdout.strip() == "[]", out.stdout + out.stderr


def test_help_imports_no_heavy_library() -> None:
    code = "import sys; sys.argv = ['javisc', '--help']\nfrom javisc.cli import main\ntry:\n    main()\nfinally:\n    print(sorted({'torch', 'polars', 'av', 'numpy'} & set(sys.modules)))"
    out = run(code=code)
    assert out.stdout.strip().splitlines()[-1] == "[]", out.stdout + out.stderr
