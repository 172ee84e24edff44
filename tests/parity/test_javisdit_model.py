"""The whole joint DiT against the reference's numbers, and its official layouts."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from javisc.trainer.models.dit import PRESETS, VASTDiT3, VASTDiT3Config
from support.parity import JAVISDIT, Case, Fixture, check, files, load
from support.shared import need


def built(fixture: Fixture, prior_attention: str = "batch", given: str = "twice") -> VASTDiT3:
    config = VASTDiT3Config.from_options(fixture.config.get("model", fixture.config))
    model = VASTDiT3(dataclasses.replace(config, prior_attention=prior_attention, final_layer_given_frames=given))
    model.load_state_dict(fixture.part("dit.") or fixture.weights, strict=True)
    return model.eval()


def _trace(model: VASTDiT3, wanted: set[str]) -> dict[str, Tensor]:
    """Record the outputs of the named modules (`name` or `name.0`, `name.1` for pairs) during the next call."""
    seen: dict[str, Tensor] = {}

    def hook(name: str):
        def record(_module: object, _inputs: object, output: Tensor | tuple[Tensor, ...]) -> None:
            for key, value in (
                [(name, output)] if isinstance(output, Tensor) else [(f"{name}.{i}", v) for i, v in enumerate(output)]
            ):
                seen.setdefault(key, value)

        return record

    for name, module in model.named_modules():
        if name in wanted or f"{name}.0" in wanted:
            module.register_forward_hook(hook(name))
    return seen


def _compare(model: VASTDiT3, case: Case, outputs: dict[str, Tensor], suffix: str = "") -> None:
    ours = model(**case.inputs)
    for name in ("audio",) if model.config.audio_only else ("video", "audio"):
        check(ours[name], outputs[name + suffix], f"{case.name}/{name}{suffix}")


@pytest.mark.parametrize("path", files("vastdit3"))
@torch.no_grad()
def test_whole_model(path: Path) -> None:
    fixture = load(path)
    model = built(fixture)
    for case in fixture.cases.values():
        _compare(model, case, case.outputs)


@pytest.mark.parametrize("path", files("vastdit3"))
@torch.no_grad()
def test_prior_attention_of_each_row_alone(path: Path) -> None:
    fixture = load(path)
    cases = [case for case in fixture.cases.values() if case.scalars.get("per_sample")]
    if not cases:
        pytest.skip("the file has no per-sample outputs")
    model = built(fixture, prior_attention="sample")
    for case in cases:
        _compare(model, case, case.outputs, "_per_sample")


@pytest.mark.parametrize("path", files("vastdit3"))
@torch.no_grad()
def test_every_embedder_and_block(path: Path) -> None:
    fixture = load(path)
    cases = [case for case in fixture.cases.values() if case.scalars.get("trace")]
    if not cases:
        pytest.skip("the file has no traces")
    for case in cases:
        wanted = {
            name.removeprefix("trace/"): value for name, value in case.outputs.items() if name.startswith("trace/")
        }
        model = built(fixture)
        seen = _trace(model, set(wanted))
        model(**case.inputs)
        for name, value in wanted.items():
            check(seen[name].reshape(value.shape), value, name)


@pytest.mark.parametrize("path", files("vastdit3"))
@torch.no_grad()
def test_generated_frames_do_not_depend_on_how_given_ones_are_modulated(path: Path) -> None:
    fixture = load(path)
    cases = [case for case in fixture.cases.values() if "x_mask" in case.inputs]
    if not cases:
        pytest.skip("the file has no frame masks")
    model = built(fixture, given="once")
    patch = model.config.audio_patch_size[0]
    for case in cases:
        ours = model(**case.inputs)
        tokens = case.inputs["ax_mask"][:, ::patch].repeat_interleave(patch, dim=1)
        check(
            ours["audio"].transpose(1, 2)[tokens], case.outputs["audio"].transpose(1, 2)[tokens], f"{case.name}/audio"
        )
        if not model.config.audio_only:
            frames = case.inputs["x_mask"]
            check(
                ours["video"].transpose(1, 2)[frames],
                case.outputs["video"].transpose(1, 2)[frames],
                f"{case.name}/video",
            )


@pytest.mark.parametrize("path", files("vastdit3"))
@torch.no_grad()
def test_a_mask_that_is_true_everywhere_is_no_mask_at_all(path: Path) -> None:
    fixture = load(path)
    model = built(fixture)
    case = next(iter(fixture.cases.values()))
    inputs = {name: value for name, value in case.inputs.items() if name not in ("x_mask", "ax_mask")}
    ones = {"ax_mask": torch.ones(inputs["audio"].shape[0], inputs["audio"].shape[2], dtype=torch.bool)}
    ones["x_mask"] = torch.ones(inputs["video"].shape[0], inputs["video"].shape[2], dtype=torch.bool)
    plain, masked = model(**inputs), model(**inputs, **ones)
    for name, value in plain.items():
        assert torch.equal(value, masked[name])


@pytest.mark.parametrize("path", files("vastdit3"))
@torch.no_grad()
def test_kept_keys_and_values_change_nothing(path: Path) -> None:
    fixture = load(path)
    model = built(fixture)
    for case in fixture.cases.values():
        inputs = dict(case.inputs)
        plain = model(**inputs)
        kept = model.conditions(
            inputs.pop("y"),
            inputs.pop("mask", None),
            inputs.pop("spatial_prior", None),
            inputs.pop("temporal_prior", None),
            keep=True,
        )
        for name, value in model(**inputs, conditions=kept).items():
            check(value, plain[name], f"{case.name}/{name}", 1e-6)


@pytest.mark.parametrize("path", files("vastdit3"))
@torch.no_grad()
def test_half_precision_stays_near(path: Path) -> None:
    """The official runs cast the whole module. Against float32 of the same rounded weights and inputs, so that what is
    compared is the arithmetic; root mean square, since the fixtures' weights are chosen to make outputs sensitive."""
    fixture = load(path)
    case = next(iter(fixture.cases.values()))

    def rounded(value: Tensor) -> Tensor:
        return value.bfloat16().float() if value.is_floating_point() else value

    inputs = {name: rounded(value) for name, value in case.inputs.items()}
    exact = built(fixture)
    exact.load_state_dict({name: rounded(value) for name, value in exact.state_dict().items()})
    half = built(fixture).to(torch.bfloat16)
    expected = exact(**inputs)
    for name, value in half(**inputs).items():
        assert value.dtype == torch.float32
        error = (value - expected[name]).square().mean().sqrt() / expected[name].square().mean().sqrt()
        assert error < 0.05, f"{name}: {error:.3f}"


