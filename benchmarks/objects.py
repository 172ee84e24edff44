"""Listing and asking for many objects: fsspec (s3fs) beside obstore, on a loopback S3 server with latency.

python -P benchmarks/objects.py --objects 5000 --latency 0.02 --out benchmarks/results/objects.md
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from support.slow_store import SlowStore, slow_store


def one_by_one(urls: list[str], store: SlowStore) -> int:
    """As a scan did it before: an `info` after the other."""
    import fsspec

    fs, _ = fsspec.core.url_to_fs(urls[0], use_listings_cache=False)
    return sum(fs.info(url)["size"] > 0 for url in urls)


def fsspec_heads(urls: list[str], store: SlowStore) -> int:
    """256 at a time through s3fs' own loop."""
    import fsspec
    from fsspec.asyn import _run_coros_in_chunks, sync

    fs, _ = fsspec.core.url_to_fs(urls[0], use_listings_cache=False, config_kwargs={"max_pool_connections": 256})
    made = sync(fs.loop, _run_coros_in_chunks, [fs._info(url) for url in urls], batch_size=256)
    return sum(found["size"] > 0 for found in made)


def fsspec_list(urls: list[str], store: SlowStore) -> int:
    """One listing of the prefix."""
    import fsspec

    fs, inside = fsspec.core.url_to_fs("s3://b/raw", use_listings_cache=False)
    return len(fs.find(inside, detail=True))


def _obstore(store: SlowStore) -> Any:
    from obstore.store import S3Store

    return S3Store("b", endpoint=store.address, client_options={"allow_http": True})


def obstore_heads(urls: list[str], store: SlowStore) -> int:
    """256 at a time."""
    import obstore

    here, gate = _obstore(store), asyncio.Semaphore(256)

    async def ask(url: str) -> bool:
        async with gate:
            return bool((await obstore.head_async(here, url.removeprefix("s3://b/")))["size"])

    async def every() -> int:
        return sum(await asyncio.gather(*(ask(url) for url in urls)))

    return asyncio.run(every())


def obstore_list(urls: list[str], store: SlowStore) -> int:
    """One listing of the prefix."""
    import obstore

    return sum(len(found) for found in obstore.list(_obstore(store), "raw", chunk_size=1000))


def ours(urls: list[str], store: SlowStore) -> int:
    """What a build does for a list of URLs."""
    from javisc.manifests.objects import infos

    return sum(info["size"] > 0 for info in infos(urls).values())


WAYS: dict[str, Callable[[list[str], SlowStore], int]] = {
    "s3fs, info one by one": one_by_one,
    "s3fs, info 256 at a time": fsspec_heads,
    "obstore, head 256 at a time": obstore_heads,
    "s3fs, one listing": fsspec_list,
    "obstore, one listing": obstore_list,
    "javisc, a list of these URLs": ours,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objects", type=int, default=5000)
    parser.add_argument("--latency", type=float, default=0.02)
    parser.add_argument("--ways", nargs="*", default=list(WAYS))
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    lines = ["| way | objects | seconds | objects a second | requests |", "|---|---:|---:|---:|---|"]
    with slow_store(arguments.objects, arguments.latency) as store:
        names = [f"raw/{number // 1000:04d}/{number:08d}.mp4" for number in range(arguments.objects)]
        for way in arguments.ways:
            # What takes an answer for each is asked of a part, where all would take an hour.
            urls = [f"s3://b/{name}" for name in (names[:1000] if "one by one" in way else names)]
            before, began = store.counts(), time.monotonic()
            found = WAYS[way](urls, store)
            seconds = time.monotonic() - began
            assert found == len(urls), (way, found)
            asked = ", ".join(f"{count} {kind}" for kind, count in (store.counts() - before).items())
            lines.append(f"| {way} | {len(urls):,} | {seconds:.2f} | {len(urls) / seconds:,.0f} | {asked} |")
            print(lines[-1], flush=True)
    if arguments.out:
        head = f"# Many objects: {arguments.latency * 1000:.0f} ms of latency, one loopback server, 2 loaded cores"
        arguments.out.write_text("\n".join([head, "", *lines]) + "\n")


if __name__ == "__main__":
    main()
