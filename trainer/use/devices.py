"""What the processes of a stage with networks compute on: GPUs where there are any, each of them one process's own."""

from __future__ import annotations

from dataclasses import dataclass

from javisc.compiler.run.spread import visible_gpus
from javisc.manifests.errors import UserError

#: Bytes of memory of a process with torch; its networks come on top.
TORCH = 1_000_000_000


@dataclass(frozen=True)
class Devices:
    """kind: cuda or cpu. gpus: names of this machine's GPUs, one for each process.

    workers: how many processes there are; None: one for each of the `gpus`, or on a cluster as many as fit.
    """

    kind: str
    gpus: list[str]
    workers: int | None

    @property
    def torch(self) -> str:
        """The device by torch's name, in a process that sees one GPU at most."""
        return "cuda:0" if self.kind == "cuda" else "cpu"


def devices_of(
    device: str, workers: int | None, *, engine: str = "local", address: str | None = None, on_cpu: int = 1
) -> Devices:
    """Where networks run. device: auto, cuda or cpu. workers: processes; None: one a GPU, `on_cpu` of them without, and on a
    cluster as many as fit. Raises UserError if there is no such device."""
    if engine != "local":
        there = device != "cpu" and _cluster_has_gpus(address)
        if device == "cuda" and not there:
            raise UserError("--device cuda: no node of the cluster has a GPU; take --device cpu")
        return Devices("cuda" if there else "cpu", [], workers)
    import torch

    gpus = visible_gpus() if device != "cpu" and torch.cuda.is_available() else []
    if device == "cuda" and not gpus:
        raise UserError("--device cuda: this machine has no CUDA device; take --device cpu")
    if gpus:
        return Devices("cuda", [gpus[number % len(gpus)] for number in range(workers or len(gpus))], None)
    return Devices("cpu", [], workers or on_cpu)


def _cluster_has_gpus(address: str | None) -> bool:
    if address == "local":
        return bool(visible_gpus())
    from javisc.compiler.run.ray import connected

    with connected(address or "auto") as ray:
        return any(node["Alive"] and node["Resources"].get("GPU", 0) >= 1 for node in ray.nodes())
