"""Put faults into javisc and see whether the tests find them.

    make mutants FILE=manifests/splits.py [N=20] [SEED=0] [TESTS="tests/manifests"]   random faults in one file
    make mutants                           the deliberate ones of tests/faults.toml

A fault goes into a copy of the packages that comes first on the path; the checkout is not touched. The tests are those that
name the file's module (TESTS chooses others). What survives is shown: some of it changes nothing that anybody could see, the
rest is a test that is missing. mutmut and cosmic-ray were looked at: the one derives a module's name from its path (ours are
mapped by setup.py), the other changes the checkout itself.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import tomllib
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import pytest

ROOT = Path(__file__).resolve().parents[1]
FLOORS = ("manifests", "compiler", "kernels", "trainer")
_SWAPS: dict[type, str] = {
    ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">", ast.Eq: "!=", ast.NotEq: "==", ast.In: "not in", ast.NotIn: "in",
    ast.Is: "is not", ast.IsNot: "is", ast.Add: "-", ast.Sub: "+", ast.Mult: "/", ast.Div: "*", ast.FloorDiv: "*", ast.Mod: "*",
    ast.And: "or", ast.Or: "and",
}  # fmt: skip
#: Arguments that say how a result is got, and change none: what polars does without them is the same, in more memory.
_WAYS = ("engine", "is_elementwise")


@dataclass(frozen=True)
class Fault:
    """The text `old` at `at` of a file becomes `new`."""

    file: str
    at: int
    old: str
    new: str
    line: int
    tests: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {' '.join(self.old.split())!r} → {' '.join(self.new.split())!r}"


def faults_in(file: str) -> Iterator[Fault]:
    """Every fault of a file: swapped operators and branches, other constants, dropped arguments and statements."""
    source = (ROOT / file).read_text()
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))

    def span(node: ast.AST) -> tuple[int, int]:
        def at(line: int, column: int) -> int:  # ast counts columns in bytes
            whole = source[starts[line - 1] : starts[line]].encode()
            return starts[line - 1] + len(whole[:column].decode())

        return at(node.lineno, node.col_offset), at(node.end_lineno, node.end_col_offset)  # type: ignore[attr-defined]

    def fault(node: ast.AST, new: str) -> Fault:
        a, b = span(node)
        return Fault(file, a, source[a:b], new, node.lineno)  # type: ignore[attr-defined]

    def text(node: ast.AST) -> str:
        a, b = span(node)
        return source[a:b]

    tree = ast.parse(source)
    words = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}  # docstrings
    hints = {id(inner) for node in ast.walk(tree) for hint in _hints(node) for inner in ast.walk(hint)}
    for node in ast.walk(tree):
        if id(node) in hints:
            continue
        if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in _SWAPS:
            yield fault(node, f"({text(node.left)} {_SWAPS[type(node.ops[0])]} {text(node.comparators[0])})")
        elif isinstance(node, ast.BinOp) and type(node.op) in _SWAPS:
            yield fault(node, f"({text(node.left)} {_SWAPS[type(node.op)]} {text(node.right)})")
        elif isinstance(node, ast.BoolOp):
            yield fault(
                node, "(" + f" {_SWAPS[type(node.op)]} ".join(f"({text(value)})" for value in node.values) + ")"
            )
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            yield fault(node, f"({text(node.operand)})")
        elif isinstance(node, (ast.If, ast.IfExp, ast.While)) and not isinstance(node.test, (ast.UnaryOp, ast.Compare)):
            yield fault(node.test, f"(not ({text(node.test)}))")
        elif isinstance(node, ast.Constant) and id(node) not in words:
            if isinstance(node.value, bool):
                yield fault(node, str(not node.value))
            elif isinstance(node.value, (int, float)):
                yield fault(node, f"({text(node)} + 1)")
        elif isinstance(node, ast.Return) and node.value is not None:
            yield fault(node, "return None")
        elif isinstance(node, ast.Expr) and isinstance(node.value, (ast.Call, ast.Await)):
            yield fault(node, "pass")
        elif isinstance(node, ast.Call):
            for keyword in node.keywords:
                if keyword.arg is not None and keyword.arg not in _WAYS:
                    a, b = span(keyword)
                    comma = source[b:].lstrip().startswith(",")
                    end = b + source[b:].index(",") + 1 if comma else b
                    yield Fault(file, a, source[a:end], "", keyword.lineno)


def _hints(node: ast.AST) -> Iterator[ast.AST]:
    for name in ("annotation", "returns"):
        if (hint := getattr(node, name, None)) is not None:
            yield hint


def deliberate() -> Iterator[Fault]:
    """The faults of tests/faults.toml, each with the tests that must find it. Exits where the code has moved away from one."""
    for row in tomllib.loads((ROOT / "tests/faults.toml").read_text())["fault"]:
        source = (ROOT / row["file"]).read_text()
        if source.count(row["old"]) != 1:
            sys.exit(
                f"tests/faults.toml: {row['file']} holds {row['old']!r} {source.count(row['old'])} times: update the row"
            )
        at = source.index(row["old"])
        yield Fault(row["file"], at, row["old"], row["new"], source[:at].count("\n") + 1, tuple(row["tests"]))


def tests_of(file: str) -> tuple[str, ...]:
    """The test files that name a file's module; of a command, those of all commands."""
    parts = Path(file).with_suffix("").parts
    if parts[0] == "command":
        return ("tests/command",)
    home, name = ".".join(("javisc", *parts[:-1])), parts[-1]
    spelled = re.compile(rf"{re.escape(home)}\.{name}\b|from {re.escape(home)} import .*\b{name}\b")
    found = [path for path in (ROOT / "tests").rglob("test_*.py") if spelled.search(path.read_text())]
    return tuple(sorted(str(path.relative_to(ROOT)) for path in found))


