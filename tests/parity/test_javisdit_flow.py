"""Rectified flow, its sampler and the frame masks against the reference's numbers; the switches between it and the
clean forms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from parity.test_javisdit_model import built
from torch import Tensor

from javisc.manifests.errors import UserError
from javisc.trainer.models.prior import PriorConfig, STIBPrior
from javisc.trainer.objectives import flow, frame_masks, sampling
from support.parity import Case, Fixture, check, files, load, table

MODALITIES = ("video", "audio")


def toy(weights: dict[str, Tensor], conditions: dict[str, Tensor], prefix: str = "") -> flow.Velocity:
    """The fixtures' linear velocity model, given by its tensors (`a_video`, …)."""

    def velocity(x: dict[str, Tensor], t: Tensor, masks: dict[str, Tensor]) -> dict[str, Tensor]:
        out = {}
        for name, value in x.items():

            def channel(letter: str, name: str = name) -> Tensor:
                return weights[f"{prefix}{letter}_{name}"].view(1, -1, *[1] * (x[name].ndim - 2))

            def row(vector: Tensor, name: str = name) -> Tensor:
                return vector.view(-1, *[1] * (x[name].ndim - 1))

            v = channel("a") * value + channel("b") * row(t / 1000)
            v = v + channel("c") * row(conditions["y"].flatten(1).mean(1))
            if "spatial_prior" in conditions:
                spatial, temporal = (conditions[f"{k}_prior"].flatten(1).mean(1) for k in ("spatial", "temporal"))
                v = v + channel("d") * row(spatial + 2 * temporal)
            if name in masks:
                v = v + channel("e") * flow.over_frames(masks[name].to(value), value)
            out[name] = torch.cat((v, channel("g") * value), dim=1)
        return out

    return velocity


def flow_config(options: dict[str, Any], **more: Any) -> flow.FlowConfig:
    return flow.FlowConfig(**options, **more)


def _masks(case: Case) -> dict[str, Tensor]:
    names = {"video": "x_mask", "audio": "ax_mask"}
    return {name: case.inputs[key] for name, key in names.items() if key in case.inputs}


def _train_inputs(case: Case) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    return {k: case.inputs[k] for k in MODALITIES}, {k: case.inputs[f"noise_{k}"] for k in MODALITIES}


@pytest.mark.parametrize("path", files("rf_train"))
def test_training_loss(path: Path) -> None:
    fixture = load(path)
    config = flow_config(fixture.config["scheduler"])
    for case in fixture.cases.values():
        if "dpo" in case.scalars:
            continue
        learning = ("audio",) if case.scalars.get("audio_only") else MODALITIES
        velocity = toy(fixture.weights, {"y": case.inputs["y"]})
        ours = flow.flow_loss(velocity, *_train_inputs(case), case.inputs["t"], config, _masks(case), learning)
        check(ours.loss, case.outputs["loss"], f"{case.name}/loss")
        check(ours.mean(), case.outputs["loss"].mean(), f"{case.name}/mean")
        for name in MODALITIES:
            check(ours.noised[name], case.outputs[f"x_t_{name}"], f"{case.name}/x_t_{name}")
            if name in learning:
                check(ours.parts[name].mean(), case.outputs[f"loss_{name}"], f"{case.name}/loss_{name}")


@pytest.mark.parametrize("path", files("rf_train"))
def test_preference_loss(path: Path) -> None:
    fixture = load(path)
    config = flow_config(fixture.config["scheduler"])
    for case in fixture.cases.values():
        if "dpo" not in case.scalars:
            continue
        t = case.inputs["t"].repeat(2)
        losses = []
        for weights, prefix in ((fixture.weights, ""), (case.inputs, "ref/")):
            velocity = toy(weights, {"y": case.inputs["y"]}, prefix)
            losses.append(flow.flow_loss(velocity, *_train_inputs(case), t, config).parts)
        total = torch.zeros(())
        for name in MODALITIES:
            rows, accuracy = flow.preference_loss(losses[0][name], losses[1][name], case.scalars["dpo"][name])
            check(accuracy, case.outputs[f"implicit_acc_{name}"], f"{name}/accuracy")
            total = total + rows
        check(total, case.outputs["loss"], "loss")


