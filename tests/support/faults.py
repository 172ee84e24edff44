"""Compilers that fail on purpose: what a worker may meet. Named to a build by `BuildOptions.compiler`."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import signal
import time
from pathlib import Path

from javisc.compiler.media.transcode import Clip, transcode
from javisc.compiler.reasons import Rejected
from javisc.compiler.recipe import Recipe
from javisc.compiler.run.effort import LINE
from javisc.manifests.environment import Unavailable


def fake(source: Path, recipe: Recipe, scratch: Path, *, window: tuple[float, float] | None = None) -> Clip:
    """A clip made of the source's bytes, in no time; a pure function like the real one."""
    content = source.read_bytes()
    if content.startswith(b"slow"):
        time.sleep(0.05)
    digest = hashlib.sha256(content + repr(window).encode()).digest()
    mp4, flac = scratch / "clip.mp4", scratch / "clip.flac"
    mp4.write_bytes(digest * (len(content) % 97))
    flac.write_bytes(digest[:7])
    columns = {"num_frames": 24, "duration": 1.0, "channels": 1, "fps": 24.0, "audio_fps": 16000, "num_samples": 16000}
    return Clip({"mp4": mp4, "flac": flac}, columns)


def seen(source: Path, recipe: Recipe, scratch: Path, *, window: tuple[float, float] | None = None) -> Clip:
    """Like `fake`; the process writes down its number."""
    with Path(os.environ["JAVISC_TEST_SEEN"]).open("a") as notes:
        notes.write(f"{os.getpid()}\n")
    return fake(source, recipe, scratch, window=window)


def film(source: Path, recipe: Recipe, scratch: Path, *, window: tuple[float, float] | None = None) -> Clip:
    """The real compiler, whose process is killed once, at the window that a file beside the source names, which then goes."""
    deadly = source.with_suffix(".deadly")
    if window is not None and deadly.exists() and float(deadly.read_text()) == window[0]:
        deadly.unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    return transcode(source, recipe, scratch, window=window)


def who(seconds: float) -> int:
    """The process that was called, after a while."""
    time.sleep(seconds)
    return os.getpid()


def faulty(source: Path, recipe: Recipe, scratch: Path, *, window: tuple[float, float] | None = None) -> Clip:
    """Like `fake`, but does what the file's content says."""
    order, _, argument = source.read_text(errors="replace").partition(" ")
    if order == "segfault":
        ctypes.string_at(0)
    if order in ("hang", "spin") and argument:  # it tells where that it begins
        Path(argument.strip()).touch()
    if order == "hang":
        while True:
            time.sleep(60)
    if order == "spin":  # a codec that loops without ever letting go of the interpreter's lock
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        while True:
            pass
    if order == "exit":
        os._exit(7)
    if order == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if order == "unit":  # the process that runs the shard's pool, as when its node runs out of memory
        os.kill(os.getppid(), signal.SIGKILL)
    if order == "memory":
        raise MemoryError("as if")
    if order == "eats":  # more memory than there is, at a pace that can be watched; it notes where that it begins
        with Path(argument.strip()).open("a") as notes:
            notes.write("begun\n")
        held = []
        while len(held) < 1000:
            held.append(b"x" * 20_000_000)
            time.sleep(0.03)
    if order == "until" and not Path(argument.strip()).exists():
        raise ZeroDivisionError("a bug of ours, until it is mended")
    if order == "bug":
        raise ZeroDivisionError("a bug of ours")
    if order == "reject":
        raise Rejected("corrupt", "a message of the library\nbelow")
    if (
        order == "film" and window is not None and argument and window[0] == float(argument)
    ):  # one window of it is deadly
        os.kill(os.getpid(), signal.SIGKILL)
    if order == "full":
        (scratch / "half.mp4").write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(scratch / "half.mp4"))
    if order == "once":  # the first attempt dies, the second one lives
        mark = Path(argument.strip())
        if not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
    return fake(source, recipe, scratch, window=window)


def burn(seconds: float, asks: float | None) -> str:
    """Compute for so many seconds of CPU time, having asked for `asks` (None: having said nothing)."""
    if asks is not None:
        LINE.send(asks)
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass
    return "done"


def held(megabytes: int) -> int:
    """Take memory step by step, slowly enough to be seen with it."""
    return len([b"x" * 1_000_000 for _ in range(megabytes) if time.sleep(0.002) is None])


def away(number: int) -> int:
    """What reads from storage that does not answer."""
    raise Unavailable("/mnt/away does not answer", waited=True)


def deadly_three(number: int) -> int:
    """The square of a number; three kills its worker."""
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number**2


def squares(numbers: list[int], load: str = "") -> dict[str, object]:
    """The squares of numbers, where three is deadly, and which process made them; a model would be loaded once for it."""
    return {
        "squares": [deadly_three(number) for number in numbers],
        "process": os.getpid(),
        "gpus": os.environ.get("CUDA_VISIBLE_DEVICES"),
    }


def short(what: str, number: int) -> int:
    """A short call that dies, hangs, takes a little or only answers."""
    if what == "crash":
        os._exit(7)
    if what == "hang":
        time.sleep(600)
    if what == "nap":
        time.sleep(0.1)
    return number**2


def broken_fetch(wanted: list[tuple[str, str, str, int | None]]) -> None:
    """A mistake of javisc's own in what fetches."""
    raise TypeError(f"cannot fetch {len(wanted)} sources")


def kept_fetch(wanted: list[tuple[str, str, str, int | None]]) -> None:
    """A fetch that is done at once."""


def faulty_digest(sources: list[tuple[str, str]], known: object) -> None:
    """A digest that does what the source's name says."""
    if "crash" in sources[0][0]:
        os._exit(7)
    raise TypeError("a mistake in the digest")
