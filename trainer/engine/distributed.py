"""Processes, devices and how a model is spread over them: the same code for one process and for torchrun on many nodes."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as dist_nn
from torch import Tensor, nn
from torch._C._distributed_c10d import HashStore
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    apply_activation_checkpointing,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from javisc.manifests.errors import UserError
from javisc.trainer.engine.recompute import recomputed
from javisc.trainer.engine.settings import setting

STRATEGIES = ("ddp", "fsdp2", "hybrid")
#: So many variants of a block are compiled before the rest of them runs eagerly.
COMPILED_VARIANTS = 64
FIND_UNUSED = ("auto", "always", "never")
TF32 = ("torch", "allowed", "never")
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class World:
    """Where this process stands. `control` is a gloo group for decisions, `saving` one for the checkpoint's own thread."""

    rank: int
    size: int
    device: torch.device
    control: dist.ProcessGroup
    saving: dist.ProcessGroup

    @property
    def first(self) -> bool:
        """True on the process that writes logs."""
        return self.rank == 0

    def gather(self, *numbers: float) -> Tensor:
        """[numbers, processes]: what each process gave."""
        mine = torch.tensor(numbers, dtype=torch.float64)
        every = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(every, mine, group=self.control)
        return torch.stack(every, dim=1)


@contextmanager
def world(timeout_sec: float = 600, saving_timeout_sec: float = 3600) -> Iterator[World]:
    """Join the processes that torchrun (or its variables RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT) started, or be alone.

    A step's collectives are given up after `timeout_sec`, those that wait for a process to write after `saving_timeout_sec`."""
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    wait, long = timedelta(seconds=timeout_sec), timedelta(seconds=saving_timeout_sec)
    with _without_greetings():
        if size > 1:
            dist.init_process_group(backend, timeout=wait)
        else:
            dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1, timeout=wait)
    try:
        with _without_greetings():
            control, saving = (dist.new_group(backend="gloo", timeout=long) for _ in range(2))
        yield World(rank, size, device, control, saving)
    finally:
        dist.destroy_process_group()


@contextmanager
def _without_greetings() -> Iterator[None]:
    """Gloo says on standard output, past Python, that processes have joined: no program's answer should begin with that."""
    sys.stdout.flush()
    kept = os.dup(1)
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


class Raised:
    """Whether any process has raised its flag, known one step later: the question travels while the step computes."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.flag = torch.zeros(1, dtype=torch.int32)
        self.work: dist.Work | None = None

    def ask(self, mine: bool) -> None:
        """Send this process's flag; every process must ask in every step."""
        self.flag.fill_(int(mine))
        self.work = dist.all_reduce(self.flag, dist.ReduceOp.MAX, group=self.world.control, async_op=True)

    def answer(self) -> bool:
        """The answer to the last question; False before the first."""
        if self.work is None:
            return False
        self.work.wait()
        self.work = None
        return bool(self.flag.item())


class GlobalBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm over the batches of all processes, on any device: what SyncBatchNorm is on CUDA alone."""

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"a tensor of {input.dim()} dimensions has no channels")

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or dist.get_world_size() == 1:
            return super().forward(input)
        axes = [0, *range(2, input.dim())]
        wide = input.float()  # half precision would overflow in the squares' sum
        count = wide.new_tensor([input.numel() / input.shape[1]])
        sums = torch.cat((wide.sum(axes), wide.square().sum(axes), count))
        sums = dist_nn.all_reduce(sums)  # type: ignore[no-untyped-call]
        channels = input.shape[1]
        total = sums[-1].detach()
        mean = sums[:channels] / total
        variance = sums[channels:-1] / total - mean.square()
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean.detach(), self.momentum or 0.0)
            self.running_var.lerp_(variance.detach() * total / (total - 1), self.momentum or 0.0)
        shape = [1, -1, *[1] * (input.dim() - 2)]
        scale = self.weight * (variance + self.eps).rsqrt()
        return ((wide - mean.view(shape)) * scale.view(shape) + self.bias.view(shape)).to(input.dtype)


def share_batch_norms(model: nn.Module, device: torch.device) -> nn.Module:
    """Make every batch norm of the model one over all processes. Names and state stay."""
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    for module in model.modules():
        if type(module) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
            module.__class__ = GlobalBatchNorm
    return model


@dataclass
class ParallelConfig:
    """How a model is spread and run. `compile` and `checkpoint_blocks` act on each of the task's blocks.

    `ddp` keeps everything on every process. `fsdp2` shards what is trained over all processes, `hybrid` over groups of
    `shard_group` neighbouring ones (0: those of a node), each group holding one copy. What is frozen is never sharded: it costs
    its weights, in the compute precision, and neither traffic nor optimizer state.
    """

    strategy: str = setting("ddp", "How the model lies on the processes.", choices=STRATEGIES)
    shard_group: int = setting(0, "Processes of a group of `hybrid`; 0 takes those of a node.", least=0)
    precision: str = setting("fp32", "What forward and backward compute in.", choices=tuple(PRECISIONS))
    tf32: str = setting("torch", "TF32 for float32 products on CUDA; `torch` leaves PyTorch's defaults.", choices=TF32)
    compile: bool = setting(False, "Compile each block.")
    checkpoint_blocks: bool = setting(False, "Keep a block's inputs alone and compute it again in backward.")
    keep_attention: bool = setting(
        False, "With `checkpoint_blocks`: keep what attentions gave too, of long clips the dearest."
    )
    timeout_sec: float = setting(600.0, "Seconds that a step's collectives wait for all processes.", above=0)
    saving_timeout_sec: float = setting(3600.0, "Seconds that processes wait while others validate or write.", above=0)
    find_unused: str = setting(
        "auto",
        "Whether ddp looks for parameters that a step does not use; auto: only where a resumed run needs it to be the same run.",
        choices=FIND_UNUSED,
    )
    shared_batch_norm: bool = setting(True, "Batch norms over the samples of all processes.")


def check(config: ParallelConfig) -> None:
    """Raise UserError for a strategy or precision that does not exist."""
    if config.strategy not in STRATEGIES:
        raise UserError(f"parallel.strategy={config.strategy!r}: it may be {', '.join(STRATEGIES)}")
    if config.precision not in PRECISIONS:
        raise UserError(f"parallel.precision={config.precision!r}: it may be {', '.join(PRECISIONS)}")
    if config.keep_attention and not config.checkpoint_blocks:
        raise UserError("parallel.keep_attention=true: without parallel.checkpoint_blocks=true everything is kept")
    if config.keep_attention and config.compile:
        raise UserError(
            "parallel.keep_attention=true: not with parallel.compile=true, which keeps a block's results its own way"
        )


def sharing(config: ParallelConfig, processes: int) -> int:
    """How many processes hold one copy of what is trained. Raises UserError if the groups do not fit the processes."""
    if config.strategy != "hybrid":
        return processes if config.strategy == "fsdp2" else 1
    group = config.shard_group or min(int(os.environ.get("LOCAL_WORLD_SIZE", processes)), processes)
    if group < 1 or processes % group:
        told = "1 process does" if processes == 1 else f"{processes} processes do"
        raise UserError(f"parallel.shard_group={group}: {told} not divide into groups of that size")
    return group


def restarted(world: World) -> bool:
    """True on every process if torchrun has started any of them again: a node that came back counts from 0, its peers do not."""
    count = torch.tensor([int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))])
    dist.all_reduce(count, dist.ReduceOp.MAX, group=world.control)
    return bool(count.item())


def spread(
    model: nn.Module,
    blocks: Sequence[nn.Module],
    config: ParallelConfig,
    world: World,
    values: Mapping[str, Tensor] | None = None,
) -> nn.Module:
    """The model on its device, ready for training on all processes. Its parameters keep their names and their places.

    With `values` the model is on the meta device, and they are what its tensors become: all of them, whole, on the first process;
    nothing on the others. No process then holds more than its share, and one tensor on its way.
    """
    check(config)
    dtypes = {name: tensor.dtype for name, tensor in tensors_of(model).items()}
    if values is None:
        model.to(world.device)
    if config.shared_batch_norm and world.size > 1:
        model = share_batch_norms(model, world.device)
    if config.checkpoint_blocks:
        chosen = {id(block) for block in blocks}
        wrapper = partial(recomputed, keep_attention=config.keep_attention)
        apply_activation_checkpointing(
            model, checkpoint_wrapper_fn=wrapper, check_fn=lambda module: id(module) in chosen
        )
    if config.compile:
        # Blocks of one class share their compiled variants: space or time, masked or not, sizes as first seen and then as
        # symbols, so that further buckets need none. The default of 8 would be met by the second bucket, and run eagerly.
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, COMPILED_VARIANTS)
        for block in blocks:
            block.compile()
    if config.strategy != "ddp":
        _shard(model, blocks, config, world)
    if values is not None:
        _fill(model, values, dtypes, world)
    if config.strategy != "ddp" or world.size == 1:
        return model
    devices = [world.device] if world.device.type == "cuda" else None
    return DistributedDataParallel(
        model,
        device_ids=devices,
        broadcast_buffers=False,
        find_unused_parameters=looks_for_unused(config, world.size),
        gradient_as_bucket_view=True,
        init_sync=values is None,
    )


def looks_for_unused(config: ParallelConfig, processes: int) -> bool:
    """Whether DDP goes through the graph of every step for parameters that it did not use.

    Where it does, it never orders its buckets anew after the first step. Three and more processes add in an order that follows
    the buckets: a resumed run would differ from the run in the last bits.
    """
    if config.find_unused == "auto":
        return processes > 2 and torch.are_deterministic_algorithms_enabled()
    return config.find_unused == "always"


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers of a model, those that no state names among them, by name."""
    return {clean(name): tensor.detach() for name, tensor in (*model.named_parameters(), *model.named_buffers())}


