"""`javisc build prior separate` without weights: sources sum to the mixture, names and spans are what stage 2 wants."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from javisc.manifests.errors import UserError
from javisc.manifests.io import Dataset
from javisc.trainer.data.index.catalog import STRINGS, Catalog
from javisc.trainer.data.sources.pools import NAMES, Pools
from javisc.trainer.transforms.draws import SeededDraws
from javisc.trainer.use.prior import separate
from javisc.trainer.use.prior.activity import active
from javisc.trainer.use.prior.phrases import Descriptions, phrases
from javisc.trainer.use.prior.run import RunOptions, run
from javisc.trainer.use.prior.separate import in_chunks, whole_parts
from javisc.trainer.use.prior.spectral import hpss, nmf, spectra
from support import compiled

RATE = 16000


def tone_and_clicks(seconds: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    time = np.arange(round(seconds * RATE)) / RATE
    tone = 0.3 * np.sin(2 * np.pi * draw.uniform(300, 2000) * time)
    clicks = np.zeros(len(time))
    for at in draw.integers(0, max(1, len(time) - 200), 8):
        clicks[at : at + 60] += draw.normal(0, 0.4, len(clicks[at : at + 60]))
    return tone, clicks


@pytest.mark.parametrize("seconds", [0.0001, 0.05, 1.7])
def test_sources_sum_to_the_mixture(seconds: float) -> None:
    tone, clicks = tone_and_clicks(seconds, 1)
    wave = (tone + clicks)[: max(1, len(tone))]
    for made in (hpss(wave, RATE), nmf(wave, RATE, spectra(wave, RATE, 4, 1))):
        assert np.abs(sum(made) - wave).max() < 1e-6
        assert all(len(part) == len(wave) and np.isfinite(part).all() for part in made)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_medians_tell_a_tone_from_clicks(seed: int) -> None:
    tone, clicks = tone_and_clicks(2.0, seed)
    harmonic, percussive = hpss(tone + clicks, RATE)
    for found, own, other in ((harmonic, tone, clicks), (percussive, clicks, tone)):
        error = np.sum((found - own) ** 2) / np.sum(own**2)
        assert error < 0.35 and np.sum(found * own) > 3 * abs(np.sum(found * other)), error


def test_two_tones_become_two_spectra() -> None:
    time = np.arange(2 * RATE) / RATE
    first = 0.4 * np.sin(2 * np.pi * 500 * time) * (time < 1.2)
    second = 0.2 * np.sin(2 * np.pi * 2100 * time) * (time > 0.8)
    made = nmf(first + second, RATE, spectra(first + second, RATE, 2, 5))
    assert np.sum((made[0] - first) ** 2) < 0.05 * np.sum(first**2)  # the louder one comes first
    assert np.sum((made[1] - second) ** 2) < 0.05 * np.sum(second**2)


@settings(max_examples=30)
@given(st.integers(1, 900), st.integers(1, 4), st.integers(0, 99), st.booleans())
def test_what_is_stored_sums_exactly(length: int, count: int, seed: int, fine: bool) -> None:
    draw = np.random.default_rng(seed)
    scale = 1 << (17 if fine else 15)
    wave = np.rint(draw.uniform(-0.99, 0.99, length) * scale) / scale
    sources = [draw.uniform(-1.2, 1.2) * wave for _ in range(count)]  # they need not sum to it at all
    kept, bits = whole_parts(wave, sources)
    assert bits == (24 if fine and not np.array_equal(np.rint(wave * (1 << 15)), wave * (1 << 15)) else 16)
    assert len(kept) == count + 1 and all(part.min() >= -1 and part.max() < 1 for part in kept)
    assert np.array_equal(sum(kept), wave)
    assert all(np.array_equal(np.rint(part * (1 << (bits - 1))), part * (1 << (bits - 1))) for part in kept)


def test_a_long_sound_is_taken_apart_to_its_end() -> None:
    """The reference separated the first ten seconds."""
    wave = np.random.default_rng(0).normal(0, 0.1, round(71.3 * RATE))
    asked: list[int] = []

    def half(part: np.ndarray, rate: int, queries: object) -> list[np.ndarray]:
        asked.append(len(part))
        return [part / 2, part / 2]

    made = in_chunks(wave, RATE, ["a", "b"], half)
    assert max(asked) == 30 * RATE and len(asked) == 3
    assert all(np.allclose(part, wave / 2, atol=1e-12) for part in made)


def test_activity_goes_by_the_sources_own_level() -> None:
    time = np.arange(4 * RATE) / RATE
    burst = np.sin(2 * np.pi * 440 * time) * ((time > 1) & (time < 2.2))
    for level in (0.9, 0.02):  # RMS 0.014 is nothing to a threshold of 0.1
        [[first, last]] = active(level * burst, RATE)
        assert abs(first / RATE - 1) < 0.06 and abs(last / RATE - 2.2) < 0.06
    assert active(1e-5 * burst, RATE) == [] and active(np.zeros(10), RATE) == []


@pytest.mark.parametrize(
    ("caption", "found"),
    [
        ("A dog barks and a man speaks, then a door slams.", ["A dog barks", "a man speaks", "a door slams"]),
        ("rain falls while music plays in the background", ["rain falls"]),
        ("a bird sings (close, loud and clear), water runs; a bird sings", ["water runs", "a bird sings"]),
        ("犬が吠える、雨が降る。鐘が鳴る", ["犬が吠える", "雨が降る", "鐘が鳴る"]),
        ("None", []),
        ("a hum of 3.5 kHz, 1,000 bees.A bell", ["a hum of 3.5 kHz", "1,000 bees", "A bell"]),
        ('../.. and "wind', ["wind"]),
        ("sandwiches band", ["sandwiches band"]),
    ],
)
def test_phrases_come_in_the_order_of_the_text(caption: str, found: list[str]) -> None:
    assert phrases(caption) == found


def test_descriptions_come_from_tables_and_from_the_references_json(tmp_path: Path) -> None:
    items = [{"key": "k1", "relpath": "a/1.mp4", "id": "1"}, {"key": "k2", "relpath": "b/1.mp4", "id": "1"}]
    items.append({"key": "k3", "relpath": "c/3.mp4", "id": "3"})

    def told(name: str) -> list[list[str]]:
        descriptions = Descriptions(str(tmp_path / name), lambda: items)
        return [descriptions.of(item) for item in items]

    (tmp_path / "t.csv").write_text(
        "relpath,description\na/1.mp4,wind\na/1.mp4,a dog\na/1.mp4,Wind\nb/1,some (odd)\nc/3,x\n"
    )
    assert told("t.csv") == [["wind", "a dog"], [], ["x"]]
    (tmp_path / "t.json").write_text(json.dumps({"1": ["not told which"], "3": ["None", "b", "a/c", "b"], "k2": ["d"]}))
    assert told("t.json") == [[], ["d"], ["b", "a/c"]]
    (tmp_path / "t.csv").write_text("id,description\nnobody,wind\n")
    with pytest.raises(UserError, match="none of its 1 names is a clip's: it has 'nobody', a clip is 'a/1.mp4'"):
        told("t.csv")
    (tmp_path / "t.csv").write_text("id,description\n3,None\n3,some (odd)\n")
    with pytest.raises(UserError, match="1 clips are in it, and nothing that it says of them can be looked for"):
        told("t.csv")
    (tmp_path / "t.csv").write_text("who,what\nnobody,wind\n")
    with pytest.raises(UserError, match="needs one of key, relpath, id, and one of description"):
        told("t.csv")


@pytest.mark.usefixtures("here")
def test_the_pool_is_read_by_stage_two(tmp_path: Path) -> None:
    dataset = compiled.write(tmp_path / "ds", [40, 50, 36], hiss=True)
    pool = tmp_path / "pool"
    made = run("separate", {"dataset": str(dataset), "baseline": "hpss"}, str(pool), RunOptions(2, workers=1))
    assert made.samples == 9
    rows = pl.read_parquet(pool / "manifest.parquet")
    assert rows["text"].to_list() == ["harmonic", "percussive", "rest"] * 3
    assert json.loads((pool / "dataset.json").read_text())["prior"]["baseline"] == "hpss"
    for key, group in rows.group_by("clip_key"):
        sounds = [soundfile.read(io.BytesIO(Dataset.open(pool).read(name)["flac"]))[0] for name in group["key"]]
        whole = soundfile.read(io.BytesIO(Dataset.open(dataset).read(str(key[0]))["flac"]))[0]
        assert np.abs(sum(sounds) - whole).max() < 1e-6
    catalog = Catalog.open([dataset], strings=(*STRINGS, *NAMES))
    reported: list[str] = []
    with Pools(sources=pool, report=lambda path, name, message: reported.append(message)) as pools:
        pools.check(catalog)
        assert pools.sounds is not None
        for label in catalog.labels(range(3)):
            tracks = pools.sounds.separated(pools.sound_name(label))
            assert [bool(spans) for _, spans in tracks] == [True, True], "the rest of medians is silence"
            assert tracks[0][1] == [tuple(span) for span in active(tracks[0][0].numpy().astype(float), RATE)]
            for seed in range(12):  # silence added is no negative
                drawn = pools.sounds.source(SeededDraws(seed), pools.sound_name(label))
                assert drawn is not None and drawn[1] and drawn[0].abs().max() > 0.001
        for number, hostile in enumerate(("5", "null", '{"a":1}', "[[0,1],3]", "[[0,1.5]]"), start=1):
            pools.sounds.shelf.labels[int(pools.sounds.rows[0])] = f'{{"activity":{hostile}}}'
            assert len(pools.sounds.separated(pools.sound_name(next(iter(catalog.labels(range(1))))))) == 1
            assert len(reported) == number and reported[-1].endswith("is no activity")


def test_a_slash_in_a_description_is_kept_and_leads_nowhere() -> None:
    assert separate._slug("../wind / rain\0") == "___wind _ rain_"


def test_baselines_take_no_descriptions(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="looks for no descriptions: leave out --descriptions t.csv"):
        separate.Separate("ds", baseline="nmf", descriptions="t.csv")
    with pytest.raises(UserError, match="give one of --separator PATH, --baseline hpss and --baseline nmf"):
        separate.Separate("ds")
