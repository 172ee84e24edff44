"""The step, its guard and the average, against torch's own pieces and the formulas."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from javisc.manifests.errors import UserError
from javisc.trainer.engine.distributed import world
from javisc.trainer.engine.optim import EMA, EMAConfig, LossScaleConfig, OptimizerConfig, Stepper, build_optimizer
from javisc.trainer.task import CarryOver

CPU = torch.device("cpu")


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.GELU(), nn.Linear(7, 3))


def backward(net: nn.Module, step: int, scale: Tensor | float = 1.0, times: float = 1.0) -> None:
    x = torch.randn(4, 5, generator=torch.Generator().manual_seed(step))
    (net(x).square().sum() * times * scale).backward()


class Definition:
    """torch.optim's own formulas, written out in float64: Adam, AdamW and SGD with momentum, as their documentation has them."""

    def __init__(self, params: list[Tensor], config: OptimizerConfig) -> None:
        self.params = [p.detach().double().clone() for p in params]
        self.first = [torch.zeros_like(p) for p in self.params]
        self.second = [torch.zeros_like(p) for p in self.params]
        self.config, self.steps = config, 0

    def step(self, grads: list[Tensor], lr: float) -> float:
        """One step after clipping to `clip_norm`; returns the norm before it."""
        c = self.config
        grads = [g.double() for g in grads]
        norm = float(torch.sqrt(sum((g**2).sum() for g in grads)))  # type: ignore[arg-type]
        if c.clip_norm is not None and norm > c.clip_norm:
            grads = [g * c.clip_norm / norm for g in grads]
        self.steps += 1
        beta1, beta2 = c.betas
        for p, g, m, v in zip(self.params, grads, self.first, self.second, strict=True):
            if c.name == "adamw":
                p -= lr * c.weight_decay * p
            else:
                g = g + c.weight_decay * p
            if c.name == "sgd":
                m.copy_(g if self.steps == 1 else c.momentum * m + g)
                p -= lr * m
                continue
            m.copy_(beta1 * m + (1 - beta1) * g)
            v.copy_(beta2 * v + (1 - beta2) * g**2)
            p -= lr * (m / (1 - beta1**self.steps)) / ((v / (1 - beta2**self.steps)).sqrt() + c.eps)
        return norm


@pytest.mark.parametrize("clip", [None, 0.5, 1e6], ids=["no clipping", "clipped", "below the clip"])
@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_a_step_is_the_definitions(name: str, decay: float, clip: float | None) -> None:
    config = OptimizerConfig(name=name, weight_decay=decay, clip_norm=clip, betas=(0.8, 0.95), eps=1e-5, momentum=0.7)
    net = model()
    stepper = Stepper(net, config, CPU, None)
    definition = Definition(list(net.parameters()), config)
    start = [p.detach().clone() for p in net.parameters()]
    for step in range(5):
        backward(net, step)
        want = definition.step([p.grad.clone() for p in net.parameters()], 0.01 * (step + 1))  # type: ignore[union-attr]
        norm, bad = stepper.step(0.01 * (step + 1))
        assert norm.item() == pytest.approx(want, rel=1e-5) and bad.item() == 0
        assert all(p.grad is None for p in net.parameters()), "what is left would add to the next step"
    for ours, theirs in zip(net.parameters(), definition.params, strict=True):
        torch.testing.assert_close(ours.detach().double(), theirs, rtol=1e-4, atol=1e-6)
    assert all(not torch.equal(p, q) for p, q in zip(net.parameters(), start, strict=True))


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_what_is_frozen_has_no_state_and_does_not_move(name: str) -> None:
    net = model()
    net[0].weight.requires_grad_(False)
    before = net[0].weight.detach().clone()
    stepper = Stepper(net, OptimizerConfig(name=name, weight_decay=0.5), CPU, None)
    backward(net, 0)
    stepper.step(0.1)
    assert torch.equal(net[0].weight, before) and net[0].weight not in stepper.optimizer.state
    assert not any(key.startswith("state.0.weight.") for key in stepper.state_dict())
    assert any(key.startswith("state.2.weight.") for key in stepper.state_dict())


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
    """Overflows shrink it, calm lets it grow, and neither the weights nor the norm that is clipped see it."""
    net, reference = model(), model()
    scaling = LossScaleConfig(initial=2.0**10, growth_factor=4.0, backoff_factor=0.25, growth_interval=2)
    stepper = Stepper(net, OptimizerConfig(name="sgd", momentum=0.0, clip_norm=0.5), CPU, scaling)
    scaler = torch.amp.GradScaler("cpu", 2.0**10, growth_factor=4.0, backoff_factor=0.25, growth_interval=2)
    optimizer = torch.optim.SGD(reference.parameters(), 0.01)
    scales = []
    for step in range(12):
        times = 1e38 if step in (5, 6, 7, 8, 9) else 1.0
        backward(net, step, stepper.scale, times)
        stepper.step(0.01)
        backward(reference, step, scaler._get_scale_async() if step else 2.0**10, times)  # type: ignore[arg-type]
        if step == 0:
            scaler.scale(torch.ones(()))
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(reference.parameters(), 0.5)
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


