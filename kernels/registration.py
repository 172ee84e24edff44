"""How a kernel becomes an op of PyTorch: opaque to tracing, known to fake tensors, FLOP counters, checkpointing and autograd.

`define` registers schema, implementation and fake with torch.library; `differentiable` does so for a forward and a backward and
joins them in a plain `torch.autograd.Function`. This form passes `torch.library.opcheck` and `torch.compile(fullgraph=True)` even
while the kernels run under Triton's interpreter, and costs half of `custom_op` with `register_autograd` per call.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.flop_counter import register_flop_formula

from javisc.kernels import dispatch

NAMESPACE = "javisc"
_must_save: list[Any] = []


def define(
    name: str,
    schema: str,
    implementation: Callable[..., Any],
    fake: Callable[..., Any],
    *,
    flops: Callable[..., int] | None = None,
    save: bool = False,
    strided: Collection[str] = (),
) -> Any:
    """Register `javisc::name` and return it.

    schema: "(Tensor x, float eps) -> Tensor[]", with the space before the arrow. implementation: runs on CPU (under the
    interpreter) and CUDA tensors. fake: the same arguments → empty tensors of the shapes, dtypes and strides that the
    implementation returns. flops: the same arguments (tensors, not shapes) and `out_val` → FLOPs, 2 per multiply-add.
    save: selective activation checkpointing should keep its outputs instead of running it twice. strided: the tensors that the
    implementation reads by their strides; every other one reaches it contiguous, so that no kernel reads past a view.
    """
    qualified = f"{NAMESPACE}::{name}"
    names = [argument.name for argument in torch._C.parse_schema(qualified + schema).arguments]
    assert set(strided) <= set(names), f"{name} has no argument {sorted(set(strided) - set(names))}"

    def read(*args: Any) -> list[Any]:
        return [a if n in strided else _each(a, Tensor.contiguous) for n, a in zip(names, args)]

    def shape_of(*args: Any) -> Any:
        """The fake; while launches are captured, the implementation itself, whose launches then run nothing."""
        return fake(*args) if dispatch.pretended is None else implementation(*read(*args))

    torch.library.define(qualified, schema)
    torch.library.impl(qualified, ("CPU", "CUDA"), _runner(implementation, fake, read))
    torch.library.register_fake(qualified, shape_of)
    packet = getattr(getattr(torch.ops, NAMESPACE), name)
    if flops is not None:
        register_flop_formula(packet, get_raw=True)(flops)
    if save:
        _must_save.append(packet.default)
    return packet.default


def must_save() -> tuple[Any, ...]:
    """The ops whose outputs a selective-checkpoint policy should keep (`CheckpointPolicy.MUST_SAVE`): attention forwards."""
    return tuple(_must_save)


def _runner(
    implementation: Callable[..., Any], fake: Callable[..., Any], read: Callable[..., list[Any]]
) -> Callable[..., Any]:
    """Run on the first tensor's device, on arguments as `read`; under the interpreter, whose bfloat16 arithmetic is wrong,
    compute in float32."""

    @functools.wraps(implementation)
    def run(*args: Any) -> Any:
        given = read(*args)
        tensors = [x for a in given for x in (a if isinstance(a, list | tuple) else [a]) if isinstance(x, Tensor)]
        if tensors[0].is_cuda:
            with torch.cuda.device(tensors[0].device):
                return implementation(*given)
        if not (dispatch.interpreting() and any(x.dtype == torch.bfloat16 for x in tensors)):
            return implementation(*given)
        results = implementation(*(_each(a, lambda x: x.float() if x.dtype == torch.bfloat16 else x) for a in given))
        like = fake(*args)
        if isinstance(results, Tensor):
            return results.to(like.dtype)
        return [result.to(model.dtype) for result, model in zip(results, like, strict=True)]

    return run


def _each(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The argument with its tensors changed: a tensor, a list of them, or anything else as it is."""
    if isinstance(value, list | tuple):
        return [change(x) if isinstance(x, Tensor) else x for x in value]
    return change(value) if isinstance(value, Tensor) else value


class Host(Protocol):
    """What runs an op's kernels. `made`: what forward returned; `needs`: for each differentiable input whether its gradient is
    wanted. backward returns all gradients in order; what is not wanted may be None."""

    forward: Callable[..., list[Tensor]]
    forward_fake: Callable[..., list[Tensor]]
    forward_flops: Callable[..., int]
    backward: Callable[..., list[Tensor | None]]
    backward_flops: Callable[..., int]


class Differentiable(NamedTuple):
    """An op with its gradient. `apply` takes the schema's inputs and returns the results; the others are its two ops."""

    apply: Callable[..., Any]
    forward: Any
    backward: Any


