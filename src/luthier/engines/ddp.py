"""Several processes with a copy of the model each, by torch's DistributedDataParallel."""

from __future__ import annotations

import contextlib
import inspect
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Literal

from luthier.component import ComponentConfig
from luthier.engines._replicas import ReplicaGroup, all_alive
from luthier.errors import EnvironmentProblem

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["DDP"]


SAMPLED = 64
"""Numbers of a frozen weight that are compared between processes."""


class DDP(ReplicaGroup):
    """Several processes with a copy of the model each, by torch's DistributedDataParallel."""

    class Config(ComponentConfig):
        kind: Literal["ddp"] = "ddp"

    @classmethod
    def serves(cls, processes: int) -> bool:
        return processes > 1

    def wrap(self, policy: nn.Module) -> nn.Module:
        """The policy with what is trained as on the main process.

        Raises:
            EnvironmentProblem: a process holds other frozen weights; each has read them from files.
        """
        import torch.distributed as dist
        from torch.nn.parallel import DistributedDataParallel

        mine = _sample_of_frozen(policy)
        if self.sum([float(mine != self.from_main(mine))])[0]:
            raise EnvironmentProblem(
                "distributed",
                "the processes hold different frozen weights",
                "the same model on all machines",
                "fetch the model again where it was changed",
            )
        with all_alive():
            for parameter in policy.parameters():
                if parameter.requires_grad:
                    dist.broadcast(parameter.data, src=0)
        devices = [self.device.index] if self.device.type == "cuda" else None
        renamed = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters  # since torch 2.13
        buffers: dict[str, Any] = {"forward_sync_buffers" if renamed else "broadcast_buffers": False}
        # Gradients lie in the buckets that are exchanged, not beside them: 4 bytes a trained number less.
        held: dict[str, Any] = {"gradient_as_bucket_view": True, "init_sync": False}
        self.wrapped = DistributedDataParallel(policy, device_ids=devices, **held, **buffers)
        return self.wrapped

    def clear_gradients(self, optimizer: torch.optim.Optimizer) -> None:
        # They stay in their buckets, also for micro-batches that exchange nothing.
        optimizer.zero_grad(set_to_none=False)

    def accumulating(self, last: bool) -> AbstractContextManager[None]:
        return contextlib.nullcontext() if last else self.wrapped.no_sync()


def _sample_of_frozen(policy: nn.Module) -> list[float]:
    """How many numbers are trained and frozen, and sums of a few frozen ones: what tells one base from another.

    Quantized weights are left out: two kinds of cards may round them differently.
    """
    import torch

    frozen = [p.detach() for p in policy.parameters() if not p.requires_grad and p.is_floating_point()]
    trained = sum(p.numel() for p in policy.parameters() if p.requires_grad)
    few = [p.flatten()[:: max(1, p.numel() // SAMPLED)].double() for p in frozen]
    sums = torch.stack([part.abs().sum() for part in few]).tolist() if few else []
    return [float(trained), float(sum(p.numel() for p in frozen)), *sums]
