"""Every dataset that a test builds is judged: in this process by `sane.watch`, where a process builds it by the test itself."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest

from support.documents import ROOT

KINDS = {"jav", "audio", "sync", "masklets"}
#: Files that start builds and judge them otherwise.
OTHERWISE = {
    "tests/compiler/check/test_status.py": "byte for byte the dataset of a build that was judged",
    "tests/compiler/repair/test_repair.py": "wrong on purpose, and mended to the bytes of one that was judged",
    "tests/compiler/run/test_ray.py": "byte for byte the dataset of a build that was judged",
    "tests/compiler/test_build.py": "byte for byte the dataset of a build that was judged",
    "tests/manifests/test_io.py": "builds in this process, where it is judged; others are started for tables",
}


def starts_builds(source: str) -> bool:
    """Whether a test's code makes a dataset that nothing judges by itself: a process that builds it (`javisc build KIND …`, or
    Python code that calls `build`), or DatasetWriter.
    """
    tree = ast.parse(source)
    if any(isinstance(node, ast.Call) and getattr(node.func, "id", None) == "DatasetWriter" for node in ast.walk(tree)):
        return True
    starts = any(isinstance(node, ast.Attribute) and node.attr in ("run", "Popen") and isinstance(node.value, ast.Name)
                 and node.value.id == "subprocess" for node in ast.walk(tree))  # fmt: skip
    return starts and any(_command(node) or _program(node) for node in ast.walk(tree))


def _words(node: ast.AST) -> Iterator[object]:
    parts = node.args if isinstance(node, ast.Call) else node.elts if isinstance(node, (ast.List, ast.Tuple)) else []
    return (part.value if isinstance(part, ast.Constant) else None for part in parts)


def _command(node: ast.AST) -> bool:
    words = list(_words(node))
    return any(word == "build" and words[at + 1] in KINDS for at, word in enumerate(words[:-1]))


def _program(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str) and bool(
        re.search(r"import build\b|BuildOptions\(", node.value)
    )  # fmt: skip


FILES = [
    str(path.relative_to(ROOT)) for path in sorted((ROOT / "tests").rglob("test_*.py")) if path.name != "test_judged.py"
]


def test_the_rule_sees_each_way_of_making_a_dataset() -> None:
    assert starts_builds('import subprocess\nsubprocess.run([x, "-m", "javisc", "build", "jav", raw])')
    assert starts_builds(
        'import subprocess\nP = "from javisc.compiler.build import build"\nsubprocess.Popen([x, "-c", P])'
    )
    assert starts_builds('import subprocess\ndef run(*a): return subprocess.run(a)\nrun("build", "audio", raw)')
    assert starts_builds("with DatasetWriter(out) as writer:\n    writer.add(key, members)")
    assert not starts_builds('run("build", "jav", raw)') and not starts_builds("import subprocess\nsubprocess.run(ls)")


@pytest.mark.parametrize("file", [file for file in FILES if starts_builds((ROOT / file).read_text())])
def test_what_a_process_built_is_judged(file: str) -> None:
    tree = ast.parse((ROOT / file).read_text())
    called = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    assert ("sane" in called) != (file in OTHERWISE), (
        f"{file} makes a dataset: call support.sane.sane on what it leaves"
    )
