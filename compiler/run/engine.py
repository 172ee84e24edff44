"""What an engine is: it takes work units and publishes them; everything else of a build does not know how."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from javisc.compiler.recipe import Recipe
from javisc.manifests.entries import named
from javisc.manifests.errors import UserError

if TYPE_CHECKING:
    from javisc.compiler.run.pool import Pool

#: What becomes of one file, by kind of recipe: `module:function`, called as f(source, recipe, scratch, window=…) -> Clip, and
#: with sound=… where a row names a file of its own for the sound, boxes=… where it has some.
COMPILERS = {
    "jav": "javisc.compiler.media.transcode:transcode",
    "sync": "javisc.compiler.sparsesync.cuts:transcode_cut",
    "audio": "javisc.compiler.media.sound_only:transcode_audio",
}

#: What tells a source's length and size before it is compiled: `module:function`, called as f(source) → .duration (seconds or
#: None), .width, .height (pixels, 0 without pictures).
PROBE = "javisc.compiler.media.open:probe"

#: Engines by name: `module:class`, made with (job, options).
ENGINES = {"local": "javisc.compiler.run.local:LocalEngine", "ray": "javisc.compiler.run.ray:RayEngine"}


@dataclass(frozen=True)
class Unit:
    """One shard: its number, its revision and its inputs (rows of the plan) in key order.

    Units are idempotent: running one twice, or half and then whole, publishes the same bytes. expected: sha256 and idx_sha256
    of a shard that was published and is lost: other bytes are not published, but end the run.
    """

    shard: int
    revision: int
    inputs: list[dict[str, Any]]
    expected: dict[str, Any] | None = None


@dataclass(frozen=True)
class Job:
    """What all units of a build share.

    out: folder or URL of the dataset. scratch: local folder for clips until they are packed.
    compiler: see COMPILERS. time_limit: CPU seconds per file, to which SECONDS_PER_MB per megabyte of
    source are added, and what effort.needed finds.
    split, seed: names and shares of the splits that rows without one are drawn into, by their group. plan: the plan's digest.
    renditions: recipes of smaller pictures that are made with each clip, into fields of their names.
    """

    out: str
    recipe: Recipe
    scratch: str
    compiler: str
    time_limit: float = 120.0
    split: Mapping[str, float] = field(default_factory=dict)
    seed: int = 0
    plan: str | None = None
    renditions: tuple[Recipe, ...] = ()


def modules_of(compiler: str) -> tuple[str, ...]:
    """What a worker imports before it takes calls of such a compiler."""
    return ("javisc.compiler.run.unit", compiler.partition(":")[0])


@dataclass(frozen=True)
class Event:
    """One input is done: what progress is made of. reason is None for a sample."""

    path: str
    source_bytes: int
    media_seconds: float
    work_seconds: float
    reason: str | None = None
    message: str | None = None


@dataclass(frozen=True)
class UnitResult:
    """A published unit: its shard, samples, rejects by reason, and bytes of the tar (0 where every input was refused)."""

    shard: int
    samples: int
    bytes: int
    rejected: dict[str, int] = field(default_factory=dict)


class Engine(Protocol):
    """Runs units in any order and any place, each at least once, and yields what it published.

    A file that crashes or hangs its worker costs one retry in a worker of its own, then a reject; it never ends the run.
    Storage that does not answer is asked again for a while; then the run ends and nothing is held against a file.
    Raises UserError where nothing can be written, Unavailable where storage does not answer.
    """

    def run(self, units: Iterable[Unit], report: Callable[[Event], None]) -> Iterator[UnitResult]: ...


@dataclass(frozen=True)
class EngineOptions:
    """How an engine runs; nothing of it has a say in the bytes.

    workers: processes of this machine, or of one unit on a cluster; None: as many as fit. address: of a cluster. scratch: a
    local folder on whichever machine runs a unit; None: the engine's choice. pool: workers of this machine that were started
    before; None: the engine's own.
    """

    workers: int | None = None
    address: str | None = None
    scratch: str | None = None
    pool: Pool | None = None


def check_engine(name: str, options: EngineOptions, *, used: bool = True) -> None:
    """Raise UserError if there is no engine called `name` or, where it is to be `used`, if it cannot run here."""
    if name not in ENGINES:
        raise UserError(f"--engine {name!r}: known are {', '.join(ENGINES)}")
    if used and (check := getattr(named(ENGINES[name]), "check", None)) is not None:
        check(options)


def make_engine(name: str, job: Job, options: EngineOptions) -> Engine:
    """The engine called `name`. Raises UserError if there is none of that name."""
    check_engine(name, options, used=False)
    engine: Engine = named(ENGINES[name])(job, options)
    return engine


#: Sounds of up to so many bytes take milliseconds.
SHORT = 4_000_000
#: Added to a file's time limit: slower than any sane encode of a megabyte of source.
SECONDS_PER_MB = 10.0


def limit_of(source_bytes: int | None, time_limit: float) -> float:
    """Seconds a file may take by its size alone: `time_limit` and SECONDS_PER_MB per megabyte of source."""
    return time_limit + SECONDS_PER_MB * (source_bytes or 0) / 1e6