@pytest.mark.parametrize("path", files("rf_train"))
def test_rows_without_a_generated_frame(path: Path) -> None:
    """The reference counts such a row as 1.0; the clean form leaves it out of the mean and of the gradient."""
    fixture = load(path)
    case = fixture.cases.get("fullymasked_rows")
    if case is None:
        pytest.skip("the file has no such rows")
    masks = _masks(case)
    velocity = toy(fixture.weights, {"y": case.inputs["y"]})
    config = flow_config(fixture.config["scheduler"], masked_rows="excluded")
    ours = flow.flow_loss(velocity, *_train_inputs(case), case.inputs["t"], config, masks)
    for name in MODALITIES:
        lost = ~masks[name].any(1)
        assert (ours.parts[name][lost] == 0).all()
        kept = ours.parts[name][~lost]
        expected = kept.mean() if len(kept) else torch.zeros(())
        check(
            (ours.parts[name] * ours.counted[name]).sum() / ours.counted[name].sum().clamp_min(1), expected, name, 1e-6
        )


@pytest.mark.parametrize("name", ["stage3", "stage3_framemask"])
@pytest.mark.parametrize("path", files("vastdit3_train"))
def test_training_gradients_of_the_whole_model(path: Path, name: str) -> None:
    from javisc.trainer.models.dit.stages import freeze

    fixture = load(path)
    assert set(fixture.cases) == {"stage3", "stage3_framemask"}
    case, model = fixture.cases[name], built(fixture)
    freeze(model)
    names = ("y", "mask", "spatial_prior", "temporal_prior", "fps", "height", "width")
    rest = {k: case.inputs[k] for k in names if k in case.inputs}

    def velocity(x: dict[str, Tensor], t: Tensor, masks: dict[str, Tensor]) -> dict[str, Tensor]:
        return model(x["video"], x["audio"], t, x_mask=masks.get("video"), ax_mask=masks.get("audio"), **rest)

    config = flow_config(fixture.config["scheduler"])
    ours = flow.flow_loss(velocity, *_train_inputs(case), case.inputs["timestep"], config, _masks(case))
    ours.mean().backward()
    check(ours.loss, case.outputs["loss"], f"{case.name}/loss")
    for side in MODALITIES:
        check(ours.parts[side].mean(), case.outputs[f"loss_{side}"], f"{case.name}/loss_{side}")
    learns = {key: p for key, p in model.named_parameters() if p.requires_grad}
    assert set(case.scalars["grad_names"]) <= set(learns)
    norms = [learns[key].grad for key in case.scalars["grad_names"]]
    check(
        torch.stack([g.norm() for g in norms if g is not None]),
        case.outputs["grad_norms"],
        f"{case.name}/grad_norms",
    )
    for key, theirs in case.outputs.items():
        if key.startswith("grad/"):
            grad = learns[key.removeprefix("grad/")].grad
            assert grad is not None
            check(grad, theirs, f"{case.name}/{key}")


def _velocity_of(fixture: Fixture, case: Case) -> flow.Velocity:
    inputs = case.inputs
    doubled = {
        "y": torch.cat((inputs["y"], inputs["y_null"])),
        "spatial_prior": torch.cat((inputs["spatial_prior"], inputs["spatial_null"])),
        "temporal_prior": torch.cat((inputs["temporal_prior"], inputs["temporal_null"])),
    }
    return toy(fixture.weights, doubled)


def _sampled(config: sampling.SamplerConfig, case: Case, velocity: flow.Velocity) -> dict[str, Tensor]:
    inputs = case.inputs
    z = {k: inputs[f"z_{k}"] for k in MODALITIES}
    sizes = (inputs[k] for k in ("height", "width", "num_frames"))
    times = sampling.sampling_times(config, len(inputs["height"]), *sizes, device=torch.device("cpu"))
    masks = {k: inputs[f"mask_{k}"] for k in MODALITIES if f"mask_{k}" in inputs}

    def step_noise(step: int, name: str, _x: Tensor) -> Tensor:
        return inputs[f"step_noise_{name}"][step]

    return sampling.sample(velocity, z, times, config, masks=masks, step_noise=step_noise)


