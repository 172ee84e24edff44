"""Recipes say what they mean, survive JSON and refuse nonsense in one line."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import pytest

from javisc.compiler.plan.options import BuildOptions
from javisc.compiler.plan.saved import as_begun
from javisc.compiler.reasons import REASONS, Rejected
from javisc.compiler.recipe import PRESETS, Recipe, parse_fps, settings
from javisc.manifests.errors import UserError


def test_rates_are_exact() -> None:
    assert parse_fps("24") == 24 and parse_fps(25) == 25 and parse_fps("30000/1001") == Fraction(30000, 1001)
    for text, exact in (("23.976", 24), ("23.98", 24), ("29.97", 30), ("59.94", 60), ("119.88", 120)):
        assert parse_fps(text) == Fraction(exact * 1000, 1001)
    assert parse_fps("12.5") == Fraction(25, 2) and parse_fps("24.5") == Fraction(49, 2)
    assert Recipe(fps="24.000").fps == "24" and Recipe(fps="48/2") == Recipe()
    for nonsense in ("", "abc", "-3", "1/0", "0", "1000", "nan", "24;rm"):
        with pytest.raises(UserError, match="--fps"):
            parse_fps(nonsense)


@pytest.mark.parametrize("name", PRESETS)
def test_json_brings_a_recipe_back(name: str) -> None:
    recipe = PRESETS[name]
    again = Recipe.from_json(json.loads(json.dumps(recipe.to_json())))
    assert again == recipe and again.digest == recipe.digest


def test_the_digest_tells_settings_apart_and_ignores_the_name() -> None:
    base = PRESETS["jav"]
    assert base.replace(name="mine").digest == base.digest
    changes: list[dict[str, object]] = [
        {"fps": "25"},
        {"crf": 21},
        {"short_side": 256},
        {"sample_rate": 22050},
        {"channels": 2},
        {"encoder_preset": "fast"},
        {"min_frames": 11},
        {"max_seconds": 10},
        {"allow_silent": True},
        {"gop": 24},
    ]
    assert len({base.replace(**change).digest for change in changes} | {base.digest}) == len(changes) + 1


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("fps", "0"),
        ("sample_rate", 100),
        ("channels", 6),
        ("short_side", 255),
        ("crf", 0),
        ("crf", 52),
        ("encoder_preset", "quick"),
        ("gop", 0),
        ("min_frames", 0),
        ("max_seconds", 0),
        ("kind", "film"),
        ("max_seconds", float("nan")),
    ],
)
def test_nonsense_is_refused_in_one_line(setting: str, value: object) -> None:
    with pytest.raises(UserError) as caught:
        Recipe(**{setting: value})  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_unknown_or_mistyped_settings_are_refused() -> None:
    with pytest.raises(UserError, match="unknown"):
        Recipe.from_json({"speed": 3})
    for setting in ({"crf": "20"}, {"channels": True}, {"gop": 1.5}, {"allow_silent": 1}):
        with pytest.raises(UserError, match="allowed"):
            Recipe.from_json(dict(setting))


def test_reasons_are_documented_and_messages_are_one_line() -> None:
    assert all(meaning for meaning in REASONS.values())
    rejected = Rejected("corrupt", "two\nlines")
    assert rejected.message == "two lines" and str(rejected) == "corrupt: two lines"
    assert Rejected("empty").message == REASONS["empty"]
    import pickle

    assert pickle.loads(pickle.dumps(rejected)).message == "two lines"  # noqa: S301 - our own, to cross processes


def test_settings_that_came_later_leave_older_digests_alone() -> None:
    """Datasets that were begun before `max_hold` and `resized` existed are resumed by the same command."""
    known = "b59af1d2d085b2dc"
    assert Recipe().digest.startswith(known)
    assert Recipe.from_json({"name": "jav", "kind": "jav"}).digest == Recipe().digest
    assert len({Recipe().digest, Recipe(max_hold=60).digest, Recipe(resized="refuse").digest}) == 3


def test_every_setting_is_declared_whole() -> None:
    """A default fulfils its own bounds and has one of its types; what has an option is told apart by name in its error."""
    for name, setting in settings().items():
        default = getattr(Recipe(), name)
        assert setting.holds(default) and type(default) in setting.types, name
        assert setting.allowed and (not setting.help or setting.help.endswith((".", ")"))), name
    with pytest.raises(UserError, match=r"^--crf 77.0: allowed is above 0"):
        Recipe(crf=77)
    with pytest.raises(UserError, match=r"^--gop 0: allowed is 1 to 600 frames"):
        Recipe(gop=0)


@pytest.mark.parametrize("name", ["jav", "jav16"])
def test_a_dataset_goes_on_with_the_preset_that_it_was_begun_with(name: str, tmp_path: Path) -> None:
    """The default is tuned for reading; what older javisc began without that stays as it is, also where the preset is named."""
    assert PRESETS[name].tune == "fastdecode" and Recipe(tune="none") == Recipe()
    was = PRESETS[name].replace(tune=None, crf=20)
    settings = {"recipe": was.to_json(), "recipe_digest": was.digest, "seed": 0, "split": []}
    (tmp_path / ".build").mkdir()
    (tmp_path / ".build" / "settings.json").write_text(json.dumps(settings))

    def goes_on(said: set[str], **given: object) -> Recipe:
        return as_begun(str(tmp_path), PRESETS[name].replace(**given), BuildOptions(), said)[0]

    assert goes_on(set()) == goes_on({"recipe", "crf"}, crf=20) == was
    assert goes_on({"recipe"}) == PRESETS[name], "with another quality it is another recipe, which the build refuses"
    assert goes_on({"recipe", "crf", "tune"}, crf=20, tune="film").tune == "film"
