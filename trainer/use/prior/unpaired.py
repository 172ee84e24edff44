"""`javisc build prior unpaired`: a sound for every captioned clip that was made of its caption alone, or stands in for one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from javisc.manifests.errors import UserError
from javisc.manifests.io import Dataset, absolute, complete, write_view
from javisc.manifests.members import MemberReader, ShardAway
from javisc.trainer.data.bytes.decode import DecodeError
from javisc.trainer.use.prior.clips import Wave, caption, clips, flac, refused, sound_row, wave_of
from javisc.trainer.use.prior.stage import PLACE, POOL_SCHEMA, Made, Part, Weighted, seed_of

BASELINES = ("other", "phase")
SCHEMA = pl.Schema({**POOL_SCHEMA, "unpaired_seconds": pl.Float64()})
#: No sound comes louder out of `phase` than this.
_PEAK = 0.999


class Unpaired(Weighted):
    """The stage. `baseline`: "other", the sound of a clip with another caption; "phase", the clip's own magnitudes with random
    phases; "": a generator from the folder `generator`, whose settings the others are (see `generators.Settings`)."""

    name = "unpaired"
    schema = SCHEMA
    recipe = None

    def __init__(
        self,
        dataset: str,
        *,
        baseline: str = "",
        generator: str = "",
        seed: int = 0,
        match_duration: bool = False,
        **sampling: Any,
    ) -> None:
        if bool(baseline) == bool(generator):
            raise UserError("give one of --generator PATH, --baseline other and --baseline phase")
        if baseline and baseline not in BASELINES:
            raise UserError(f"--baseline {baseline!r}: allowed are {', '.join(BASELINES)}")
        self.dataset, self.baseline, self.seed, self.match = dataset, baseline, seed, match_duration
        self.generator: Any = None
        self.networks: list[Path] = []
        if generator:
            from javisc.trainer.use.prior.generators import Generator

            self.generator = Generator(generator, seed=seed, **sampling)
            self.networks = [self.generator.path]

    def header(self) -> dict[str, Any]:
        """What made the sounds."""
        made = {"baseline": self.baseline} if self.baseline else self.generator.header()
        return {**made, "seed": self.seed, "match_duration": self.match}

    def items(self, scratch: Path) -> Iterator[dict[str, Any]]:
        """The clips, each with its `donor` where sounds are exchanged; `refused` says why one gets none."""
        found = list(clips(self.dataset))
        for item in found:
            if self.baseline and item[PLACE]["flac_offset"] is None:
                item["refused"] = ["no_audio", "the clip has no sound"]
            elif self.baseline != "phase" and caption(item) is None:
                item["refused"] = ["no_caption", "the clip has neither audio_text nor text"]
            elif not item["audio_fps"]:
                item["refused"] = ["no_audio", "its row has no audio_fps: nothing says how a sound of it is stored"]
        if self.baseline == "other":
            self._exchange([item for item in found if "refused" not in item])
        yield from found

    def _exchange(self, found: Sequence[dict[str, Any]]) -> None:
        donors = deranged([(item["key"], str(caption(item))) for item in found], self.seed)
        for item, place in zip(found, donors, strict=True):
            if place is None:
                item["refused"] = ["filtered", "no other clip has another caption"]
                continue
            donor = found[place]
            item["donor"] = {name: donor[name] for name in ("key", "flac_crc32", "audio_fps")}
            item[PLACE] = {**item[PLACE], "donor": donor[PLACE]}

    def load(self, device: str) -> Any:
        """The generator on the device."""
        return None if self.generator is None else self.generator.load(device)

    def work(self, part: Part, model: Any, scratch: Path) -> Made:
        """A sound for each clip of the part; clips that cannot have one are refused."""
        made = Made()
        wanted = []
        for item in part.items:
            if "refused" in item:
                made.refuse(refused(item), *item["refused"])
            else:
                wanted.append(item)
        if self.baseline:
            with MemberReader() as reader:
                for item in wanted:
                    try:
                        wave = self._exchanged(item, reader)
                    except ShardAway:
                        raise  # nothing is held against its clips: the same command makes them once it is back
                    except (DecodeError, UserError) as error:
                        made.refuse(refused(item), "corrupt", str(error))
                        continue
                    self._add(made, item, wave)
        else:
            for item, wave in self.generator.sounds(model, wanted, self.match):
                if wave is None:
                    made.refuse(refused(item), "internal", "the generator gave numbers that are not finite")
                else:
                    self._add(made, item, wave)
        return made

    def _exchanged(self, item: Mapping[str, Any], reader: MemberReader) -> Wave:
        if self.baseline == "phase":
            return random_phases(wave_of(item, reader), seed_of(item["key"], self.seed, "phase"))
        donor = {**item["donor"], PLACE: item[PLACE]["donor"]}
        wave = wave_of(donor, reader)
        if donor["audio_fps"] != item["audio_fps"]:
            import soxr

            wave = soxr.resample(wave, donor["audio_fps"], item["audio_fps"], "VHQ")
        return wave

    def _add(self, made: Made, item: Mapping[str, Any], wave: Wave) -> None:
        if self.match and item["num_samples"]:
            wave = wave[: item["num_samples"]]  # a shorter one stays as it is: silence would tell it apart
        row = sound_row(item, item["key"], f"{item['name']}.flac", wave, caption(item))
        row["unpaired_seconds"] = row["duration"]
        if self.baseline:
            row["audio_path"] = (item[PLACE].get("donor") or item[PLACE])["path"]
        made.samples.append((row, {"flac": flac(wave, int(item["audio_fps"]))}))


def random_phases(wave: Wave, seed: int) -> Wave:
    """A wave with another one's phases: the magnitudes of its whole spectrum stay, so that it sounds alike, and all events are
    spread over its length. Scaled down as a whole where it would pass full scale."""
    spectrum = np.fft.rfft(wave)
    turns = np.random.Generator(np.random.PCG64(seed)).uniform(0, 2 * np.pi, len(spectrum))
    made = np.abs(spectrum) * np.exp(1j * turns)
    made[0] = spectrum[0]  # the mean, and at an even length the highest frequency, have no phase
    if len(wave) % 2 == 0:
        made[-1] = spectrum[-1]
    out: Wave = np.fft.irfft(made, len(wave))
    return out * min(1.0, _PEAK / max(float(np.abs(out).max()), 1e-12))


def deranged(clips: Sequence[tuple[str, str]], seed: int) -> list[int | None]:
    """For each (key, caption) the place of a clip with another caption, by a keyed shuffle: None where there is none.

    Clips are laid in a circle, those of one caption side by side, captions and clips in the order of hashes; each takes from
    the one that is as far ahead as the largest caption has clips. So it is a permutation, unless one caption has more than half
    of all clips; then what is not of that caption is used several times.
    """

    def mark(what: str, text: str) -> bytes:
        return hashlib.sha256(f"other\0{seed}\0{what}\0{text}".encode()).digest()

    def plain(text: str) -> str:
        return " ".join(text.casefold().split())

    said = [plain(text) for _, text in clips]
    order = sorted(range(len(clips)), key=lambda place: (mark("caption", said[place]), mark("clip", clips[place][0])))
    counts: dict[str, int] = {}
    for text in said:
        counts[text] = counts.get(text, 0) + 1
    if len(counts) < 2:
        return [None] * len(clips)
    most = max(counts, key=lambda text: (counts[text], text))
    donors: list[int | None] = [None] * len(clips)
    for at, place in enumerate(order):
        donors[place] = order[(at + counts[most]) % len(order)]
    if 2 * counts[most] > len(order):
        others = [place for place in order if said[place] != most]
        for number, place in enumerate(place for place in order if said[place] == most):
            donors[place] = others[number % len(others)]
        many = [place for place in order if said[place] == most]
        for number, place in enumerate(others):
            donors[place] = many[number % len(many)]
    return donors


def name_sounds(dataset: str, pool: str, view: str) -> int:
    """Write the view `view` of a dataset whose `unpaired_audio_path` names a sound of the pool, where there is one, and is empty
    elsewhere. Returns the rows that have one. Raises UserError."""
    made = complete(Dataset.open(pool).manifest(), POOL_SCHEMA)  # where it is empty, it lacks what its stage adds
    sounds = made.select(pl.col("clip_key").alias("key"), pl.col("relpath").alias("_made"))
    named = pl.format("{}/{}", pl.lit(absolute(pool.rstrip("/"))), pl.col("_made"))
    frame = Dataset.open(dataset).located()
    order = frame.collect_schema().names()
    joined = frame.drop("unpaired_audio_path").join(sounds, on="key", how="left", maintain_order="left")
    joined = joined.with_columns(unpaired_audio_path=pl.when(pl.col("_made").is_not_null()).then(named)).select(order)
    write_view(joined, view, made_by={"command": "build prior unpaired", "inputs": [dataset], "pool": pool})
    counted = joined.select(pl.col("unpaired_audio_path").is_not_null().sum()).collect(engine="streaming").item()
    return int(counted)