@pytest.mark.parametrize("path", files("rf_sample"))
def test_sampler(path: Path) -> None:
    fixture = load(path)
    config = sampling.SamplerConfig(**fixture.config["scheduler"], edit_masks="reference")
    for case in fixture.cases.values():
        seen: list[tuple[dict[str, Tensor], Tensor]] = []
        inner = _velocity_of(fixture, case)

        def velocity(
            x: dict[str, Tensor],
            t: Tensor,
            masks: dict[str, Tensor],
            inner: flow.Velocity = inner,
            seen: list[Any] = seen,
        ) -> Any:
            seen.append(({k: v[: len(v) // 2] for k, v in x.items()}, t[: len(t) // 2]))
            return inner(x, t, masks)

        ours = _sampled(config, case, velocity)
        check(torch.stack([t for _, t in seen]), case.outputs["timesteps"], f"{case.name}/timesteps")
        for name in MODALITIES:
            check(torch.stack([x[name] for x, _ in seen]), case.outputs[f"model_input_{name}"], f"{case.name}/inputs")
            check(ours[name], case.outputs[name], f"{case.name}/{name}")


@pytest.mark.parametrize("path", files("rf_sample"))
def test_clean_edits_move_what_the_network_saw(path: Path) -> None:
    """The two edit rules differ only on frames whose mask lies between 0 and 1."""
    fixture = load(path)
    config = sampling.SamplerConfig(**fixture.config["scheduler"], edit_masks="clean")
    for case in fixture.cases.values():
        ours = _sampled(config, case, _velocity_of(fixture, case))
        for name in MODALITIES:
            mask = case.inputs.get(f"mask_{name}")
            between = torch.zeros(()) if mask is None else ((mask > 0) & (mask < 1)).any()
            if not between:
                check(ours[name], case.outputs[name], f"{case.name}/{name}")
            else:
                assert mask is not None
                edited = ((mask > 0) & (mask < 1)).float()
                other = (ours[name] - case.outputs[name]).abs() * flow.over_frames(1 - edited, ours[name])
                assert other.max() < 1e-4 * case.outputs[name].abs().max()
                assert not torch.allclose(ours[name], case.outputs[name])


@pytest.mark.parametrize("path", files("e2e_sample"))
@pytest.mark.parametrize("keep", [False, True])
@torch.no_grad()
def test_text_to_latents(path: Path, keep: bool) -> None:
    fixture = load(path)
    model = built(fixture)
    prior_model = STIBPrior(PriorConfig.from_options(fixture.config["prior"]))
    prior_model.load_state_dict(fixture.part("prior."), strict=True)
    prior_model.eval()
    config = sampling.SamplerConfig(**fixture.config["scheduler"], edit_masks="reference")
    spatial_tokens = model.config.spatial_prior_len
    for case in fixture.cases.values():
        inputs = case.inputs
        rows = len(inputs["y"])
        prior = prior_model(inputs["text_hidden"], inputs["prior_noise"])
        null = model.st_prior_embedder.y_embedding.expand(rows, -1, -1)
        y = torch.cat((inputs["y"], model.y_embedder.y_embedding.expand(rows, 1, -1, -1)))
        spatial = torch.cat((prior.spatial, null[:, :spatial_tokens]))
        temporal = torch.cat((prior.temporal, null[:, spatial_tokens:]))
        conditions = model.conditions(y, inputs["text_mask"], spatial, temporal, keep=keep)

        def velocity(
            x: dict[str, Tensor],
            t: Tensor,
            masks: dict[str, Tensor],
            inputs: Any = inputs,
            conditions: Any = conditions,
        ) -> dict[str, Tensor]:
            sizes = {k: inputs[k].repeat(2) for k in ("fps", "height", "width")}
            return model(
                x["video"],
                x["audio"],
                t,
                x_mask=masks.get("video"),
                ax_mask=masks.get("audio"),
                conditions=conditions,
                **sizes,
            )

        ours = _sampled(config, case, velocity)
        for name in MODALITIES:
            check(ours[name], case.outputs[name], f"{case.name}/{name}")


def test_time_tables() -> None:
    tables = table("rf_tables.json")
    for row in tables["timestep_transform"]:
        ours = flow.shift_times(torch.tensor(row["t"]), row["h"], row["w"], row["num_frames"], scale=row["scale"])
        check(ours, torch.tensor(row["out"]), str(row), 1e-5)
    normal = torch.tensor(tables["logit_normal"]["normal"])
    check(flow.logit_normal(normal), torch.tensor(tables["logit_normal"]["t_over_T"]), "logit-normal", 1e-5)
    check(
        flow.logit_normal(normal, 0.5, 1.5), torch.tensor(tables["logit_normal"]["loc05_scale15"]), "logit-normal", 1e-5
    )
    for row in tables["sampling_timesteps"]:
        config = sampling.SamplerConfig(num_sampling_steps=row["steps"], use_timestep_transform=row["transform"])
        times = sampling.sampling_times(config, 1, row["h"], row["w"], row["num_frames"], torch.device("cpu"))
        check(torch.cat(times), torch.tensor(row["timesteps"]), str(row["steps"]), 1e-5)


class _Replay:
    """Answers draws from the table, which records each with its arguments."""

    def __init__(self, draws: list[list[Any]]) -> None:
        self.draws = list(draws)

    def _next(self, *call: Any) -> Any:
        recorded = self.draws.pop(0)
        assert recorded[:-1] == list(call), f"drew {call}, the table has {recorded}"
        return recorded[-1]

    def random(self) -> float:
        return self._next("random")

    def uniform(self, a: float, b: float) -> float:
        return self._next("uniform", a, b)

    def randint(self, a: int, b: int) -> int:
        return self._next("randint", a, b)


def test_frame_masks() -> None:
    rows = table("frame_masks.json")
    assert rows["mask_ratios"] == frame_masks.STAGE3_RATIOS
    for u, kind in rows["selection"]:
        assert frame_masks.choose_kind(u, rows["mask_ratios"]) == kind, u
    for row in rows["masks"]:
        draws = _Replay(row["draws"])
        draws.random()
        video, audio = frame_masks.frame_masks(row["kind"], row["Tv"], row["Ta"], draws, row["frame_uniforms"])
        assert video.int().tolist() == row["video"], row["kind"]
        assert audio.int().tolist() == row["audio"], row["kind"]
        assert audio.int()[::4].tolist() == row["audio_tokens_patch4"], row["kind"]
        assert not draws.draws


@pytest.mark.parametrize("frames", [1, 2, 3, 5])
def test_short_clips_have_masks_too(frames: int) -> None:
    import random

    for kind in frame_masks.KINDS:
        video, audio = frame_masks.frame_masks(kind, frames, 7, random.Random(3))
        assert (len(video), len(audio)) == (frames, 7)


def test_unknown_mask_kinds_and_sums_beyond_one_are_refused() -> None:
    with pytest.raises(UserError, match="unknown kind 'middle'"):
        frame_masks.choose_kind(0.5, {"middle": 0.1})
    with pytest.raises(UserError, match="add up to 1.2"):
        frame_masks.choose_kind(0.5, {"random": 1.2})


def test_masks_of_a_batch_depend_on_each_rows_seed_alone() -> None:
    ratios = dict.fromkeys(("random", "quarter_head", "video_to_audio"), 0.33)
    first = frame_masks.draw_masks(3, 8, 12, ratios, [1, 2, 3])
    again = frame_masks.draw_masks(2, 8, 12, ratios, [3, 2])
    assert first is not None and again is not None
    for a, b in zip(first, again):
        assert torch.equal(a[[2, 1]], b)
    assert frame_masks.draw_masks(2, 8, 12, {}, [1, 2]) is None
