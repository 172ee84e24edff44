"""The process that `support.forked` has forks made of: it imports modules once, and has no thread of its own.

`python -P forked_server.py FD MODULE…`. Each message names what a fork runs, with its descriptors beside it; the answer is its
process id. It imports nothing but the standard library and what it is told to, so any environment's Python can be one.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import signal
import socket
import sys
import time


def become(told: dict[str, object], descriptors: list[int], between: int) -> None:
    """Turn this fork into the process that was asked for, whose parent is then the asker."""
    while (
        os.getppid() == between
    ):  # not before the fork between has gone: the parent's end is to be this process's, too
        time.sleep(0.0005)
    if told["group"]:
        os.setpgid(0, 0)
    for number, descriptor in enumerate(descriptors[:3]):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(told["environment"])  # type: ignore[call-overload]
    os.chdir(str(told["folder"]))
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path and path not in sys.path]
    sys.path[:0] = paths
    for path in paths:
        if os.path.exists(f"{path}/sitecustomize.py"):  # noqa: PTH110 (pathlib may be there, or not)
            runpy.run_path(f"{path}/sitecustomize.py")
    words: list[str] = told["words"]  # type: ignore[assignment]
    # A descriptor that it is to have lies elsewhere here: its number is the first argument.
    sys.argv = [words[0], *map(str, descriptors[3:]), *words[1 + len(descriptors[3:]) :]]


def main(descriptor: int, modules: list[str]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in modules:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    with socket.socket(fileno=descriptor) as line:
        while True:
            message, descriptors, _, _ = socket.recv_fds(line, 1 << 20, 8)
            if not message:
                return
            between = os.fork()
            if between == 0:
                here = os.getpid()
                made = os.fork()
                if made:
                    line.send(str(made).encode())
                    os._exit(0)
                break
            for number in descriptors:
                os.close(number)
            os.waitpid(between, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    told = json.loads(message)
    become(told, descriptors, here)
    run(told["words"][0])


def run(name: str) -> None:
    """What a fresh interpreter would do with `-m`, which ends as it does there."""
    if name == "javisc":
        importlib.import_module("javisc.cli").main()
    else:
        words = [word for word in sys.argv[3:] if not word.startswith("-")]
        importlib.import_module(name).main(int(sys.argv[1]), int(sys.argv[2]), words)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
