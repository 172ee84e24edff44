"""The prior, its text tower, its losses and the temporal VAE against the reference's numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from parity.test_javisdit_model import compare_with_key_list
from safetensors.torch import save_file

from javisc.trainer.models.prior import PriorConfig, STIBPrior
from javisc.trainer.models.prior import model as prior_model
from javisc.trainer.models.text.imagebind import ImageBindText
from javisc.trainer.models.vae.temporal import TemporalVAE
from javisc.trainer.objectives import contrastive
from support.parity import JAVISDIT, Case, Fixture, check, files, load


def built(fixture: Fixture) -> STIBPrior:
    model = STIBPrior(PriorConfig.from_options(fixture.config))
    model.load_state_dict(fixture.weights, strict=True)
    return model.eval()


@pytest.mark.parametrize("path", files("prior_encode"))
@pytest.mark.parametrize("grad", [False, True])
def test_prior_tokens(path: Path, grad: bool) -> None:
    """Without gradients too: that is where nn.Transformer would take its own inference path and another GELU."""
    fixture = load(path)
    model = built(fixture)
    for case in fixture.cases.values():
        with torch.set_grad_enabled(grad):
            prior = model(
                case.inputs["text_hidden"], case.inputs["noise"] if fixture.config["apply_sampling"] else None
            )
        found = {"spatial_prior": prior.spatial, "temporal_prior": prior.temporal, "onset_prior": prior.onset}
        if prior.mean is not None:
            found |= {"mean": prior.mean, "logvar": prior.logvar, "kl": prior.kl()}
        for name, theirs in case.outputs.items():
            check(found[name], theirs, f"{case.name}/{name}")


@pytest.mark.parametrize("path", files("prior_va_encoder"))
@torch.no_grad()
def test_video_audio_encoder(path: Path) -> None:
    fixture = load(path)
    model = built(fixture)
    for case in fixture.cases.values():
        inputs = case.inputs
        vx, ax = model.embed_va(inputs["video"], inputs["audio"], inputs["frame_height"], inputs["frame_width"])
        aligned = model.align(vx, ax)
        spatial = model.merge_spatial(aligned.video_spatial, aligned.audio_spatial)
        found = {
            "vx": vx,
            "ax": ax,
            "v_spatial": aligned.video_spatial,
            "a_spatial": aligned.audio_spatial,
            "v_temporal": aligned.video_temporal,
            "a_temporal": aligned.audio_temporal,
            "spatial_embed": spatial,
            "temporal_embed": model.merge_temporal(aligned.video_temporal, aligned.audio_temporal),
            "disc_logit": model.discriminator(torch.cat((spatial, 0.5 * spatial), dim=1)),
        }
        for name, theirs in case.outputs.items():
            check(found[name], theirs, f"{case.name}/{name}")


@pytest.mark.parametrize("path", files("prior_contrastive"))
@torch.no_grad()
def test_contrastive_terms(path: Path) -> None:
    fixture = load(path)
    model = built(fixture)
    for case in fixture.cases.values():
        inputs = case.inputs
        found = contrastive.contrastive_terms(model, inputs["embed"], inputs["prior"], "spatial")
        found["total"] = found["spatial_total_loss"]
        for name in ("hinge", "info_nce", "soft_margin", "margin"):
            found[name] = getattr(contrastive, name)(inputs["logits"])
        for name in ("onset_long", "onset_short"):
            found[name] = contrastive.onset_loss(model, inputs["tprior"], inputs[name])
        for name, theirs in case.outputs.items():
            check(found[name], theirs, f"{case.name}/{name}")


def _loss(model: STIBPrior, case: Case) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    inputs = case.inputs
    negatives = {
        aspect: contrastive.Negatives(inputs[f"neg_video_{aspect}"], inputs[f"neg_audio_{aspect}"])
        for aspect in ("spatial", "temporal")
    }
    prior = model(inputs["text_hidden"], inputs["noise"])
    sizes = inputs["frame_height"], inputs["frame_width"]
    return contrastive.prior_loss(
        model, prior, inputs["video"], inputs["audio"], negatives, *sizes, onset=inputs.get("onset")
    )


@pytest.mark.parametrize("path", files("prior_loss"))
def test_prior_loss_and_gradients(path: Path) -> None:
    fixture = load(path)
    model = built(fixture)
    for case in fixture.cases.values():
        model.zero_grad(set_to_none=True)
        loss, terms = _loss(model, case)
        loss.backward()
        check(loss, case.outputs["loss"], f"{case.name}/loss")
        for name, theirs in case.outputs.items():
            if name.startswith("term/"):
                check(terms[name.removeprefix("term/")], theirs, f"{case.name}/{name}")
        parameters = dict(model.named_parameters())
        grads = [parameters[name].grad for name in case.scalars["grad_names"]]
        norms = torch.stack([torch.zeros(()) if grad is None else grad.norm() for grad in grads])
        check(norms, case.outputs["grad_norms"], f"{case.name}/grad_norms")


@pytest.mark.parametrize(("train", "name"), [(True, "train"), (False, "infer")])
def test_official_prior_has_the_official_tensors(train: bool, name: str) -> None:
    with torch.device("meta"):
        model = STIBPrior(PriorConfig(encode_va=train))
    compare_with_key_list(model, JAVISDIT / f"keys_STIBPrior_{name}.txt")


def test_official_text_tower_has_the_official_tensors() -> None:
    with torch.device("meta"):
        model = ImageBindText()
    compare_with_key_list(model, JAVISDIT / "keys_ImageBind_text.txt")


@pytest.mark.parametrize("path", files("imagebind_text"))
def test_text_tower(path: Path) -> None:
    fixture = load(path)
    c = fixture.config
    model = ImageBindText(c["ctx"], c["vocab"], c["dim"], c["blocks"], c["heads"])
    model.load_state_dict(fixture.weights, strict=True)
    for case in fixture.cases.values():
        check(model(case.inputs["tokens"]), case.outputs["hidden"], f"{case.name}/hidden")
        check(model.embed(case.inputs["tokens"]), case.outputs["embed"], f"{case.name}/embed")


@pytest.mark.parametrize("path", files("vae_temporal"))
@torch.no_grad()
def test_temporal_vae(path: Path) -> None:
    fixture = load(path)
    model = TemporalVAE(**fixture.config)
    model.load_state_dict(fixture.weights, strict=True)
    for case in fixture.cases.values():
        frames = case.scalars["num_frames"]
        mode = model.encode(case.inputs["x"], mode=True)
        found = {
            "moments": model.moments(case.inputs["x"]),
            "mode": mode,
            "rec": model.decode(mode, frames),
            "dec": model.decode(case.inputs["z"], frames),
        }
        for name, theirs in case.outputs.items():
            check(found[name], theirs, f"{case.name}/{name}")


@pytest.mark.parametrize("path", files("prior_encode"))
def test_a_prior_folder_comes_back_with_and_without_its_training_part(path: Path, tmp_path: Path) -> None:
    fixture = load(path)
    model = built(fixture)
    prior_model.save(model, tmp_path)
    tower = {"text_encoder.modality_preprocessors.text.mask": torch.zeros(2, 2)}
    save_file(fixture.weights | tower, tmp_path / "model.safetensors")
    again, text = prior_model.load(tmp_path)
    assert again.config == model.config
    assert list(text) == ["modality_preprocessors.text.mask"]
    slim, _ = prior_model.load(tmp_path, encode_va=False)
    assert set(slim.state_dict()) == {
        name for name in fixture.weights if not name.startswith(prior_model.TRAINING_ONLY)
    }
