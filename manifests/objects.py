"""Sizes and times of many objects at once: lists of a thousand where they lie close, hundreds of questions at a time elsewhere.

obstore does it for s3://, a dozen times as fast as fsspec (`benchmarks/results/objects.md`). It asks the endpoint that fsspec
was set up for, with its credentials; what it cannot tell is asked of fsspec, which decides: nobody else is asked.
"""

from __future__ import annotations

import bisect
import importlib.util
import re
from collections.abc import Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from itertools import takewhile
from typing import Any, TypeVar
from urllib.parse import urlsplit

from javisc.manifests.environment import patiently
from javisc.manifests.urls import filesystem

#: Questions at a time, of obstore and of drivers that can only be asked through threads.
AT_ONCE, THREADS = 256, 32
#: Objects in a page of a list, and wanted ones in it that make the next page worth asking for.
PAGE, WORTH = 1000, 20
#: Keys that obstore and fsspec spell alike: of others fsspec has the last word.
_PLAIN = re.compile(r"[A-Za-z0-9_.\-/ ]+")

Info = dict[str, Any]
T = TypeVar("T")


def infos(urls: Sequence[str]) -> dict[str, Info | Exception]:
    """What fsspec's `info` says of each URL (type, size, LastModified in whole seconds, ETag), or the error that it raises.

    Raises Unavailable where a store does not answer; other failures are the URL's own.
    """
    found: dict[str, Info | Exception] = {}
    by_place: dict[tuple[str, str], list[str]] = {}
    for url in dict.fromkeys(urls):
        try:
            parts = urlsplit(url)
            place = (parts.scheme, parts.netloc)
        except ValueError:  # as s3://[x: asked alone, and refused
            place = ("", url)
        by_place.setdefault(place, []).append(url)
    for (scheme, bucket), asked in by_place.items():
        if scheme == "s3" and len(asked) > 1:
            found |= _of_bucket(bucket, asked)
    left = [url for url in dict.fromkeys(urls) if url not in found]
    if len(left) == 1:
        found[left[0]] = _one(left[0])
    elif left:
        with ThreadPoolExecutor(THREADS) as threads:
            found |= dict(zip(left, threads.map(_one, left), strict=True))
    return found


def _one(url: str) -> Info | Exception:
    """What fsspec says of one URL."""
    try:
        fs, inside = filesystem(url)
        return dict(patiently(lambda: fs.info(inside), url, remote=True))
    except FileNotFoundError:
        return FileNotFoundError(f"{url} is not there")
    except (OSError, ValueError, ImportError) as error:
        return error


def listing(root: str) -> Iterator[list[tuple[str, Info]] | None]:
    """Every object below a URL, some thousand at a time: its path and what fsspec's `find` with details says of it.

    None: a list broke off, what came before it counts for nothing and comes again. Raises what fsspec raises.
    """
    fs, base = filesystem(root.rstrip("/"))
    bucket, _, prefix = base.partition("/")
    store = _obstore(fs, bucket) if urlsplit(root).scheme == "s3" else None
    if store is not None:
        import obstore

        any_page = False
        try:
            for page in obstore.list(store, prefix or None, chunk_size=PAGE):
                any_page = any_page or bool(page)
                yield [(f"{bucket}/{meta['path']}", _info(meta)) for meta in page]
        except GeneratorExit:
            raise
        except Exception:  # noqa: BLE001 (whatever it is, fsspec tells it in words that we know; control characters in a name)
            any_page = False
            yield None
        if any_page:
            return
    found = dict(patiently(lambda: fs.find(base, detail=True), root, remote=True))
    yield list(found.items())


def contents(urls: Sequence[str], most: int) -> dict[str, bytes]:
    """What small objects of s3:// hold, hundreds at a time, by one request each; what is left out is to be asked for alone.

    most: bytes of one; longer ones are left out, as is what is not there, or cannot be read.
    """
    by_bucket: dict[str, dict[str, str]] = {}
    for url in urls:
        bucket, _, key = url.removeprefix("s3://").partition("/")
        if url.startswith("s3://") and _PLAIN.fullmatch(key) and "//" not in key:
            by_bucket.setdefault(bucket, {})[key] = url
    found: dict[str, bytes] = {}
    for bucket, keys in by_bucket.items():
        try:
            fs, _ = filesystem(f"s3://{bucket}")
            store = _obstore(fs, bucket)
        except (OSError, ValueError, ImportError):
            continue
        if store is not None:
            found |= {keys[key]: held for key, held in _run(_held(store, list(keys), most)).items()}
    return found


def _run(work: Coroutine[Any, Any, T]) -> T:
    import asyncio  # here, so that what reads local files alone starts without it

    return asyncio.run(work)


async def _held(store: Any, keys: list[str], most: int) -> dict[str, bytes]:
    import asyncio

    import obstore

    found: dict[str, bytes] = {}
    gate = asyncio.Semaphore(AT_ONCE)

    async def ask(key: str) -> None:
        async with gate:
            try:
                answer = await obstore.get_async(store, key)
                if answer.meta["size"] <= most:
                    found[key] = bytes(await answer.bytes_async())
            except Exception:  # noqa: BLE001 (fsspec is asked instead, and its failure told)
                return

    await asyncio.gather(*(ask(key) for key in keys))
    return found


