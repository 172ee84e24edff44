"""An S3 server on the loopback with the latency of a real one: lists, heads and reads of made-up objects, and counts requests.

    python -P tests/support/slow_store.py OBJECTS SECONDS

prints its port. Bucket `b` has OBJECTS objects `raw/NNNN/NNNNNNNN.mp4` of 1,000 bytes; a PUT is taken. GET /counts tells how many
of each kind of request came, GET /reads how often each object was read.
"""

from __future__ import annotations

import asyncio
import bisect
import json
import os
import subprocess
import sys
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

_TIME, _HTTP_TIME = "2026-01-02T03:04:05.000Z", "Fri, 02 Jan 2026 03:04:05 GMT"


class _Server:
    def __init__(self, count: int, latency: float) -> None:
        self.names = [f"raw/{number // 1000:04d}/{number:08d}.mp4" for number in range(count)]
        self.content: dict[str, bytes] = {}
        self.latency, self.counts, self.reads = latency, Counter[str](), Counter[str]()

    def tag(self, key: str) -> str:
        """The ETag of an object, which changes with its bytes."""
        return f"{len(key)}-{zlib.crc32(self.content.get(key, b'')):08x}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                method, target, _ = line.decode("latin-1").split(" ", 2)
                headers = {}
                while (header := await reader.readline()).strip():
                    name, _, value = header.decode("latin-1").partition(":")
                    headers[name.strip().lower()] = value.strip()
                if "expect" in headers:
                    writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                code, given, content = self.answer(method, target, headers, body)
                if not target.startswith(("/counts", "/reads")):
                    await asyncio.sleep(self.latency)
                given = {"Content-Length": str(len(content)), **given}
                lines = [f"HTTP/1.1 {code} X", *(f"{name}: {value}" for name, value in given.items()), "", ""]
                writer.write("\r\n".join(lines).encode() + (b"" if method == "HEAD" else content))
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    def answer(
        self, method: str, target: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        parts = urlsplit(target)
        if parts.path in ("/counts", "/reads"):
            return 200, {}, json.dumps(self.counts if parts.path == "/counts" else self.reads).encode()
        key, query = (
            unquote(parts.path).removeprefix("/b").removeprefix("/"),
            parse_qs(parts.query, keep_blank_values=True),
        )
        if method == "GET" and "list-type" in query:
            self.counts["list"] += 1
            return 200, {"Content-Type": "application/xml"}, self.listed(query)
        kind = {"HEAD": "head", "GET": "get", "PUT": "put"}.get(method, method)
        self.counts[kind] += 1
        self.reads[key] += method == "GET"
        if method == "PUT":
            self.content[key] = body
            if (at := bisect.bisect_left(self.names, key)) == len(self.names) or self.names[at] != key:
                self.names.insert(at, key)
            return 200, {"ETag": f'"{self.tag(key)}"'}, b""
        at = bisect.bisect_left(self.names, key)
        if at == len(self.names) or self.names[at] != key:
            return 404, {}, b""
        content = self.content.get(key, bytes(1000))
        given = {"ETag": f'"{self.tag(key)}"', "Last-Modified": _HTTP_TIME, "Content-Length": str(len(content))}
        return 200, given, content

    def listed(self, query: dict[str, list[str]]) -> bytes:
        prefix, delimiter = query.get("prefix", [""])[0], query.get("delimiter", [""])[0]
        after = query.get("continuation-token", query.get("start-after", [""]))[0]
        size, at = int(query.get("max-keys", ["1000"])[0]), bisect.bisect_left(self.names, max(prefix, after))
        objects, folders, more = [], [], False
        while at < len(self.names) and self.names[at].startswith(prefix):
            name = self.names[at]
            if name <= after:
                at += 1
                continue
            if len(objects) + len(folders) >= size:
                more = True
                break
            rest = name[len(prefix) :]
            if delimiter and delimiter in rest:
                folders.append(prefix + rest.partition(delimiter)[0] + delimiter)
                at = bisect.bisect_left(self.names, folders[-1] + "\U0010ffff")
                after = folders[-1] + "\U0010ffff"
                continue
            objects.append(name)
            after, at = name, at + 1
        inside = "".join(
            f"<Contents><Key>{escape(name)}</Key><LastModified>{_TIME}</LastModified><ETag>&quot;{self.tag(name)}&quot;</ETag>"
            f"<Size>{len(self.content.get(name, b'x' * 1000))}</Size><StorageClass>STANDARD</StorageClass></Contents>"
            for name in objects
        ) + "".join(f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>" for name in folders)
        token = f"<NextContinuationToken>{escape(after)}</NextContinuationToken>" if more else ""
        return (
            '<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<Name>b</Name><Prefix>{escape(prefix)}</Prefix><KeyCount>{len(objects) + len(folders)}</KeyCount>"
            f"<MaxKeys>{size}</MaxKeys>"
            f"<IsTruncated>{str(more).lower()}</IsTruncated>{token}{inside}</ListBucketResult>"
        ).encode()


async def _main(count: int, latency: float) -> None:
    server = await asyncio.start_server(_Server(count, latency).serve, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    async with server:
        await server.serve_forever()


class SlowStore:
    """The running server. address: of it."""

    def __init__(self, address: str) -> None:
        self.address = address

    def counts(self) -> Counter[str]:
        """How many lists, heads, gets and puts came so far."""
        return self._told("counts")

    def reads(self) -> Counter[str]:
        """How often each object was read so far."""
        return self._told("reads")

    def _told(self, what: str) -> Counter[str]:
        import urllib.request

        with urllib.request.urlopen(f"{self.address}/{what}") as answer:
            return Counter(json.load(answer))


@contextmanager
def slow_store(objects: int, seconds: float) -> Iterator[SlowStore]:
    """Start the server in a process of its own; s3:// URLs of this process lead to it meanwhile."""
    import s3fs

    command = [sys.executable, "-P", str(Path(__file__).resolve()), str(objects), str(seconds)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    address = f"http://127.0.0.1:{int(process.stdout.readline())}"
    given = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
    given |= {"AWS_ENDPOINT_URL": address, "AWS_EC2_METADATA_DISABLED": "true"}
    before = {name: os.environ.get(name) for name in given}
    os.environ.update(given)
    s3fs.S3FileSystem.clear_instance_cache()
    try:
        yield SlowStore(address)
    finally:
        process.kill()
        process.wait()
        s3fs.S3FileSystem.clear_instance_cache()
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


if __name__ == "__main__":
    asyncio.run(_main(int(sys.argv[1]), float(sys.argv[2])))
