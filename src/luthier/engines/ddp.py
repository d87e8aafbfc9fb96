"""Several processes with a copy of the model each, by torch's DistributedDataParallel."""

from __future__ import annotations

import contextlib
import datetime
import inspect
import json
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from luthier.engines._replicas import Replica
from luthier.errors import EnvironmentProblem

__all__ = ["DDP"]


class DDP(Replica):
    """Several processes with a copy of the model each, by torch's DistributedDataParallel."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
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
        devices = [self.device.index] if self.device.type == "cuda" else None
        wrapper = nn.parallel.DistributedDataParallel
        renamed = "forward_sync_buffers" in inspect.signature(wrapper).parameters  # since torch 2.13
        buffers: dict[str, Any] = {"forward_sync_buffers" if renamed else "broadcast_buffers": False}
        self.wrapped = wrapper(policy, device_ids=devices, **buffers)
        return self.wrapped

    def accumulating(self, last: bool) -> AbstractContextManager[None]:
        return contextlib.nullcontext() if last else self.wrapped.no_sync()

    def sum(self, values: list[float]) -> list[float]:
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        with _all_alive():
            dist.all_reduce(total)
        return [float(value) for value in total]

    def from_main(self, value: Any) -> Any:
        text = json.dumps(value).encode() if self.main else b""
        length = int(self.sum([float(len(text))])[0])
        content = torch.tensor(list(text) if self.main else [0] * length, dtype=torch.uint8, device=self.device)
        with _all_alive():
            dist.broadcast(content, src=0)
        return json.loads(bytes(content.tolist()))

    def barrier(self) -> None:
        with _all_alive():
            dist.barrier()

    def close(self) -> None:
        dist.destroy_process_group()


@contextlib.contextmanager
def _all_alive() -> Iterator[None]:
    """Where another process has ended, this one says so; the reason is in the other's message."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "connection" not in str(error).lower():
            raise
        found = f"it ended while this one waited for it ({str(error).splitlines()[0][:120]})"
        raise EnvironmentProblem("another process", found, "all processes to go on", "see its message") from error
