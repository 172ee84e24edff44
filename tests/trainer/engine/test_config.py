"""Recipes: merging, overriding, and the one line a user reads about a mistake."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from javisc.manifests.errors import UserError
from javisc.trainer.engine.config import Recipe, as_dict, differences, load_recipe, task_of
from javisc.trainer.models.sync.config import AVSyncConfig


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
        ("task: x", "optimizer.learning_rate=1", r"override 'optimizer\.learning_rate=1': there is no setting"),
        ("task: x", "run.zzz=1", r"there is no setting 'run\.zzz'"),
        ("task: x", "run.steps=many", r"override 'run\.steps=many': run\.steps: .*many"),
        ("task: x", "run.steps", r"override 'run\.steps': write key=value"),
        ("task: x", "=3", r"write key=value"),
        ("run: {steps: 3}", "", "task"),
        ("- a\n- b", "", "is a list"),
        ("a: [", "", "no YAML"),
        ("task: x\nrun: 3", "", r"r\.yaml: .*RunConfig.*3"),
    ],
)
def test_mistakes_are_told_in_one_line(tmp_path: Path, text: str, override: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_recipe(written(tmp_path, text), Example, [override] if override else [])
    assert "\n" not in str(caught.value)


def test_a_recipe_is_data_and_never_code(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no YAML"):
        load_recipe(written(tmp_path, "task: !!python/object/apply:os.system ['true']"), Example)
    large = written(tmp_path, "task: x\n" + "#" * (1 << 20))
    with pytest.raises(UserError, match="at most"):
        load_recipe(large, Example)
    with pytest.raises(UserError, match="recipe 'absent': it may be .*path of a YAML file"):
        load_recipe("absent", Example)


def test_differences_name_every_changed_setting(tmp_path: Path) -> None:
    name = written(tmp_path, "task: x")
    old, new = load_recipe(name, Example), load_recipe(name, Example, ["run.steps=3", "model.transformer.classes=5"])
    assert differences(as_dict(old), as_dict(new)) == ["model.transformer.classes: 21 → 5", "run.steps: 1000 → 3"]