def test_decay_of_matrices_alone_leaves_the_rest() -> None:
    """With gradients of zero, AdamW does nothing but decay."""
    net = nn.ModuleDict({"plain": nn.Linear(3, 2), "bn": nn.Linear(3, 2), "norm": nn.LayerNorm(3)})
    for p in net.parameters():
        nn.init.uniform_(p, 0.5, 1.0)  # what begins as zero would not be seen to decay
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    config = OptimizerConfig(name="adamw", weight_decay=0.5, weight_decay_on="matrices")
    stepper = Stepper(net, config, CPU, None)
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    stepper.step(0.1)
    for name, p in net.named_parameters():
        kept = 1 - 0.1 * 0.5 if name == "plain.weight" else 1.0
        torch.testing.assert_close(p.detach(), kept * before[name])


def test_the_state_holds_all_that_a_step_depends_on() -> None:
    """Another stepper with this one's tensors goes on as it does: moments, steps, the loss scale and the skips."""
    config, scaling = OptimizerConfig(weight_decay=0.1), LossScaleConfig(initial=2.0**10, growth_interval=2)
    one, other = model(), model()
    steppers = Stepper(one, config, CPU, scaling), Stepper(other, config, CPU, scaling)
    for step in range(5):
        backward(one, step, steppers[0].scale, 1e38 if step == 4 else 1.0)
        steppers[0].step(0.01)
    steppers[1].prepare()
    other.load_state_dict(one.state_dict())
    there = steppers[1].state_dict()
    for name, value in steppers[0].state_dict().items():
        there[name].copy_(value)
    assert steppers[1].skipped.item() == 1 and steppers[1].scale.item() != 2.0**10
    for step in range(5, 9):
        for net, stepper in zip((one, other), steppers, strict=True):
            backward(net, step, stepper.scale)
            stepper.step(0.01)
        assert torch.equal(steppers[0].scale, steppers[1].scale)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_another_optimizers_moments_and_scale_are_taken_over_by_name() -> None:
    """What the other knew goes on as there; what it did not know begins anew."""
    config, scaling = OptimizerConfig(weight_decay=0.1), LossScaleConfig(initial=2.0**10, growth_interval=4)
    one, other = model(), model()
    steppers = Stepper(one, config, CPU, scaling), Stepper(other, config, CPU, scaling)
    for step in range(7):
        backward(one, step, steppers[0].scale)
        steppers[0].step(0.01)
    moments = {name: dict(steppers[0].optimizer.state[p]) for name, p in one.named_parameters() if name != "2.bias"}
    other.load_state_dict(one.state_dict())
    steppers[1].prepare()
    steppers[1].adopt(CarryOver(moments, 0.01, 7, steppers[0].scale.item(), int(steppers[0].growth)))
    assert steppers[1].scale.item() == 2.0**11 and steppers[1].growth.item() == 3
    for net, stepper in zip((one, other), steppers, strict=True):
        backward(net, 7, stepper.scale)
        stepper.step(0.01)
    same = {name: torch.equal(p, dict(other.named_parameters())[name]) for name, p in one.named_parameters()}
    assert same == {"0.weight": True, "0.bias": True, "2.weight": True, "2.bias": False}
