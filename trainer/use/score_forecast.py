"""What `javisc score` would cost, from the manifest alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

from javisc.compiler.run.engine import EngineOptions, check_engine
from javisc.manifests.io import Dataset
from javisc.trainer.use.kept_features import PLACES, check_field, field_of, windows_of, with_features
from javisc.trainer.use.score import ScoreOptions, precision_of, rater_for, scored_on
from javisc.trainer.use.score_clip import NEEDED, NoScore, ticks_of


@dataclass(frozen=True)
class Forecast:
    """What scoring would cost: clips, pieces (crops or segments) to be seen and heard, windows, FLOP; and clips without a score.

    known: clips of which a field keeps all features that are asked for. keeps: bytes that --keep-features would add.
    """

    clips: int
    pieces: int
    windows: int
    flop: float
    reasons: Mapping[str, int]
    known: int = 0
    keeps: int = 0


def forecast(source: str, checkpoint: str, options: ScoreOptions | None = None) -> Forecast:
    """The cost of `score`, nothing decoded and nothing written. Raises UserError."""
    options = options or ScoreOptions()
    check_engine(options.engine, EngineOptions(address=options.address))
    if options.preset:
        options = replace(options, audio_advance_sec=0.0, precision="fp32")
    rater, cropping, transforms = rater_for(checkpoint, options)
    clips, pieces, windows, flop, known, new, reasons = 0, 0, 0, 0.0, 0, 0, Counter[str]()
    dataset = Dataset.open(source)
    made_by, size = rater.features()
    made_by = precision_of(made_by, scored_on(options)[1])
    if options.keep_features:
        check_field(dataset, options.keep_features, made_by)
    crops, preset = windows_of(field_of(dataset, made_by))
    kept = replace(cropping, crops=crops, preset=preset) if crops else None
    frame = with_features(dataset, made_by).select(*NEEDED, PLACES[0])
    for batch in frame.collect_batches(maintain_order=True, engine="streaming"):
        for row in batch.iter_rows(named=True):
            there = row[PLACES[0]] is not None
            try:
                several = rater.cost(ticks_of(row, transforms, cropping.fps), kept=kept if there else None)
            except NoScore as error:
                reasons[error.reason] += 1
                continue
            clips, pieces, windows, flop = clips + 1, pieces + several[0], windows + several[1], flop + several[2]
            known, new = known + (several[0] == 0), new + (0 if there else several[0])
    return Forecast(clips, pieces, windows, flop, dict(reasons), known, new * size if options.keep_features else 0)
