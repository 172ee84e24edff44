"""Two nodes on one machine: network namespaces joined by a cable (a veth pair). Needs root and the command `ip`."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]


@dataclass
class Node:
    """A namespace with one address. What is started in it sees no other network."""

    name: str
    interface: str
    address: str
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, log: Path, *command: str, **environment: str) -> subprocess.Popen[bytes]:
        """Run Python with `command` in this node; its output goes to `log`."""
        given = {"PYTHONPATH": str(TESTS), "GLOO_SOCKET_IFNAME": self.interface, "OMP_NUM_THREADS": "1"}
        with log.open("ab") as out:
            process = subprocess.Popen(
                ["ip", "netns", "exec", self.name, sys.executable, "-P", *command],
                env=os.environ | given | environment,
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        self.started.append(process)
        return process

    def kill(self) -> int:
        """SIGKILL every process of this node at once; how many there were. The kernel tells its peers."""
        pids = _ip("netns", "pids", self.name).split()
        for pid in pids:
            os.kill(int(pid), signal.SIGKILL)
        for process in self.started:
            process.wait()
        return len(pids)


def _ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout


def _join(nodes: tuple[Node, Node]) -> None:
    """Lay the cable and give the nodes their addresses."""
    _ip("link", "add", nodes[0].interface, "type", "veth", "peer", "name", nodes[1].interface)
    for node in nodes:
        _ip("link", "set", node.interface, "netns", node.name)
        _ip("-n", node.name, "addr", "add", f"{node.address}/24", "dev", node.interface)
        for interface in ("lo", node.interface):
            _ip("-n", node.name, "link", "set", interface, "up")


def cut_power(lost: Node, peer: Node) -> int:
    """End `lost` without a word to its peer and let it boot: a new kernel at the old address, which knows no connection."""
    _ip("-n", peer.name, "link", "del", peer.interface)
    killed = lost.kill()
    _ip("netns", "del", lost.name)
    _ip("netns", "add", lost.name)
    _join((peer, lost))
    return killed


@contextmanager
def two_nodes() -> Iterator[tuple[Node, Node]]:
    """Two nodes that reach each other and nothing else. Skips the test where namespaces cannot be made."""
    if shutil.which("ip") is None:
        pytest.skip("two nodes need the command ip (iproute2)")
    nodes = tuple(
        Node(f"javisc{os.getpid()}{x}", f"jv{os.getpid()}{x}", f"10.213.7.{n}") for n, x in ((1, "a"), (2, "b"))
    )
    made: list[Node] = []
    try:
        try:
            for node in nodes:
                _ip("netns", "add", node.name)
                made.append(node)
            _join((nodes[0], nodes[1]))
            _ip("netns", "exec", nodes[0].name, "true")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"two nodes need network namespaces (root): {error.stderr.strip()}")
        yield nodes[0], nodes[1]
    finally:
        for node in made:
            node.kill()
            _ip("netns", "del", node.name)
