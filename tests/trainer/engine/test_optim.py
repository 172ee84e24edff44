"""The step, its guard and the average, against torch's own pieces and the formulas."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from javisc.manifests.errors import UserError
from javisc.trainer.engine.distributed import world
from javisc.trainer.engine.optim import EMA, EMAConfig, LossScaleConfig, OptimizerConfig, Stepper, build_optimizer

CPU = torch.device("cpu")


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.GELU(), nn.Linear(7, 3))


def backward(net: nn.Module, step: int, scale: Tensor | float = 1.0, times: float = 1.0) -> None:
    x = torch.randn(4, 5, generator=torch.Generator().manual_seed(step))
    (net(x).square().sum() * times * scale).backward()


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_a_step_is_clipping_and_the_optimizers_own(name: str) -> None:
    config = OptimizerConfig(name=name, weight_decay=0.01, clip_norm=0.5)
    ours, theirs = model(), model()
    stepper = Stepper(ours, config, CPU, None)
    plain = copy.copy(config)
    other = build_optimizer(list(theirs.parameters()), plain)
    for step in range(5):
        lr = 0.01 * (step + 1)
        backward(ours, step)
        norm, bad = stepper.step(lr)
        backward(theirs, step)
        want = nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
        other.param_groups[0]["lr"] = lr
        other.step()
        other.zero_grad()
        assert norm.item() == pytest.approx(want.item(), rel=1e-6) and bad.item() == 0
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_step_that_is_not_finite_changes_nothing_but_the_counter(name: str, poison: float) -> None:
    net = model()
    stepper = Stepper(net, OptimizerConfig(name=name, weight_decay=0.1), CPU, None)
    backward(net, 0)
    stepper.step(0.1)
    before = {key: value.clone() for key, value in {**net.state_dict(), **stepper.state_dict()}.items()}
    for times in (1, 2):
        backward(net, 1)
        next(net.parameters()).grad[0, 0] = poison  # type: ignore[index]
        _, bad = stepper.step(0.1)
        assert bad.item() == 1 and stepper.skipped.item() == times
    after = {**net.state_dict(), **stepper.state_dict()}
    assert all(torch.equal(after[key], value) for key, value in before.items() if key != "skipped")
    backward(net, 1)
    assert stepper.step(0.1)[1].item() == 0 and stepper.skipped.item() == 0
    assert not torch.equal(next(net.parameters()), before["0.weight"])


def test_the_loss_scale_follows_torchs_scaler() -> None:
    """Overflows halve it, calm doubles it, and the weights do not see it."""
    net, reference = model(), model()
    scaling = LossScaleConfig(initial=2.0**10, growth_interval=2)
    stepper = Stepper(net, OptimizerConfig(name="sgd", momentum=0.0, clip_norm=None), CPU, scaling)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2)
    optimizer = torch.optim.SGD(reference.parameters(), 0.01)
    scales = []
    for step in range(12):
        times = 1e38 if step in (5, 6, 7, 8, 9) else 1.0
        backward(net, step, stepper.scale, times)
        stepper.step(0.01)
        backward(reference, step, scaler._get_scale_async() if step else 2.0**10, times)  # type: ignore[arg-type]
        if step == 0:
            scaler.scale(torch.ones(()))
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        scales.append(stepper.scale.item())
        assert stepper.scale.item() == scaler.get_scale(), step
    assert min(scales) < 2.0**10 < max(scales)
    for a, b in zip(net.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_preparing_makes_the_state_without_a_step() -> None:
    net, untouched = model(), model()
    stepper = Stepper(net, OptimizerConfig(), CPU, None)
    stepper.prepare()
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), untouched.parameters(), strict=True))
    state = stepper.state_dict()
    assert state["state.0.weight.step"].item() == 0 and not state["state.2.bias.exp_avg"].any()
    other = Stepper(untouched, OptimizerConfig(), CPU, None)
    for step in range(3):
        backward(net, step)
        stepper.step(0.01)
        backward(untouched, step)
        other.step(0.01)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), untouched.parameters(), strict=True))


def test_the_average_follows_its_formula() -> None:
    net = model()
    ema = EMA(net, EMAConfig(decay=0.9, warmup=True))
    want = [p.detach().clone() for p in net.parameters()]
    for n in range(30):
        with torch.no_grad():
            for p in net.parameters():
                p.add_(0.1)
        ema.update()
        decay = min(0.9, (1 + n) / (10 + n))
        want = [decay * w + (1 - decay) * p.detach() for w, p in zip(want, net.parameters(), strict=True)]
    for a, b in zip(ema.average, want, strict=True):
        torch.testing.assert_close(a, b)
    weights, average = net[0].weight.clone(), ema.average[0].clone()  # type: ignore[index, operator]
    ema.swap()
    assert torch.equal(net[0].weight, average) and torch.equal(ema.average[0], weights)  # type: ignore[index]


def test_unknown_optimizers_are_named() -> None:
    with pytest.raises(UserError, match=r"optimizer\.name='lion': it may be adam, adamw, sgd"):
        build_optimizer(list(model().parameters()), OptimizerConfig(name="lion"))


def test_what_knows_no_shards_says_so() -> None:
    with world():
        mesh = init_device_mesh("cpu", (1,))
        sharded = [nn.Parameter(distribute_tensor(torch.zeros(4), mesh, [Shard(0)]))]
        with pytest.raises(UserError, match="use adam or adamw"):
            build_optimizer(sharded, OptimizerConfig(name="sgd"))
        build_optimizer(sharded, OptimizerConfig(name="adamw"))


def test_joining_processes_says_nothing_on_standard_output(capfd: pytest.CaptureFixture[str]) -> None:
    with world():
        print("an answer")
    assert capfd.readouterr().out == "an answer\n"
