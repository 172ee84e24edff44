"""Settings as people write them: sizes, shares, ranges and recipes."""

from __future__ import annotations

import re
from collections.abc import Mapping

from javisc.compiler.recipe import PRESETS, Recipe
from javisc.manifests.errors import UserError

_UNITS = {
    "": 1,
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 1 << 10,
    "MIB": 1 << 20,
    "GIB": 1 << 30,
}


def size(text: str, option: str) -> int:
    """Bytes from "512MB", "1.5GiB" or "1000". Raises UserError."""
    match = re.fullmatch(r"(\d{1,12}(?:\.\d{1,6})?)\s*([A-Za-z]*)", text.strip())
    if (
        match is None
        or match[2].upper() not in _UNITS
        or (count := int(float(match[1]) * _UNITS[match[2].upper()])) < 1
    ):
        raise UserError(f"{option} {text!r}: a number with B, KB, MB, GB, TB, KiB, MiB or GiB is allowed, as 512MB")
    return count


def sides(text: str) -> tuple[int, ...]:
    """Shorter sides of renditions from "240,480", each once. Raises UserError."""
    if not text:
        return ()
    parts = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch(r"\d{2,4}", part) and int(part) % 2 == 0 and 16 <= int(part) <= 4096 for part in parts):
        raise UserError(f"--renditions {text!r}: even numbers from 16 to 4096 with commas are allowed, as 240,480")
    return tuple(dict.fromkeys(int(part) for part in parts))


def shard_range(text: str) -> tuple[int, int | None]:
    """A half-open range of shards from "0:8", "8:" or ":8". Raises UserError."""
    match = re.fullmatch(r"(\d{0,9}):(\d{0,9})", text)
    low, high = (int(match[1] or 0), int(match[2]) if match[2] else None) if match else (0, 0)
    if match is None or (high is not None and high <= low):
        raise UserError(f"--shard-range {text!r}: A:B with A < B is allowed, as 0:8 for the shards 0 to 7")
    return low, high


#: What tells a task of an array its number, the lowest number, the highest, the step and the count: Slurm, Grid Engine, LSF.
_ARRAYS = (
    (
        "SLURM_ARRAY_TASK_ID",
        "SLURM_ARRAY_TASK_MIN",
        "SLURM_ARRAY_TASK_MAX",
        "SLURM_ARRAY_TASK_STEP",
        "SLURM_ARRAY_TASK_COUNT",
    ),
    ("SGE_TASK_ID", "SGE_TASK_FIRST", "SGE_TASK_LAST", "SGE_TASK_STEPSIZE", ""),
    ("LSB_JOBINDEX", "", "LSB_JOBINDEX_END", "LSB_JOBINDEX_STEP", ""),
)


def part(text: str, environment: Mapping[str, str]) -> tuple[int, int]:
    """(i, n) of "i/n" with 0 ≤ i < n, or of "auto" from what a scheduler tells the tasks of an array. Raises UserError."""
    if text == "auto":
        return _of_array(environment)
    match = re.fullmatch(r"(\d{1,7})/(\d{1,7})", text)
    index, count = (int(match[1]), int(match[2])) if match else (0, 0)
    if index >= count:
        raise UserError(
            f"--part {text!r}: I/N with I from 0 to N-1 is allowed, as 0/64 to 63/64, or auto in an array of tasks"
        )
    return index, count


def _of_array(environment: Mapping[str, str]) -> tuple[int, int]:
    def number(name: str, default: int) -> int:
        found = environment.get(name, "")
        return int(found) if found.isdigit() else default

    for name, low, high, step, count in _ARRAYS:
        task = number(name, -1)
        if task < 0 or (task == 0 and name == "LSB_JOBINDEX"):  # LSF sets 0 outside of arrays
            continue
        first, last, stride = number(low, 1), number(high, task), max(1, number(step, 1))
        size = (last - first) // stride + 1
        if (said := number(count, size)) != size:
            raise UserError(
                f"--part auto: this array has gaps ({said} tasks from {first} to {last}), so its shares cannot be told: "
                f"give --part ${name}/N with the N of the first run"
            )
        return (task - first) // stride, size
    if (processes := number("SLURM_NTASKS", 0)) > (process := number("SLURM_PROCID", -1)) >= 0:
        return process, processes
    names = ", ".join(name for name, *_ in _ARRAYS)
    raise UserError(f"--part auto: none of {names} and SLURM_PROCID is set: give --part I/N")


def preset(name: str, kinds: tuple[str, ...]) -> Recipe:
    """The preset of that name and of one of the kinds. Raises UserError."""
    fit = [known for known, made in PRESETS.items() if made.kind in kinds]
    if name not in fit:
        raise UserError(f"--recipe {name!r}: known here are {', '.join(fit)}")
    return PRESETS[name]
