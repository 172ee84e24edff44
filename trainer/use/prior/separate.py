"""`javisc build prior separate`: each clip's sound taken apart into its sources, which sum to it, and where each is active."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from javisc.manifests.errors import UserError
from javisc.manifests.extras import need
from javisc.manifests.members import MemberReader, ShardAway
from javisc.trainer.data.bytes.decode import DecodeError
from javisc.trainer.data.sources.pool_names import SEPARATED
from javisc.trainer.use.prior.activity import KIND, Asked, active
from javisc.trainer.use.prior.clips import Wave, caption, clips, flac, items, refused, sound_row, wave_of
from javisc.trainer.use.prior.phrases import Descriptions, phrases
from javisc.trainer.use.prior.stage import PLACE, POOL_SCHEMA, Made, Part, Weighted, seed_of

BASELINES = ("hpss", "nmf")
#: Parts that `nmf` looks for.
COMPONENTS = 4
#: Stretches that are taken apart one by one, seconds, and how much neighbours share: they are faded into each other.
CHUNK, OVERLAP = 30.0, 2.0


class Separator(Protocol):
    """What takes a stretch of sound apart."""

    def __call__(self, wave: Wave, rate: int, queries: Sequence[str]) -> list[Wave]:
        """A source [samples] for each query."""


class Separate(Weighted):
    """The stage. `baseline`: "hpss" (harmonic and percussive) or "nmf" (COMPONENTS spectra), which need no descriptions; else
    a network from the folder `separator`. `descriptions`: a table of what to look for; without it, phrases of the captions.
    `activity`: a folder with what says where each is heard; without it, its level does."""

    name = "separate"
    schema = POOL_SCHEMA
    recipe = None

    def __init__(
        self,
        dataset: str,
        *,
        baseline: str = "",
        separator: str = "",
        descriptions: str = "",
        activity: str = "",
        seed: int = 0,
        **network: Any,
    ) -> None:
        if bool(baseline) == bool(separator):
            raise UserError("give one of --separator PATH, --baseline hpss and --baseline nmf")
        if baseline and baseline not in BASELINES:
            raise UserError(f"--baseline {baseline!r}: allowed are {', '.join(BASELINES)}")
        for option, value in (("--descriptions", descriptions), ("--activity", activity)):
            if baseline and value:
                raise UserError(f"--baseline {baseline} looks for no descriptions: leave out {option} {value}")
        self.dataset, self.baseline, self.seed, self.descriptions = dataset, baseline, seed, descriptions
        self.network: Any = None
        self.asked: Asked | None = None
        self.networks: list[Path] = []
        if separator:
            from javisc.trainer.use.prior.separators import Network

            self.network = Network(separator, **network)
            self.networks = [self.network.path]
            if activity:
                self.asked = Asked(activity)
                self.networks.append(self.asked.path)
        else:
            need(f"--baseline {baseline}", "scipy")

    def header(self) -> dict[str, Any]:
        """What took the sounds apart."""
        made: dict[str, Any] = {"baseline": self.baseline} if self.baseline else self.network.header()
        told = {} if self.asked is None else {"activity": KIND}
        return {**made, **told, "seed": self.seed, "chunk": CHUNK, "overlap": OVERLAP}

    def items(self, scratch: Path) -> Iterator[dict[str, Any]]:
        """The clips, each with the `queries` to look for."""
        table = clips(self.dataset, scratch)
        if self.network is None:
            yield from items(table)
            return
        descriptions = Descriptions(self.descriptions, lambda: items(table)) if self.descriptions else None
        for item in items(table):
            queries = phrases(caption(item) or "") if descriptions is None else descriptions.of(item)
            yield item | {"queries": queries}

    def load(self, device: str) -> Any:
        """The network on the device."""
        if self.network is None:
            return None
        return self.network.load(device), None if self.asked is None else self.asked.load(device)

    def work(self, part: Part, model: Any, scratch: Path) -> Made:
        """The sources of each clip of the part, and what is left of it."""
        made = Made()
        with MemberReader() as reader:
            for item in part.items:
                try:
                    self._take_apart(made, item, model, reader)
                except _Nothing as nothing:
                    made.refuse(refused(item), nothing.reason, str(nothing))
                except ShardAway:
                    raise  # nothing is held against its clips: the same command makes them once it is back
                except (DecodeError, UserError) as error:
                    made.refuse(refused(item), "corrupt", str(error))
        return made

    def _take_apart(self, made: Made, item: Mapping[str, Any], model: Any, reader: MemberReader) -> None:
        if item[PLACE]["flac_offset"] is None:
            raise _Nothing("no_audio", "the clip has no sound")
        if self.network is not None and not item["queries"]:
            raise _Nothing("no_caption", "nothing says which sounds are in it")
        wave, rate = wave_of(item, reader), int(item["audio_fps"])
        if self.baseline == "hpss":
            from javisc.trainer.use.prior.spectral import hpss

            names = ["harmonic", "percussive"]
            sources = in_chunks(wave, rate, names, lambda part, rate, queries: hpss(part, rate))
        elif self.baseline == "nmf":
            from javisc.trainer.use.prior.spectral import nmf, spectra

            names = [f"component {number}" for number in range(COMPONENTS)]
            basis = spectra(wave, rate, COMPONENTS, seed_of(item["key"], self.seed, "nmf"))
            sources = in_chunks(wave, rate, names, lambda part, rate, queries: nmf(part, rate, basis))
        else:
            names = item["queries"]
            separator, hearing = model
            sources = in_chunks(wave, rate, names, separator)
            if not all(np.isfinite(source).all() for source in sources):
                raise _Nothing("internal", "the separator gave numbers that are not finite")
            if hearing is not None:
                self._add(made, item, names, wave, sources, hearing(wave, rate, names))
                return
        self._add(made, item, names, wave, sources)

    def _add(
        self,
        made: Made,
        item: Mapping[str, Any],
        names: Sequence[str],
        wave: Wave,
        sources: list[Wave],
        heard: Sequence[list[list[int]]] = (),
    ) -> None:
        rate = int(item["audio_fps"])
        kept, bits = whole_parts(wave, sources)
        for number, (name, source) in enumerate(zip([*names, "rest"], kept, strict=True)):
            relpath = f"{item['name']}.wav{SEPARATED}000_{number:03d}_{_slug(name)}.flac"
            row = sound_row(item, f"{item['key'][:240]}_s{number:03d}", relpath, source, name)
            row["audio_path"] = item[PLACE]["path"]
            told = heard[number] if number < len(heard) else active(source, rate)
            row["label"] = json.dumps({"activity": told}, separators=(",", ":"))
            made.samples.append((row, {"flac": flac(source, rate, bits)}))


class _Nothing(Exception):
    """A clip of which no sources can be made. `reason`: a code of compiler.reasons."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def _slug(name: str) -> str:
    """A description as a part of a file's name: no separator of folders, nothing that hides."""
    return re.sub(r"[^\w -]", "_", name)[:80].strip() or "_"


