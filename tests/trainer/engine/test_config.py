"""Recipes: merging, overriding, and the one line a user reads about a mistake."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from javisc.manifests.errors import UserError
from javisc.trainer.engine.config import Recipe, as_dict, as_yaml, differences, load_recipe, recipe_names, task_of
from javisc.trainer.engine.settings import keys
from javisc.trainer.models.dit import VASTDiT3Config
from javisc.trainer.models.sync.config import AVSyncConfig
from javisc.trainer.tasks import registry


@dataclass
class Example(Recipe):
    model: AVSyncConfig = field(default_factory=AVSyncConfig)
    data: list[str] = field(default_factory=list)


def written(tmp_path: Path, text: str) -> str:
    path = tmp_path / "r.yaml"
    path.write_text(text)
    return str(path)


def test_yaml_is_merged_over_defaults_and_overridden(tmp_path: Path) -> None:
    name = written(tmp_path, "task: x\nrun: {steps: 7}\nmodel: {transformer: {classes: 3, visual_shape: [1, 2, 3]}}\n")
    recipe = load_recipe(name, Example, ["run.steps=9", "optimizer.lr=1e-3", "data=[a,b]", "optimizer.clip_norm=null"])
    assert (recipe.task, recipe.run.steps, recipe.run.accumulate) == ("x", 9, 1)
    assert recipe.optimizer.lr == 1e-3 and recipe.optimizer.clip_norm is None and recipe.data == ["a", "b"]
    assert recipe.model.transformer.classes == 3 and tuple(recipe.model.transformer.visual_shape) == (1, 2, 3)
    assert recipe.model.full_attention is None and isinstance(recipe.model, AVSyncConfig)
    assert task_of(name) == "x"


def test_an_optional_section_can_be_switched_on(tmp_path: Path) -> None:
    name = written(tmp_path, "task: x\nmodel: {full_attention: {classes: 3}}\n")
    recipe = load_recipe(name, Example)
    assert recipe.model.full_attention is not None and recipe.model.full_attention.classes == 3


@pytest.mark.parametrize(
    ("text", "override", "message"),
    [
        ("task: x\nrun: {stesp: 7}", "", r"r\.yaml: there is no setting 'run\.stesp'; did you mean run\.steps\?"),
        ("task: x\noptimiser: {lr: 1}", "", r"no setting 'optimiser'; did you mean optimizer"),
        ("task: x", "optimizer.learning_rate=1", r"^there is no .*; optimizer has name, lr, scale_lr_by_world, betas,"),
        (
            "task: x",
            "model.transformer.visual_selector.nlayer=2",
            r"did you mean model\.transformer\.visual_selector\.n_layer",
        ),
        ("task: x", "lr=1", r"there is no setting 'lr'; did you mean optimizer\.lr\?"),
        ("task: x", "zzz=1", r"there is no setting 'zzz'; a recipe has task, seed, run, .*, model, data$"),
        ("task: x", "run.zzz=1", r"there is no setting 'run\.zzz'; run has name, .* more \(--keys lists them\)$"),
        ("task: x", "run.steps=many", r"^run\.steps=many: its type is whole number; change run\.steps$"),
        ("task: x", "run.steps=2.5", r"^run\.steps=2\.5: its type is whole number"),
        ("task: x", "run.steps=true", r"^run\.steps=true: its type is whole number"),
        ("task: x", "run.steps=[3]", r"^run\.steps=\[3\]: its type is whole number"),
        ("task: x", "run.steps.x=3", r"^run\.steps=\{x: 3\}: its type is whole number"),
        ("task: x", "run.tensorboard=maybe", r"^run\.tensorboard=maybe: its type is true or false"),
        (
            "task: x",
            "optimizer.betas=[0.9]",
            r"^optimizer\.betas=\[0\.9\]: its type is list of number, 2 of them; change opt",
        ),
        ("task: x", "optimizer.betas=0.9", r"^optimizer\.betas=0\.9: its type is list of number, 2 of them"),
        ("task: x", "optimizer.betas=[a, b]", r"^optimizer\.betas=\['a', 'b'\]: its type is list of number"),
        ("task: x", "optimizer.clip_norm=no_one", r"^optimizer\.clip_norm=no_one: its type is number or null"),
        ("task: x", "data={}", r"^data=\{\}: its type is list of text"),
        ("task: x", "run=3", r"^run=3: run is a section; write run\.NAME=VALUE, NAME being name, steps, epochs,"),
        ("task: x", "run=[1]", r"^run=\[1\]: run is a section"),
        ("task: x", "model.visual_trunk=tiny", r"^model\.visual_trunk=tiny: .* being size, trained$"),
        ("task: x", "run.name=${oc.env:HOME}", r"^run\.name=\$\{oc\.env:HOME\}: a recipe fills in no"),
        ("task: x", "run={steps: 3, steps: 4}", r"its value is no YAML: found duplicate key steps"),
        ("task: x", "run={steps: [}", r"its value is no YAML: .*line 1"),
        ("task: x", "run.steps", r"override 'run\.steps': write key=value"),
        ("task: x", "=3", r"write key=value"),
        ("task: x", "run..steps=3", r"write key=value"),
        ("run: {steps: 3}", "", r"r\.yaml: task is not set; set it in the recipe, or as task=VALUE"),
        ("- a\n- b", "", "is a list"),
        ("hello", "", "is a single value: a recipe is a mapping"),
        ("a: [", "", r"no YAML of settings: .*\(line 1, column 5\)"),
        ("task: x\nrun:\n\tsteps: 3", "", r"no YAML of settings: .*indent with spaces \(line 3, column 1\)"),
        ("task: x\nrun: *there", "", r"undefined alias 'there' \(line 2"),
        ("task: x\nrun: 3", "", r"r\.yaml: run=3: run is a section"),
        ("task: x\nrun:", "", r"r\.yaml: run=null: run is a section"),
        ("task: x\n---\ntask: y", "", r"expected a single document .* but found another document \(line 2"),
        ("task: x\n1: 2", "", r"no setting '1'"),
        ("task: x\nrun: &r [*r]", "", r"aliases \(\*name\) spell out more than"),
        ("task: x\na: " + "[" * 1200, "", "nests too deep"),
    ],
)
def test_mistakes_are_told_in_one_line(tmp_path: Path, text: str, override: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_recipe(written(tmp_path, text), Example, [override] if override else [])
    assert "\n" not in str(caught.value)


def test_aliases_dates_and_numbers_are_read_as_a_person_means_them(tmp_path: Path) -> None:
    text = (
        "task: x\nrun: {name: 2026-11-29}\noptimizer: {lr: 1e-3, betas: &b [0.5, 0.75]}\ntables: {a: {17: *b, 51: *b}}"
    )
    recipe = load_recipe(written(tmp_path, text), Mapped)
    assert (
        recipe.run.name == "2026-11-29" and recipe.optimizer.lr == 1e-3 and tuple(recipe.optimizer.betas) == (0.5, 0.75)
    )
    assert recipe.tables == {"a": {"17": [0.5, 0.75], "51": [0.5, 0.75]}}
    ten = {name: ", ".join([f"*{name}"] * 10) for name in "abcdef"}
    bomb = "".join(f"{name}: &{name} [{ten[before]}]\n" for before, name in zip("abcdef", "bcdefg", strict=True))
    with pytest.raises(UserError, match="spell out more than 100000 values"):
        load_recipe(written(tmp_path, f"task: x\na: &a [1, 2]\n{bomb}"), Mapped)
    (tmp_path / "r.yaml").write_bytes("task: caf\xe9".encode("latin-1"))
    with pytest.raises(UserError, match=r"r\.yaml is no text in UTF-8 .*: save it as UTF-8"):
        load_recipe(str(tmp_path / "r.yaml"), Example)


def test_a_recipe_is_data_and_never_code(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no YAML"):
        load_recipe(written(tmp_path, "task: !!python/object/apply:os.system ['true']"), Example)
    large = written(tmp_path, "task: x\n" + "#" * (1 << 20))
    with pytest.raises(UserError, match="at most"):
        load_recipe(large, Example)
    with pytest.raises(UserError, match="recipe 'absent': it may be .*path of a YAML file"):
        load_recipe("absent", Example)


@dataclass
class Mapped(Example):
    shares: dict[str, float] = field(default_factory=dict)
    tables: dict[str, dict[str, list[float]]] = field(default_factory=dict)


PRESET = """task: x
run: {steps: 7, metric: loss}
shares: {a: 0.5, b: 0.25}
tables: {240p: {"51": [1.0, 4]}, 480p: {"51": [0.5, 2], "102": [0.5, 1]}}
model: {transformer: {classes: 3, visual_selector: {n_layer: 1}}}
"""


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("shares={}", "shares", {}),
        ("shares={c: 1}", "shares", {"c": 1.0}),
        ("shares.a=0.75", "shares", {"a": 0.75, "b": 0.25}),
        ('tables={240p: {"17": [1.0, 1]}}', "tables", {"240p": {"17": [1.0, 1.0]}}),
        ('tables.480p={"17": [1.0, 1]}', "tables", {"240p": {"51": [1.0, 4.0]}, "480p": {"17": [1.0, 1.0]}}),
        ("tables.240p.51=[0.5,2]", "tables.240p", {"51": [0.5, 2.0]}),
        ("run={metric: mAP}", "run", {**as_dict(Recipe("x"))["run"], "metric": "mAP"}),
        ("run.metric=mAP", "run", {**as_dict(Recipe("x"))["run"], "metric": "mAP", "steps": 7}),
        ("model.transformer={width: 8}", "model.transformer.classes", 21),
        ("model.transformer.width=8", "model.transformer.classes", 3),
        ("model.full_attention={classes: 5}", "model.full_attention.classes", 5),
    ],
)
def test_a_mapping_replaces_and_a_longer_key_changes_one_part(
    tmp_path: Path, override: str, key: str, value: object
) -> None:
    name = written(tmp_path, PRESET)
    found: object = as_dict(load_recipe(name, Mapped, [override]))
    for part in key.split("."):
        assert isinstance(found, dict)
        found = found[part]
    assert found == value


_NAMES = st.text("abcdefgh_", min_size=1, max_size=5)


@settings(max_examples=40)
@given(st.dictionaries(_NAMES, st.floats(0, 1)), st.dictionaries(_NAMES, st.floats(0, 1)))
def test_whatever_a_mapping_held_it_holds_what_was_set(before: dict[str, float], after: dict[str, float]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        name = written(Path(folder), yaml.safe_dump({"task": "x", "shares": before}))
        assert load_recipe(name, Mapped, [f"shares={json.dumps(after)}"]).shares == after


def test_a_section_that_is_emptied_keeps_no_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no setting 'run\.stesp'"):
        load_recipe(written(tmp_path, PRESET), Mapped, ["run={stesp: 3}"])
    with pytest.raises(UserError, match=r"tables.240p.51"):
        load_recipe(written(tmp_path, PRESET), Mapped, ["tables={240p: {51: many}}"])


def test_a_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"line 3 names 'run' a second time"):
        load_recipe(written(tmp_path, "task: x\nrun: {steps: 3}\nrun: {accumulate: 2}\n"), Example)


def test_the_effective_recipe_reads_back_as_itself(tmp_path: Path) -> None:
    recipe = load_recipe(written(tmp_path, PRESET), Mapped, ["optimizer.clip_norm=null", "optimizer.eps=1e-15"])
    again = written(tmp_path, as_yaml(recipe))
    assert load_recipe(again, Mapped) == recipe


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("run.accumulate=0", r"run\.accumulate=0: it must be at least 1"),
        ("run.steps=-5", r"run\.steps=-5: it must be at least 1"),
        ("schedule.kind=linear", r"schedule\.kind=linear: it may be constant, cosine"),
        ("schedule.start_factor=1.5", r"schedule\.start_factor=1\.5: it must be 0 to 1"),
        ("optimizer.name=lion", r"optimizer\.name=lion: it may be adam, adamw, sgd"),
        ("optimizer.lr=nan", r"optimizer\.lr=nan: it must be above 0"),
        ("optimizer.lr=-1e-3", r"optimizer\.lr=-0\.001: it must be above 0"),
        ("optimizer.lr=.inf", r"optimizer\.lr=inf: .* finite"),
        ("optimizer.betas=[0.9,1.5]", r"optimizer\.betas=\[0\.9, 1\.5\]: it must be 0 to 1"),
        ("ema.decay=2", r"ema\.decay=2\.0: it must be 0 to 1"),
        ("parallel.precision=fp8", r"parallel\.precision=fp8: it may be fp32, bf16, fp16"),
        ("model.transformer.fusion.kind=sum", r"model\.transformer\.fusion\.kind=sum: it may be transformer, mlp"),
        ("model.visual_trunk.size=huge", r"model\.visual_trunk\.size=huge: it may be full, small, tiny"),
        ("run.keep_checkpoints=0", r"run\.keep_checkpoints=0: it must be at least 1"),
        ("shares.a=.nan", r"shares=.*finite"),
    ],
)
def test_a_value_out_of_its_bounds_is_told_at_the_start(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_recipe(written(tmp_path, PRESET), Mapped, [override])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_is_within_its_bounds_and_every_setting_has_a_meaning(name: str) -> None:
    recipe = registry.recipe_of(name)
    found = list(keys(type(recipe), recipe))
    assert {key.key for key in found} >= {"run.steps", "optimizer.lr", "data.paths"}
    assert all(key.type and key.meaning for key in found), [key.key for key in found if not key.meaning]
    assert len({key.key for key in found}) == len(found)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": "three"}, r"model\.options\.depth=three: its type is whole number; change model\.options\.depth$"),
        ({"depth": 2.5}, r"model\.options\.depth=2\.5: its type is whole number"),
        ({"depth": 10**9}, r"model\.options\.depth=1000000000: it must be 1 to 1000"),
        ({"qk_norm": "yes"}, r"model\.options\.qk_norm=yes: its type is true or false"),
        ({"patch_size": [1, 2]}, r"model\.options\.patch_size=\[1, 2\]: its type is list of whole number, 3 of them"),
        ({"mlp_ratio": None}, r"model\.options\.mlp_ratio=null: its type is number"),
        ({"class_dropout_prob": float("nan")}, r"class_dropout_prob=nan: it must be 0 to 1"),
    ],
)
def test_options_of_a_model_have_types_and_bounds_too(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        VASTDiT3Config.from_options(options, where="model.options")
    assert VASTDiT3Config.from_options({"mlp_ratio": 2, "patch_size": [1, 2, 2]}).mlp_ratio == 2.0


def test_differences_name_every_changed_setting(tmp_path: Path) -> None:
    name = written(tmp_path, "task: x")
    old, new = load_recipe(name, Example), load_recipe(name, Example, ["run.steps=3", "model.transformer.classes=5"])
    assert differences(json.loads(json.dumps(as_dict(old))), as_dict(old)) == []  # as a checkpoint gives it back
    assert differences(as_dict(old), as_dict(new)) == ["model.transformer.classes: 21 → 5", "run.steps: 1000 → 3"]
