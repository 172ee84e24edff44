"""`javisc build --config FILE`: a build's command as a file, checked by the command's own options."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st

from javisc.cli import cli
from javisc.compiler import build as compiler
from javisc.compiler.build import BuildResult
from javisc.manifests.errors import UserError


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What builds were told: (inputs, recipe, out, options)."""
    calls: list[Any] = []

    def build(inputs: Any, recipe: Any, out: str, options: Any, **_: Any) -> BuildResult:
        calls.append((inputs, recipe, out, options))
        return BuildResult(out, 1, 1, 1, {}, 1.0)

    monkeypatch.setattr(compiler, "build", build)
    monkeypatch.setattr("javisc.compiler.inputs.raw.from_raw", lambda raw, **given: (raw, given["captions"]))
    return calls


def run(*words: object) -> Result:
    return CliRunner().invoke(cli, list(map(str, words)), standalone_mode=False)


def settings_file(place: Path, text: str) -> Path:
    (place / "javisc.yaml").write_text(text)
    return place / "javisc.yaml"


WHOLE = """\
kind: jav
raw: [{place}, {place}]
out: {place}/ds
captions: c.csv
fps: 30000/1001
short-side: 96
max_seconds: 2.5
allow-silent: true
split: {{train: 0.9, val: 0.1}}
seed: 7
part: 2/5
workers: null
"""


def test_a_file_says_the_whole_command_and_the_command_line_overrides_it(told: list[Any], tmp_path: Path) -> None:
    file = settings_file(tmp_path, WHOLE.format(place=tmp_path))
    done = run("build", "--config", file)
    assert done.exception is None, done.exception
    inputs, recipe, out, options = told[0]
    assert inputs == ((str(tmp_path), str(tmp_path)), "c.csv") and out == f"{tmp_path}/ds"
    assert (recipe.fps, recipe.short_side, recipe.max_seconds, recipe.allow_silent) == ("30000/1001", 96, 2.5, True)
    assert options.split == {"train": 0.9, "val": 0.1} and options.seed == 7 and options.part == (2, 5)
    assert options.workers is None
    run("build", "jav", tmp_path / "other", f"--config={file}", "--seed", 8, "--short-side", 128)
    inputs, recipe, _, options = told[1]
    assert inputs[0] == (str(tmp_path / "other"),) and options.seed == 8 and recipe.short_side == 128


def test_what_is_printed_is_the_same_command(told: list[Any], tmp_path: Path) -> None:
    words = ["build", "jav", tmp_path, "--out", tmp_path / "ds", "--crf", "21.5", "--split", "a=0.5,b=0.5", "--check"]
    printed = run(*words, "--print-config")
    assert printed.return_value == 0 and not told and not (tmp_path / "ds").exists()
    run(*words)
    run("build", "--config", settings_file(tmp_path, printed.output))
    assert told[0] == told[1]
    # What was not said is a comment: a default that is said would bind a build that goes on.
    said = yaml.safe_load(printed.output)
    assert sorted(said) == ["check", "crf", "kind", "out", "raw", "split"] and "# seed: 0" in printed.output


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("shard-sise: 3MB", "'shard-sise' is no setting of .* did you mean shard-size"),
        ("qqqqqq: 3", "'qqqqqq' is no setting of .* known are raw, "),
        ("workers: many", "workers: 'many' is not a valid integer"),
        ("workers: 0", "workers: 0 is not in the range"),
        ("workers: [1, 2]", r"workers: \[1, 2\]: one value is expected"),
        ("check: 'yes please'", "check: 'yes please': true or false is expected"),
        ("out: true", "out: True: a value is expected, in quotes"),
        ("captions: 2020-01-01", "captions: .*a date or list is written in quotes"),
        ("captions: {a: b}", "captions: one value is expected, names and values were given"),
        ("seed: 1\nseed: 2", "'seed' stands there twice"),
        ("kind: audio", "is for `javisc build audio`, not jav"),
        ("- a\n- b", "lines of `name: value` are expected"),
        ("a: [", "no YAML"),
        ("x: !!python/object/apply:os.system ['true']", "no YAML"),
        ("1: 2", "lines of `name: value`"),
        ("seed: 1\n" + "#" * (1 << 20), "has more than 1048576 bytes"),
    ],
    ids=lambda text: text[:40],
)
def test_what_is_no_setting_is_one_line(told: list[Any], tmp_path: Path, text: str, message: str) -> None:
    done = run("build", "jav", tmp_path, "--out", tmp_path / "ds", "--config", settings_file(tmp_path, text))
    assert isinstance(done.exception, UserError), done.output
    line = str(done.exception)
    assert "\n" not in line and line.startswith(f"--config {tmp_path}/javisc.yaml: ")
    assert re.search(message, line), line
    assert not told


def test_a_file_that_is_not_there_or_of_no_known_kind(tmp_path: Path) -> None:
    assert "cannot be read" in str(run("build", "--config", tmp_path / "none").exception)
    assert "kind 'film'" in str(run("build", "--config", settings_file(tmp_path, "kind: film")).exception)


@settings(deadline=None, max_examples=60)
@given(st.text(max_size=80))
def test_any_text_is_settings_or_one_line(text: str) -> None:
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / "javisc.yaml").write_bytes(text.encode("utf-8", "surrogatepass"))
        done = run("build", "jav", "--config", f"{place}/javisc.yaml", "--print-config", "--out", "x")
    assert done.exception is None or isinstance(done.exception, UserError), (text, done.exception)
