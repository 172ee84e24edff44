"""Takes a dataset's lock in many rounds, together with another process: `python -m support.contender URL FOLDER NAME ROUNDS`.

A round begins when both have said that they are ready; each tells whether it got the lock, or what it was told.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from javisc.compiler.store.files import Store
from javisc.compiler.store.lock import locked
from javisc.manifests.errors import UserError


def await_files(*paths: Path) -> None:
    until = time.monotonic() + 60
    while not all(path.exists() for path in paths):
        assert time.monotonic() < until, paths
        time.sleep(0.0005)


def main(url: str, folder: Path, name: str, rounds: int) -> None:
    """Take part in `rounds` rounds; FOLDER/NAME.N says what came of round N."""
    for number in range(rounds):
        store = Store(f"{url}/{number}", folder / f"scratch-{name}")
        (folder / f"ready-{name}.{number}").touch()
        await_files(*(folder / f"ready-{each}.{number}" for each in ("a", "b")))
        try:
            with locked(store):
                (folder / f"{name}.{number}").write_text("held")
                await_files(*(folder / f"{each}.{number}" for each in ("a", "b")))
        except UserError as error:
            (folder / f"{name}.{number}").write_text(str(error))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
