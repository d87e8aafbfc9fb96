"""Several processes with a copy of the model each, by torch's DistributedDataParallel."""

from __future__ import annotations

import contextlib
import datetime
import inspect
import json
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Literal

from luthier.component import ComponentConfig
from luthier.engines._replicas import Replica
from luthier.errors import EnvironmentProblem

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["DDP"]


SAMPLED = 64
"""Numbers of a frozen weight that are compared between processes."""


class DDP(Replica):
    """Several processes with a copy of the model each, by torch's DistributedDataParallel."""

    class Config(ComponentConfig):
        kind: Literal["ddp"] = "ddp"

    def __init__(self, config: Config, device: torch.device) -> None:
        import torch.distributed as dist

        super().__init__(config, device)
        if "WORLD_SIZE" not in os.environ:
            raise EnvironmentProblem(
                "distributed: ddp",
                "one process was started",
                "several, by torchrun",
                "torchrun --nproc-per-node 2 -m luthier train mine.yaml, or distributed=auto",
            )
        if not dist.is_initialized():
            # The others wait while the first process encodes the data, which may take hours.
            wait = datetime.timedelta(hours=12)
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=wait)
        self.processes, self.rank = dist.get_world_size(), dist.get_rank()
        if self.processes != int(os.environ["WORLD_SIZE"]):
            raise EnvironmentProblem(
                "distributed", f"{self.processes} processes joined", f"the {os.environ['WORLD_SIZE']} that were started"
            )

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
        with _all_alive():
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

    def sum(self, values: list[float]) -> list[float]:
        import torch

        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        with _all_alive():
            torch.distributed.all_reduce(total)
        return total.tolist()

    def from_main(self, value: Any) -> Any:
        import torch

        text = json.dumps(value).encode() if self.main else b""
        length = int(self.sum([float(len(text))])[0])
        content = torch.tensor(list(text) if self.main else [0] * length, dtype=torch.uint8, device=self.device)
        with _all_alive():
            torch.distributed.broadcast(content, src=0)
        return json.loads(bytes(content.tolist()))

    def barrier(self) -> None:
        import torch.distributed as dist

        with _all_alive():
            dist.barrier()

    def close(self) -> None:
        import torch.distributed as dist

        dist.destroy_process_group()


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


@contextlib.contextmanager
def _all_alive() -> Iterator[None]:
    """Where another process has ended, this one says so; the reason is in the other's message."""
    import torch.distributed as dist

    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "connection" not in str(error).lower():
            raise
        found = f"it ended while this one waited for it ({str(error).splitlines()[0][:120]})"
        raise EnvironmentProblem("another process", found, "all processes to go on", "see its message") from error
