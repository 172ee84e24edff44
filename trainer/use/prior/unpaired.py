"""`javisc build prior unpaired`: a sound for every captioned clip that was made of its caption alone, or stands in for one."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from javisc.manifests.errors import UserError
from javisc.manifests.io import Dataset, absolute, complete, write_view
from javisc.manifests.members import MemberReader, ShardAway
from javisc.manifests.partitions import ORDER, ROWS, Partitions, in_order, left_join, place
from javisc.manifests.spool import spool
from javisc.trainer.data.bytes.decode import DecodeError
from javisc.trainer.use.prior.clips import WHERE, Wave, caption, clips, flac, items, refused, sound_row, wave_of
from javisc.trainer.use.prior.donors import deranged
from javisc.trainer.use.prior.stage import PLACE, POOL_SCHEMA, Made, Part, Weighted, seed_of

BASELINES = ("other", "phase")
SCHEMA = pl.Schema({**POOL_SCHEMA, "unpaired_seconds": pl.Float64()})
#: What an item says of the clip whose sound it gets.
_OF_DONOR = ("key", "flac_crc32", "audio_fps")
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
        table = clips(self.dataset, scratch)
        donors = self._donors(table, scratch / "donors") if self.baseline == "other" else None
        for item in items(table):
            if why := self._lacks(item):
                item["refused"] = why
            elif donors is not None:
                if (donor := next(donors)) is None:
                    item["refused"] = ["filtered", "no other clip has another caption"]
                else:
                    item["donor"] = {name: donor[name] for name in _OF_DONOR}
                    item[PLACE] = {**item[PLACE], "donor": {name: donor[name] for name in item[PLACE]}}
            yield item

    def _lacks(self, item: Mapping[str, Any]) -> list[str] | None:
        """Why a clip gets no sound: a code of compiler.reasons, and words."""
        if self.baseline and item[PLACE]["flac_offset"] is None:
            return ["no_audio", "the clip has no sound"]
        if self.baseline != "phase" and caption(item) is None:
            return ["no_caption", "the clip has neither audio_text nor text"]
        if not item["audio_fps"]:
            return ["no_audio", "its row has no audio_fps: nothing says how a sound of it is stored"]
        return None

    def _donors(self, table: pl.LazyFrame, scratch: Path) -> Iterator[dict[str, Any] | None]:
        """For each clip that can have a sound the clip that it gets it from, or None where none has another caption."""
        fit = np.fromiter((self._lacks(item) is None for item in items(table)), bool)
        heard = (item for item, fits in zip(items(table), fit, strict=True) if fits)
        donors = deranged(((item["key"], str(caption(item))) for item in heard), self.seed)
        if not len(donors) or donors[0] < 0:
            yield from (None for _ in donors)
            return
        count = -(-len(donors) // ROWS)
        numbers = pl.Schema({ORDER: pl.UInt32(), "donor": pl.UInt32()})
        told = table.select(*WHERE, *_OF_DONOR)
        schema = told.collect_schema()
        part = pl.col("donor").cast(pl.Int64) * count // len(donors)
        asked = Partitions(scratch / "asked", count, numbers)
        for first in range(0, len(donors), ROWS):
            here = donors[first : first + ROWS]
            asked.add(pl.DataFrame({ORDER: np.arange(first, first + len(here)), "donor": here}).cast(numbers), part)
        there = Partitions(scratch / "there", count, pl.Schema({**schema, "donor": pl.UInt32()}))
        seen = taken = 0
        for batch in told.collect_batches(chunk_size=ROWS, maintain_order=True):
            kept = batch.filter(pl.Series(fit[seen : seen + batch.height])).with_row_index("donor", offset=taken)
            there.add(kept, part)
            seen, taken = seen + batch.height, taken + kept.height
        given = Partitions(scratch / "given", count, pl.Schema({**schema, ORDER: pl.UInt32()}))
        for wanted, some in zip(asked, there, strict=True):
            given.add(wanted.join(some, on="donor", how="left"), place(count, len(donors)))
        for frame in in_order(given):
            yield from frame.iter_rows(named=True)

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


def name_sounds(dataset: str, pool: str, view: str) -> int:
    """Write the view `view` of a dataset whose `unpaired_audio_path` names a sound of the pool, where there is one, and is empty
    elsewhere. Returns the rows that have one. Raises UserError."""
    made = complete(Dataset.open(pool).manifest(), POOL_SCHEMA)  # where it is empty, it lacks what its stage adds
    sounds = made.select(pl.col("clip_key").alias("key"), pl.col("relpath").alias("_made"))
    named = pl.format("{}/{}", pl.lit(absolute(pool.rstrip("/"))), pl.col("_made"))
    frame = Dataset.open(dataset).located()
    schema = frame.collect_schema()
    with tempfile.TemporaryDirectory(prefix="javisc-sounds-") as folder:
        scratch = Path(folder)
        joined = (
            part.with_columns(unpaired_audio_path=pl.when(pl.col("_made").is_not_null()).then(named)).select(
                schema.names()
            )
            for part in left_join(frame.drop("unpaired_audio_path"), sounds, "key", scratch)
        )
        table = spool(joined, scratch / "named", schema)
        write_view(table, view, made_by={"command": "build prior unpaired", "inputs": [dataset], "pool": pool})
        counted = table.select(pl.col("unpaired_audio_path").is_not_null().sum()).collect(engine="streaming").item()
    return int(counted)