def in_chunks(wave: Wave, rate: int, queries: Sequence[str], take: Separator) -> list[Wave]:
    """The sources [samples] of a whole sound, taken apart in stretches that fade into each other: where the sources of each
    stretch sum to it, the whole ones do, since the fades sum to one."""
    size, shared = round(CHUNK * rate), round(OVERLAP * rate)
    out = [np.zeros(len(wave)) for _ in queries]
    first = 0
    while True:
        last = min(first + size, len(wave))
        fade = np.ones(last - first)
        if first:
            fade[:shared] = (np.arange(shared) + 0.5)[: len(fade)] / shared
        if last < len(wave):
            fade[-shared:] = 1 - (np.arange(shared) + 0.5) / shared
        parts = take(wave[first:last], rate, queries)
        for whole, part in zip(out, parts, strict=True):
            whole[first:last] += part * fade
        if last == len(wave):
            return out
        first = last - shared


def whole_parts(wave: Wave, sources: Sequence[Wave]) -> tuple[list[Wave], int]:
    """Sources and what they leave of the wave, rounded so that they sum to it exactly as stored; and the bits they need.

    A 16-bit sound has 16-bit sources; a mean of channels has more. Where the rest would pass full scale, all sources are made
    quieter by one factor.
    """
    bits = 16 if np.array_equal(np.rint(wave * (1 << 15)), wave * (1 << 15)) else 24
    scale = float(1 << (bits - 1))
    least, most = -1.0, 1 - 1 / scale

    def rounded(gain: float) -> tuple[list[Wave], Wave]:
        kept = [np.clip(np.rint(source * gain * scale) / scale, least, most) for source in sources]
        return kept, np.rint(wave * scale) / scale - sum(kept, np.zeros(len(wave)))

    gain = 1.0
    kept, rest = rounded(gain)
    while rest.max() > most or rest.min() < least:
        gain *= 0.9
        kept, rest = rounded(gain)
    return [*kept, rest], bits
