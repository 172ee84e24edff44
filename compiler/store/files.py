"""Where a dataset is written: a local folder or an object store, behind the few operations a build needs."""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from javisc.manifests.environment import patiently
from javisc.manifests.errors import UserError
from javisc.manifests.files import publish_many, published
from javisc.manifests.urls import filesystem, is_url, join, plain

T = TypeVar("T")
#: The folder in a dataset that later builds of it need; the dataset is complete without it.
BUILD = ".build"


class Store:
    """Files under one root. `publish` makes a name appear whole or not at all; reading gives local paths.

    An object store that does not answer is asked again for a while; then every function raises Unavailable.

    root: a local folder or an fsspec URL. scratch: local folder for what is fetched or about to be uploaded. field: what lies
    here is a field of a dataset, whose shards stand beside its tables and whose header is field.json.
    """

    def __init__(self, root: str, scratch: Path, *, field: bool = False) -> None:
        root = plain(root)
        self.field = field
        self.packs: tuple[str, ...] = () if field else ("shards",)
        self.header = "field.json" if field else "dataset.json"
        self.remote = is_url(root)
        self.root = root.rstrip("/") if self.remote else os.path.abspath(root)  # noqa: PTH100 (keeps links)
        self.scratch = scratch
        self.fs: Any = None
        self.base = self.root
        if self.remote:
            try:
                self.fs, self.base = filesystem(self.root)
            except (ImportError, ValueError) as error:
                raise UserError(f"{root} cannot be opened: {error}") from error

    def path(self, *parts: str) -> str:
        """The full path or URL of a file."""
        return join(self.root, *parts)

    def _ask(self, call: Callable[[], T], *parts: str) -> T:
        """Ask the object store, patiently."""
        return patiently(call, self.path(*parts), remote=True)

    def exists(self, *parts: str) -> bool:
        if not self.remote:
            return Path(self.root, *parts).exists()
        try:  # not fs.exists: some drivers take every failure for a no
            self._ask(lambda: self.fs.info(join(self.base, *parts)), *parts)
        except FileNotFoundError:
            return False
        return True

    def names(self, *parts: str) -> set[str]:
        """Names of the files in a folder; none if it is absent."""
        if not self.remote:
            folder = Path(self.root, *parts)
            return {entry.name for entry in os.scandir(folder)} if folder.is_dir() else set()
        try:
            found = self._ask(lambda: self.fs.ls(join(self.base, *parts), detail=False), *parts)
        except FileNotFoundError:
            return set()
        return {str(path).rstrip("/").rsplit("/", 1)[-1] for path in found}

    def sizes(self, *parts: str) -> dict[str, int]:
        """Bytes of each file in a folder; none if it is absent."""
        if not self.remote:
            folder = Path(self.root, *parts)
            return {entry.name: entry.stat().st_size for entry in os.scandir(folder)} if folder.is_dir() else {}
        try:
            found = self._ask(lambda: self.fs.ls(join(self.base, *parts), detail=True), *parts)
        except FileNotFoundError:
            return {}
        return {str(row["name"]).rstrip("/").rsplit("/", 1)[-1]: int(row.get("size") or 0) for row in found}

    def times(self, *parts: str) -> dict[str, float]:
        """When each file in a folder was written, seconds since 1970; none where it is absent or the store does not say."""
        if not self.remote:
            folder = Path(self.root, *parts)
            return {entry.name: entry.stat().st_mtime for entry in os.scandir(folder)} if folder.is_dir() else {}
        try:
            found = self._ask(lambda: self.fs.ls(join(self.base, *parts), detail=True), *parts)
        except FileNotFoundError:
            return {}
        when = {str(row["name"]).rsplit("/", 1)[-1]: row.get("LastModified") or row.get("mtime") for row in found}
        return {
            name: time.timestamp() if isinstance(time, datetime) else float(time)
            for name, time in when.items()
            if isinstance(time, datetime | float | int)
        }

    def fetch(self, *parts: str) -> Path:
        """A local copy of a file (the file itself where the store is local). Raises FileNotFoundError."""
        if not self.remote:
            return Path(self.root, *parts)
        self.scratch.mkdir(parents=True, exist_ok=True)
        local = self.scratch / f"{uuid.uuid4().hex}-{parts[-1]}"
        self._ask(lambda: self._get(join(self.base, *parts), local), *parts)
        return local

    def read(self, *parts: str) -> bytes:
        """A small file's content. Raises FileNotFoundError."""
        if self.remote:
            return bytes(self._ask(lambda: self.fs.cat_file(join(self.base, *parts)), *parts))
        return Path(self.root, *parts).read_bytes()

    def read_range(self, start: int, length: int, *parts: str) -> bytes:
        """`length` bytes of a file from `start` on, fewer at its end. Raises FileNotFoundError."""
        if self.remote:
            where = join(self.base, *parts)
            return bytes(self._ask(lambda: self.fs.cat_file(where, start=start, end=start + length), *parts))
        with Path(self.root, *parts).open("rb") as stream:
            stream.seek(start)
            return stream.read(length)

    def fetch_many(self, folder: tuple[str, ...], names: list[str]) -> list[Path]:
        """Local copies of many small files of a folder, in order; an object store is asked for all of them at once."""
        if not self.remote or not names:
            return [self.fetch(*folder, name) for name in names]
        target = self.scratch / uuid.uuid4().hex
        target.mkdir(parents=True)
        found = [target / name for name in names]
        remote = [join(self.base, *folder, name) for name in names]
        self._ask(lambda: self.fs.get(remote, [str(path) for path in found]), *folder)
        return found

    def _get(self, remote: str, local: Path) -> None:
        size = self.fs.info(remote).get("size")
        self.fs.get_file(remote, str(local))
        if size is not None and local.stat().st_size != size:
            raise OSError(f"{local.stat().st_size} of {size} bytes came")

    @contextmanager
    def publish(self, *parts: str) -> Iterator[Path]:
        """Yield a local path to write to; the file appears under its name only when the block ends well.

        Raises UserError if nothing can be written here.
        """
        try:
            if not self.remote:
                with published(Path(self.root, *parts)) as temporary:
                    yield temporary
                return
            self.scratch.mkdir(parents=True, exist_ok=True)
            local = self.scratch / f"{uuid.uuid4().hex}-{parts[-1]}"
            try:
                yield local
                # An object store shows an object when its upload is complete, and keeps the old one until then.
                self._ask(lambda: self.fs.put_file(str(local), join(self.base, *parts)), *parts)
            finally:
                local.unlink(missing_ok=True)
        except OSError as error:
            raise unwritable(self.path(*parts), error) from error

    def write(self, content: bytes, *parts: str) -> None:
        """Publish a small file. Raises UserError if nothing can be written here."""
        if not self.remote:
            with self.publish(*parts) as local:
                local.write_bytes(content)
            return
        try:
            self._ask(lambda: self.fs.pipe_file(join(self.base, *parts), content), *parts)
        except OSError as error:
            raise unwritable(self.path(*parts), error) from error

    def write_many(self, contents: Mapping[tuple[str, ...], bytes | memoryview]) -> None:
        """Publish many small files, in no order; those that are there when this fails say nothing. Raises UserError."""
        try:
            if not self.remote:
                publish_many({Path(self.root, *parts): content for parts, content in contents.items()})
                return
            objects = {join(self.base, *parts): bytes(content) for parts, content in contents.items()}
            self._ask(lambda: self.fs.pipe(objects))
        except OSError as error:
            raise unwritable(error.filename or self.root, error) from error

    def create(self, content: bytes, *parts: str) -> bool:
        """Write a small object only where there is none; False if there is one. For object stores (a conditional write)."""
        where = join(self.base, *parts)

        def attempt() -> bool:
            try:
                self.fs.pipe_file(where, content, mode="create")
            except FileExistsError:
                return False
            except OSError:
                # Stores say "precondition failed" in errors of their own: what counts is whether it is there now.
                if self.exists(*parts):
                    return False
                raise
            return True

        return self._ask(attempt, *parts)

    def remove(self, *parts: str) -> None:
        """Remove a file if it is there."""
        if not self.remote:
            Path(self.root, *parts).unlink(missing_ok=True)
        elif self.exists(*parts):
            self._ask(lambda: self._remove(join(self.base, *parts)), *parts)

    def _remove(self, remote: str) -> None:
        try:
            self.fs.rm_file(remote)
        except FileNotFoundError:  # an attempt whose answer was lost
            return

    def remove_tree(self, *parts: str) -> None:
        """Remove a local folder and all below it; links are removed, not followed."""
        if not self.remote:
            shutil.rmtree(Path(self.root, *parts), ignore_errors=True)


def unwritable(path: str | os.PathLike[str], error: OSError) -> UserError:
    """One line for a disk that is full or cannot be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return UserError(
            f"{os.fspath(path)} cannot be written: {error.strerror or error}; nothing published was harmed: "
            "make room and run the same command again, it resumes",
            exit_code=1,
        )
    return UserError(
        f"{os.fspath(path)} cannot be written: {error.strerror or error}; mend that (permissions, mount, space), or give "
        "another --out, and run the same command again, it resumes",
        exit_code=1,
    )