@pytest.mark.parametrize("path", files("vastdit3"))
def test_stored_rope_frequencies_are_used(path: Path) -> None:
    fixture = load(path)
    model = built(fixture)
    assert torch.equal(model.rope.freqs, fixture.weights["rope.freqs"])
    fresh = VASTDiT3(model.config).rope.freqs
    if "ropefreqs" in path.name:
        assert not torch.allclose(model.rope.freqs, fresh)
    else:
        check(fresh, fixture.weights["rope.freqs"], "rope.freqs", 1e-6)


_ROW = re.compile(r"^(\S+)\t(\[.*\])\t(\w+)$")


def key_list(path: Path) -> tuple[dict[str, tuple[list[int], str]], dict[str, int]]:
    """{key: (shape, kind)} and the totals of a key list's head."""
    rows, totals = {}, {}
    for line in need(path).read_text().splitlines():
        if line.startswith("# tensors"):
            found = re.findall(r"([a-zA-Z _#]+): ([\d,]+)", line)
            totals = {name.strip("# "): int(number.replace(",", "")) for name, number in found}
        elif match := _ROW.match(line):
            rows[match[1]] = ([int(n) for n in re.findall(r"\d+", match[2])], match[3])
    return rows, totals


def compare_with_key_list(model: torch.nn.Module, path: Path, trainable: bool = True) -> None:
    rows, totals = key_list(path)
    parameters, state = dict(model.named_parameters()), model.state_dict()
    assert {name: list(value.shape) for name, value in state.items()} == {name: row[0] for name, row in rows.items()}
    if trainable:
        learns = {name: "trainable" if value.requires_grad else "frozen" for name, value in parameters.items()}
        kinds = {name: learns.get(name, "buffer") for name in state}
        assert kinds == {name: kind for name, (_, kind) in rows.items()}
        assert sum(p.numel() for p in parameters.values() if p.requires_grad) == totals["trainable"]
    assert len(state) == totals["tensors"]
    assert sum(value.numel() for value in state.values()) == totals["elements in state_dict"]
    assert sum(p.numel() for p in parameters.values()) == totals["parameters"]


@pytest.mark.parametrize(("preset", "name"), [("VASTDiT3-XL/2", "stage3"), ("VASTDiT3-XL/2-audio", "stage1")])
def test_official_size_has_the_official_tensors(preset: str, name: str) -> None:
    from javisc.trainer.models.dit.stages import freeze

    with torch.device("meta"):
        model = VASTDiT3(PRESETS[preset])
    freeze(model)
    compare_with_key_list(model, JAVISDIT / f"keys_VASTDiT3-XL-2_{name}.txt")
