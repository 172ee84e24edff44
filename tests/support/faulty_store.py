"""A real S3 server on this machine's loopback, and a proxy before it that fails at random as object stores do, over real HTTP."""

from __future__ import annotations

import atexit
import http.client
import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

FAULTS = ("403", "429", "500", "503", "cut", "slow", "drop")
_CODES = {"403": "AccessDenied", "429": "SlowDown", "500": "InternalError", "503": "SlowDown"}
SLOW = 0.3


class _Store:
    """moto's server, in a process of its own."""

    def __init__(self, log: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)],
                stdout=out,
                stderr=out,
            )
        until = time.monotonic() + 60
        while True:
            with socket.socket() as knock:
                if knock.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            assert self.process.poll() is None and time.monotonic() < until, "the S3 server does not start"
            time.sleep(0.1)

    def empty(self) -> None:
        """Forget every bucket."""
        line = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        line.request("POST", "/moto-api/reset")
        assert line.getresponse().status == 200
        line.close()

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


#: The server of this process, which takes seconds to start, and how many are at it.
_SHARED: list[_Store] = []
_USERS = [0]


def _shared() -> _Store:
    if not _SHARED:
        _SHARED.append(_Store(Path(os.devnull)))
        atexit.register(_SHARED[0].end)
    elif not _USERS[0]:
        _SHARED[0].empty()
    return _SHARED[0]


@contextmanager
def s3_server(log: Path | None = None) -> Iterator[str]:
    """A server of S3 without buckets, or with those of who is at it, too; yield its address. The environment's credentials and
    endpoint are set meanwhile. log: have one that nobody shares, which writes its requests there."""
    import s3fs

    server = _Store(log) if log else _shared()
    address = f"http://127.0.0.1:{server.port}"
    settings = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
    settings |= {"AWS_ENDPOINT_URL": address, "AWS_EC2_METADATA_DISABLED": "true"}
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    _USERS[0] += log is None
    try:
        s3fs.S3FileSystem.clear_instance_cache()
        yield address
    finally:
        _USERS[0] -= log is None
        if log:
            server.end()
        s3fs.S3FileSystem.clear_instance_cache()
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news here; anything else is."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class FaultyProxy:
    """Passes HTTP on to `target`; each request fails with chance `share`, in one of the ways of `faults`. Use as a context.

    403, 429, 500, 503: answered without asking the server. cut: the server's answer ends in the middle. slow: it comes after
    SLOW seconds. drop: the request arrives and is obeyed, but the connection closes without an answer. `only`: what the paths of
    requests that may fail hold.
    """

    def __init__(self, target: str, *, share: float = 0.0, seed: int = 0, faults: tuple[str, ...] = FAULTS) -> None:
        self.target = urlsplit(target)
        self.share, self.faults, self.dice = share, faults, random.Random(seed)
        self.only = ""
        self.guard = threading.Lock()
        self.done: Counter[str] = Counter()
        self.server = _Server(("127.0.0.1", 0), _handler(self))
        self.server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self) -> FaultyProxy:
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def fate(self, path: str) -> str | None:
        """What becomes of the next request."""
        with self.guard:
            chosen = self.only in path and self.dice.random() < self.share
            fault = self.dice.choice(self.faults) if chosen else None
            self.done[fault or "passed"] += 1
            return fault


def _handler(proxy: FaultyProxy) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *arguments: Any) -> None:
            """Say nothing."""

        def _pass(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = (
                self._chunks()
                if "chunked" in (self.headers.get("Transfer-Encoding") or "")
                else self.rfile.read(length)
            )
            fault = proxy.fate(self.path.partition("?")[0])
            if fault in _CODES:
                text = f"<?xml version='1.0'?><Error><Code>{_CODES[fault]}</Code><Message>injected</Message></Error>".encode()
                self._answer(int(fault), [("Content-Type", "application/xml")], text)
                return
            if fault == "slow":
                time.sleep(SLOW)
            upstream = http.client.HTTPConnection(proxy.target.hostname or "", proxy.target.port, timeout=60)
            skipped = ("connection", "transfer-encoding", "content-length")
            headers = {name: value for name, value in self.headers.items() if name.lower() not in skipped}
            upstream.request(self.command, self.path, body or None, headers)
            answer = upstream.getresponse()
            content = answer.read()
            upstream.close()
            if fault == "drop":
                self.close_connection = True
                return
            kept = [(name, value) for name, value in answer.getheaders() if name.lower() not in skipped]
            told = answer.getheader("Content-Length")
            self._answer(answer.status, kept, content, told=told, cut=fault == "cut")

        def _answer(
            self,
            status: int,
            headers: list[tuple[str, str]],
            content: bytes,
            *,
            told: str | None = None,
            cut: bool = False,
        ) -> None:
            head = self.command == "HEAD"
            self.send_response(status)
            for name, value in headers:
                self.send_header(name, value)
            self.send_header("Content-Length", told or "0" if head else str(len(content)))
            self.end_headers()
            if not head and status not in (204, 304):
                self.wfile.write(content[: len(content) // 2] if cut and content else content)
            if cut:
                self.close_connection = True

        def _chunks(self) -> bytes:
            found = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                found += self.rfile.read(size)
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass
            return found

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _pass

    return Handler
