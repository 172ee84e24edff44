"""Blocks whose inside is computed again in backward, instead of being kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch._ops import OpOverload
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

from javisc.kernels.registration import must_save

#: PyTorch's own attentions, each an operator.
PYTORCH_ATTENTIONS = ("flash_attention", "efficient_attention", "cudnn_attention", "flash_attention_for_cpu")


def attention_results() -> set[OpOverload]:
    """The operators of attention, the kernels' and PyTorch's own: they cost the most per byte that they give."""
    own = (getattr(torch.ops.aten, f"_scaled_dot_product_{kind}") for kind in PYTORCH_ATTENTIONS)
    return {*must_save(), *(packet.default for packet in own)}


def recomputed(block: nn.Module, keep_attention: bool) -> nn.Module:
    """A block whose inside is computed again in backward. Norms saw the batch in forward: the second time they count nothing.

    They still go through the same operations, as the recomputation must save the same tensors.
    """
    norms = [m for m in block.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]

    @contextmanager
    def again(inner: AbstractContextManager[Any]) -> Iterator[None]:
        kept = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
        for norm in norms:
            norm.momentum = 0.0
            norm.num_batches_tracked = None if norm.num_batches_tracked is None else norm.num_batches_tracked.clone()
        try:
            with inner:
                yield
        finally:
            for norm, (momentum, count) in zip(norms, kept, strict=True):
                norm.momentum, norm.num_batches_tracked = momentum, count

    draws = may_draw(block)

    def contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        forward = nullcontext() if draws or torch.compiler.is_compiling() else without_draws(block)
        if not keep_attention:
            return forward, again(nullcontext())
        kept = attention_results()
        chosen = {True: CheckpointPolicy.MUST_SAVE, False: CheckpointPolicy.PREFER_RECOMPUTE}
        first, second = create_selective_checkpoint_contexts(  # type: ignore[no-untyped-call]
            lambda context, op, *_, **__: chosen[op in kept]
        )
        return _both(forward, first), again(second)

    return checkpoint_wrapper(block, context_fn=contexts, preserve_rng_state=draws)  # type: ignore[no-any-return]


def may_draw(block: nn.Module) -> bool:
    """Whether a block has dropout of any kind: a module, or a setting with `drop` in its name, that is not 0."""
    return any(
        (isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0)
        or any("drop" in name and isinstance(value, int | float) and value > 0 for name, value in vars(module).items())
        for module in block.modules()
    )


@contextmanager
def without_draws(block: nn.Module) -> Iterator[None]:
    """A forward pass of a block that `may_draw` has cleared. Raises RuntimeError if it drew all the same: computed again, it
    would draw other numbers."""
    before = _places()
    yield
    if _places() != before:
        raise RuntimeError(
            f"{type(block).__name__} draws random numbers, which parallel.checkpoint_blocks would not repeat: give what draws "
            "a name with `drop` in it, or make it an nn.Dropout"
        )


def _places() -> tuple[bytes, int]:
    """Where the generators stand."""
    on_gpu = 0
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        on_gpu = torch.cuda.default_generators[torch.cuda.current_device()].get_offset()
    return torch.get_rng_state().numpy().tobytes(), on_gpu


@contextmanager
def _both(outer: AbstractContextManager[Any], inner: AbstractContextManager[Any]) -> Iterator[None]:
    with outer, inner:
        yield