def differentiable(
    name: str,
    inputs: str,
    host: Host,
    *,
    gradients: Sequence[str],
    strided: Collection[str] = (),
    results: Callable[..., int] = lambda *inputs: 1,
    unsaved: Callable[..., Collection[str]] = lambda *inputs: (),
    straight: Callable[..., dict[str, int]] = lambda *inputs: {},
    like: Callable[..., Sequence[Tensor | None]] | None = None,
    save: bool = False,
) -> Differentiable:
    """Register `name_fwd` (inputs) → Tensor[] and `name_bwd` (Tensor[] grads, inputs, Tensor[] made, bool[] needs) → Tensor[].

    inputs: a schema's arguments, "Tensor q, Tensor? weight, float scale". gradients: the inputs that get one, in the order of
    backward's results. Of the inputs' values depend: results, how many of forward's tensors are the op's result (the rest is
    kept for backward); unsaved, which inputs backward can do without; straight, inputs whose gradient is that of a result, by
    its number. like: from grads and inputs, what the gradients look like (default: their inputs). strided, save: see `define`,
    for the forward's inputs.

    Gradients of frozen inputs are not computed. The gradient itself cannot be differentiated: trying so raises, as do
    torch.func's transforms.
    """
    arguments = torch._C.parse_schema(f"{NAMESPACE}::{name}_fwd({inputs}) -> Tensor[]").arguments
    names = [argument.name for argument in arguments]
    later = inputs.replace("Tensor ", "Tensor? ")  # what backward does without is None
    forward = define(
        f"{name}_fwd",
        f"({inputs}) -> Tensor[]",
        host.forward,
        host.forward_fake,
        flops=host.forward_flops,
        save=save,
        strided=strided,
    )
    wanted = [names.index(gradient) for gradient in gradients]

    def chosen(found: Sequence[Tensor | None], needs: Sequence[bool]) -> list[Tensor]:
        return [x for x, need in zip(found, needs, strict=True) if need and x is not None]

    def fake(grads: Sequence[Tensor], *rest: Any) -> list[Tensor]:
        *inputs, _, needs = rest
        found = [inputs[i] for i in wanted] if like is None else like(grads, *inputs)
        return [x.new_empty(x.shape) for x in chosen(found, needs)]

    backward = define(
        f"{name}_bwd",
        f"(Tensor[] grads, {later}, Tensor[] made, bool[] needs) -> Tensor[]",
        lambda *arguments: chosen(host.backward(*arguments), arguments[-1]),
        fake,
        flops=host.backward_flops,
        strided=strided,
    )
    tensors = [i for i, argument in enumerate(arguments) if "Tensor" in str(argument.type)]

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *values: Any) -> Any:
            made = forward(*values)
            count, without = results(*values), unsaved(*values)
            kept = [None if names[i] in without else values[i] for i in tensors]
            ctx.save_for_backward(*kept, *made)
            ctx.rest = [None if i in tensors else value for i, value in enumerate(values)]
            ctx.straight = straight(*values)
            return tuple(made[:count]) if count > 1 else made[0]

        @staticmethod
        @once_differentiable
        def backward(ctx: Any, *grads: Tensor) -> Any:
            saved = ctx.saved_tensors
            values = list(ctx.rest)
            for i, tensor in zip(tensors, saved):
                values[i] = tensor
            needs = [ctx.needs_input_grad[i] and names[i] not in ctx.straight for i in wanted]
            answer: list[Any] = [None] * len(names)
            if any(needs):
                found = backward(list(grads), *values, list(saved[len(tensors) :]), needs)
                for i, gradient in zip([i for i, need in zip(wanted, needs) if need], found):
                    answer[i] = gradient
            for key, number in ctx.straight.items():
                answer[names.index(key)] = grads[number]
            return tuple(answer)

    Function.__name__ = Function.__qualname__ = name

    def apply(*values: Any) -> Any:
        if torch._C._are_functorch_transforms_active():
            raise RuntimeError(
                f"{name}: the Triton kernels know no torch.func transforms (grad, vmap, jvp, hessian): give backend='torch'"
            )
        return Function.apply(*values)  # type: ignore[no-untyped-call]

    return Differentiable(apply, forward, backward)


def autocast(*tensors: Tensor) -> Sequence[Tensor]:
    """Cast floating tensors as `scaled_dot_product_attention` does under autocast: to its dtype, never from float64."""
    kind = tensors[0].device.type
    if kind == "meta" or not torch.is_autocast_enabled(kind):
        return tensors
    dtype = torch.get_autocast_dtype(kind)
    return [t.to(dtype) if t.is_floating_point() and t.dtype != torch.float64 else t for t in tensors]