class House:
    """A copy of the packages, into which one fault at a time is put."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.home = folder, folder / "javisc"
        shutil.copytree(ROOT / "command", self.home, ignore=shutil.ignore_patterns("__pycache__"))
        for floor in FLOORS:
            shutil.copytree(ROOT / floor, self.home / floor, ignore=shutil.ignore_patterns("__pycache__"))

    def found(self, fault: Fault | None, tests: tuple[str, ...], limit: float = 900.0) -> bool:
        """Whether the tests fail, with `fault` in place. A run beyond `limit` seconds has failed."""
        if fault is not None:
            target = self.home / fault.file.removeprefix("command/")
            source = target.read_text()
            target.write_text(source[: fault.at] + fault.new + source[fault.at + len(fault.old) :])
        try:
            child = os.fork()
            if child == 0:
                self._run(tests)
            return _ended(child, time.monotonic() + limit) != 0
        finally:
            if fault is not None:
                target.write_text(source)

    def _run(self, tests: tuple[str, ...]) -> NoReturn:
        """In a child: pytest over this copy, in a process group of its own. Does not return."""
        os.setpgid(0, 0)
        os.chdir(ROOT)
        for number in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)
        os.environ["PYTHONPATH"] = str(self.folder)
        sys.path.insert(0, str(self.folder))
        code = 99
        try:
            code = int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *tests]))
        finally:
            os._exit(code)


def _ended(child: int, until: float) -> int:
    """The exit code of a child, which is ended with all its own at `until`."""
    while (done := os.waitpid(child, os.WNOHANG))[0] == 0:
        if time.monotonic() > until:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return -signal.SIGKILL
        time.sleep(0.05)
    return os.waitstatus_to_exitcode(done[1])


def preload(tests: Iterable[str]) -> None:
    """Import once what every run would import again: the libraries, and nothing of javisc's, whose copies differ."""
    sys.dont_write_bytecode = True
    os.environ |= {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"}
    names = ["av", "fsspec", "hypothesis.strategies", "numpy", "polars", "rich.console", "soundfile", "soxr"]
    if any(path.startswith(("tests/trainer", "tests/command", "tests/kernels", "tests/parity")) for path in tests):
        names += ["torch", "omegaconf"]
    for name in names:
        importlib.import_module(name)
    # No thread of polars runs before its first query, and none is made here.
    warnings.filterwarnings("ignore", message=".*fork.*")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", help="a source file; without one, the deliberate faults")
    parser.add_argument("-n", type=int, default=20, help="random faults (20)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tests", default="", help="tests to run, separated by spaces")
    parser.add_argument("--only", default="", help="of the deliberate faults, those in files with this in their path")
    parser.add_argument("--jobs", type=int, default=2)
    chosen = parser.parse_args()
    given = tuple(chosen.tests.split())
    if chosen.file:
        faults = sorted(set(faults_in(chosen.file)), key=lambda fault: (fault.at, fault.new))
        faults = random.Random(chosen.seed).sample(faults, min(chosen.n, len(faults)))
        tests = given or tests_of(chosen.file)
        if not tests:
            sys.exit(f"no test names the module of {chosen.file}: say TESTS=…")
    else:
        faults, tests = [fault for fault in deliberate() if chosen.only in fault.file], given
    preload([*tests, *(test for fault in faults for test in fault.tests)])
    with tempfile.TemporaryDirectory(prefix="javisc-mutants-") as folder:
        houses = [House(Path(folder, str(number))) for number in range(chosen.jobs)]
        limit = 900.0
        if chosen.file:
            began = time.monotonic()
            if houses[0].found(None, tests):
                sys.exit(f"the tests fail without a fault: {' '.join(tests)}")
            limit = 60 + 5 * (time.monotonic() - began)

        def try_one(fault: Fault) -> bool:
            house = houses.pop()
            try:
                return house.found(fault, fault.tests or tests, limit)
            finally:
                houses.append(house)

        with ThreadPoolExecutor(chosen.jobs) as pool:
            outcomes = []
            for fault, found in zip(faults, pool.map(try_one, faults)):
                print(f"{'found' if found else 'MISSED'}  {fault}", flush=True)
                outcomes.append(found)
    print(f"{sum(outcomes)} of {len(outcomes)} found by {' '.join(tests) or 'the tests of each'}")
    return 0 if all(outcomes) or chosen.file else 1


if __name__ == "__main__":
    sys.exit(main())