def _of_bucket(bucket: str, urls: list[str]) -> dict[str, Info | Exception]:
    """What obstore tells for sure of a bucket's objects."""
    try:
        fs, _ = filesystem(urls[0])
        store = _obstore(fs, bucket)
    except (OSError, ValueError, ImportError):
        return {}
    if store is None:
        return {}
    keys = {url.partition("://")[2].partition("/")[2]: url for url in urls}
    plain = sorted(key for key in keys if _PLAIN.fullmatch(key) and "//" not in key and not key.endswith("/"))
    seen = _run(_seen(store, plain))
    return {
        keys[key]: FileNotFoundError(f"{keys[key]} is not there") if meta is None else _info(meta, whole_seconds=True)
        for key, meta in seen.items()
    }


async def _seen(store: Any, keys: list[str]) -> dict[str, Any]:
    """Key → obstore's ObjectMeta, None for what is not there; what could not be asked is left out. keys: sorted."""
    import asyncio

    import obstore
    from obstore.exceptions import NotFoundError

    found: dict[str, Any] = {}
    gate = asyncio.Semaphore(AT_ONCE)

    async def ask(key: str) -> None:
        async with gate:
            try:
                found[key] = await obstore.head_async(store, key)
            except (FileNotFoundError, NotFoundError):
                found[key] = None
            except Exception:  # noqa: BLE001 (fsspec is asked instead, and its failure told)
                return

    at, lists = 0, True
    while at < len(keys):
        passed = at
        if lists and len(keys) - at >= WORTH:
            try:
                passed = await _listed(store, keys, at, found)
            except Exception:  # noqa: BLE001 (who may not list may still ask)
                lists = False
        # Keys that a page should have had and had not are asked for, too: not every store lists in order.
        end = max(passed, min(len(keys), at + 2 * AT_ONCE))
        await asyncio.gather(*(ask(key) for key in keys[at:end] if key not in found))
        at = end
    return found


async def _listed(store: Any, keys: list[str], at: int, found: dict[str, Any]) -> int:
    """List from keys[at] on for as long as pages are worth it; note what is seen. Returns up to which key pages went."""
    import obstore

    parts = zip(keys[at].split("/")[:-1], keys[-1].split("/")[:-1], strict=False)
    common = "/".join(one for one, _ in takewhile(lambda both: both[0] == both[1], parts))
    # The offset is what comes before: a key without its last letter does.
    pages = obstore.list(store, common or None, offset=keys[at][:-1] or None, chunk_size=PAGE)
    async for page in pages:
        there = {meta["path"]: meta for meta in page}
        end = bisect.bisect_right(keys, max(there), lo=at)
        wanted = [key for key in keys[at:end] if key in there]
        found |= {key: there[key] for key in wanted}
        at = end
        if at == len(keys) or len(wanted) < WORTH:
            break
    return at


def _info(meta: Any, *, whole_seconds: bool = False) -> Info:
    when: datetime = meta["last_modified"]
    return {
        "type": "file",
        "size": int(meta["size"]),
        "LastModified": when.replace(microsecond=0) if whole_seconds else when,
        "ETag": meta.get("e_tag"),
    }


def _obstore(fs: Any, bucket: str) -> Any:
    """obstore's store for a bucket, where fsspec's own client says it is and as whom it asks; None without obstore."""
    if importlib.util.find_spec("obstore") is None or importlib.util.find_spec("s3fs") is None:
        return None
    from obstore.store import S3Store

    client = fs.s3  # the client that s3fs made of the environment, profiles and fsspec's own settings
    endpoint = str(client.meta.endpoint_url)
    given: dict[str, Any] = {"endpoint": endpoint, "region": client.meta.region_name or "us-east-1"}
    if fs.anon:
        given["skip_signature"] = True
    elif fs.key and fs.secret:
        given |= {"access_key_id": fs.key, "secret_access_key": fs.secret}
        given |= {"session_token": fs.token} if fs.token else {}
    else:
        given["credential_provider"] = _Credentials(fs)
    patience: Any = {"max_retries": 3, "retry_timeout": timedelta(seconds=30)}  # then fsspec is asked, for longer
    options: Any = {"allow_http": endpoint.startswith("http://")}
    return S3Store(bucket, client_options=options, retry_config=patience, **given)


class _Credentials:
    """Hands obstore the credentials of fsspec's session, refreshed by it."""

    def __init__(self, fs: Any) -> None:
        self.fs = fs

    def __call__(self) -> dict[str, Any]:
        from fsspec.asyn import sync

        found = sync(self.fs.loop, self._frozen)
        return {
            "access_key_id": found.access_key,
            "secret_access_key": found.secret_key,
            "token": found.token,
            "expires_at": None,
        }

    async def _frozen(self) -> Any:
        credentials = await self.fs.session.get_credentials()
        return await credentials.get_frozen_credentials()
