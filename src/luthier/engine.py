"""Device, precision, processes: the one place that knows about backends.

Each engine has the same interface: wrap, accumulating, backward, clip_and_step. In every one the loss that is differentiated is
sum * processes / global weight, because every engine averages gradients over processes.
"""

from __future__ import annotations

import contextlib
import datetime
import inspect
import json
import os
import platform
import resource
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from luthier.errors import EnvironmentProblem

MAX_SCALE, GROWTH_STEPS = 2.0**24, 2000


@dataclass(frozen=True)
class StepResult:
    applied: bool
    grad_norm: float
    """global norm of the gradient before clipping"""


class LossScale:
    """Keeps fp16 gradients above its smallest number: doubles after many good steps, halves on an overflow, whose step is repeated."""

    def __init__(self, enabled: bool) -> None:
        self.scale = 2.0**15 if enabled else 1.0
        self.enabled = enabled
        self.good_steps = 0

    def overflowed(self) -> bool:
        """Halves the scale; False below 1, where a non-finite gradient is no overflow."""
        if not self.enabled or self.scale < 2.0:
            return False
        self.scale, self.good_steps = self.scale / 2, 0
        return True

    def stepped(self) -> None:
        self.good_steps += 1
        if self.enabled and self.good_steps % GROWTH_STEPS == 0:
            self.scale = min(self.scale * 2, MAX_SCALE)


class SingleEngine:
    """One process."""

    processes = 1
    rank = 0

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.loss_scale = LossScale(False)

    def scale_losses(self, enabled: bool) -> None:
        """Whether losses are scaled against underflow, as fp16 needs it."""
        self.loss_scale = LossScale(enabled)

    @property
    def main(self) -> bool:
        return self.rank == 0

    def wrap(self, policy: nn.Module) -> nn.Module:
        return policy

    def accumulating(self, last: bool) -> AbstractContextManager[None]:
        """Surrounds forward and backward of one micro-batch; gradients need to be exchanged only in the last one."""
        del last
        return contextlib.nullcontext()

    def backward(self, loss_sum: torch.Tensor, global_weight: float) -> None:
        scaled = loss_sum * (self.loss_scale.scale * self.processes / global_weight)
        torch.autograd.backward(scaled)

    def clip_and_step(self, optimizer: torch.optim.Optimizer, max_grad_norm: float | None) -> StepResult:
        """One optimizer step, unless the gradient is not finite: then nothing has changed."""
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if self.loss_scale.scale != 1.0:
            torch._foreach_mul_([p.grad for p in parameters], 1.0 / self.loss_scale.scale)
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if not torch.isfinite(norm):
            return StepResult(False, float(norm))
        if max_grad_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, max_grad_norm, norm)
        optimizer.step()
        self.loss_scale.stepped()
        return StepResult(True, float(norm))

    def sum(self, values: list[float]) -> list[float]:
        """Each value summed over processes, in float64."""
        return values

    def from_main(self, value: Any) -> Any:
        """The main process's value, plain JSON, on every process; what others found is left."""
        return json.loads(json.dumps(value))

    def barrier(self) -> None:
        """Waits for all processes."""

    def close(self) -> None:
        """Leaves the process group."""


class DDPEngine(SingleEngine):
    """Several processes with a copy of the model each, by torch's DistributedDataParallel."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        if not dist.is_initialized():
            # The others wait while the first process encodes the data, which may take hours.
            wait = datetime.timedelta(hours=12)
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=wait)
        self.processes, self.rank = dist.get_world_size(), dist.get_rank()
        if self.processes != int(os.environ["WORLD_SIZE"]):
            raise EnvironmentProblem(
                "distributed", f"{self.processes} processes joined", f"the {os.environ['WORLD_SIZE']} that were started"
            )

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


Engine = SingleEngine | DDPEngine


def make_engine(distributed: str) -> Engine:
    """The engine for the processes that were started (by torchrun, which sets WORLD_SIZE)."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if distributed == "ddp" and "WORLD_SIZE" not in os.environ:
        raise EnvironmentProblem(
            "distributed: ddp",
            "one process was started",
            "several, by torchrun",
            "torchrun --nproc-per-node 2 -m luthier train mine.yaml, or distributed=auto",
        )
    engine = DDPEngine if distributed == "ddp" or processes > 1 else SingleEngine
    return engine(device())


def device() -> torch.device:
    """This process's device: its CUDA card, else Apple's, else the CPU."""
    if torch.cuda.is_available():
        index = int(os.environ.get("LOCAL_RANK", "0"))
        torch.cuda.set_device(index)
        return torch.device("cuda", index)
    return torch.device("mps") if torch.backends.mps.is_available() else torch.device("cpu")


def is_main_process() -> bool:
    return os.environ.get("RANK", "0") == "0"


def deterministic(on: bool) -> None:
    """Only algorithms that give the same bits each time; set before the first CUDA call."""
    if on:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(on)


def memory_bytes(where: torch.device) -> int:
    """Peak memory of this process: allocated on the card, resident on a CPU."""
    if where.type == "cuda":
        return int(torch.cuda.max_memory_allocated(where))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


def hardware(where: torch.device) -> dict[str, Any]:
    """What the manifest says of the machine."""
    name = torch.cuda.get_device_name(where) if where.type == "cuda" else platform.processor() or platform.machine()
    return {"device": where.type, "name": name, "threads": torch.get_num_threads(), "platform": platform.platform()}


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Inside, torch's default generators start from `seed`; afterwards they are as they were."""
    with torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_available() else []):
        torch.manual_seed(seed)
        yield