@torch.no_grad()
def _fill(model: nn.Module, values: Mapping[str, Tensor], dtypes: Mapping[str, torch.dtype], world: World) -> None:
    """Give a model on the meta device memory, and the first process's values, of which each keeps its share."""
    model.to_empty(device=world.device)
    for name, target in tensors_of(model).items():
        if world.first:
            whole = values[name].to(world.device, dtypes[name]).contiguous()
        else:
            whole = torch.empty(target.shape, dtype=dtypes[name], device=world.device)
        dist.broadcast(whole, 0)
        if isinstance(target, DTensor):
            whole = distribute_tensor(whole, target.device_mesh, target.placements, src_data_rank=None).to_local()
            target = target.to_local()
        target.copy_(whole)


def _shard(model: nn.Module, blocks: Sequence[nn.Module], config: ParallelConfig, world: World) -> nn.Module:
    """FSDP2 on each block that learns and on the rest of the model."""
    dtype = gathered_dtype(model, config)
    frozen = {p for p in model.parameters() if not p.requires_grad}
    if dtype is not None:  # FSDP2 casts what it gathers; what it leaves alone must meet it in the same precision
        for p in frozen:
            p.data = p.data.to(dtype)
    group = sharing(config, world.size)
    if config.strategy == "hybrid":
        mesh = init_device_mesh(world.device.type, (world.size // group, group), mesh_dim_names=("replicate", "shard"))
    else:
        mesh = init_device_mesh(world.device.type, (group,))
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    for block in blocks:
        if any(p.requires_grad for p in block.parameters()):
            fully_shard(block, mesh=mesh, mp_policy=policy, ignored_params=frozen)
    fully_shard(model, mesh=mesh, mp_policy=policy, ignored_params=frozen)
    return model


def bare(model: nn.Module) -> nn.Module:
    """The model without what DDP puts around it."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def clean(name: str) -> str:
    """A parameter's name without what wrappers add to it."""
    return name.replace("_checkpoint_wrapped_module.", "").replace("_orig_mod.", "")


def accumulating(model: nn.Module, last: bool) -> AbstractContextManager[None]:
    """The context of a micro-batch's forward and backward: gradients travel between processes in the step's last one only."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(last)
        return nullcontext()
    if isinstance(model, DistributedDataParallel) and not last:
        return model.no_sync()
    return nullcontext()


def gathered_dtype(model: nn.Module, config: ParallelConfig) -> torch.dtype | None:
    """The precision FSDP2 gathers parameters in; None where they stay as they are. Batch norms want float32: then autocast does
    the work."""
    if config.strategy == "ddp" or config.precision == "fp32":
        return None
    normed = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
    return None if normed else PRECISIONS[config.precision]


def autocast(model: nn.Module, config: ParallelConfig, device: torch.device) -> AbstractContextManager[None]:
    """Mixed precision of the forward pass, where FSDP2 does not cast by itself."""
    if config.precision == "fp32" or gathered_dtype(model, config) is not None:
        return nullcontext()
    return torch.autocast(device.type, PRECISIONS[config.precision])
