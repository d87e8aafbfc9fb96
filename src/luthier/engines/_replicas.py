"""What engines share whose every process holds the whole model: the one division, the scale of a loss, clipping and the step;
and how several processes join and hear each other.

The loss that is differentiated is sum * processes / global weight, because such engines average gradients over processes.

float16 keeps small gradients by `torch.amp.GradScaler`: it scales, finds what is not finite, halves and doubles. Its own `step` is not
called, because that leaves a step out without a word, and the loop has to know: the same step is then repeated.
"""

from __future__ import annotations

import contextlib
import datetime
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from luthier.engines import StepResult
from luthier.errors import EnvironmentProblem
from luthier.system.launch import launch

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    import torch
    from torch import nn

    from luthier.component import ComponentConfig

INITIAL_SCALE, GROWTH_STEPS = 2.0**15, 2000
SMALLEST_SCALE = 1.0
"""Below it a gradient that is not finite is no overflow of float16."""

_left: list[Any] = []
"""Groups that were left, held to the end of the process. The reducer of DistributedDataParallel holds one too, and where it is the
last that does, it waits for gloo's threads without letting go of the interpreter's lock, which one of them may want for the
tensors of the last exchange: both wait for ever (torch 2.13)."""


class Replica:
    """An engine of one process, as it is where nothing has to be exchanged."""

    processes = 1
    rank = 0

    def __init__(self, config: ComponentConfig, device: torch.device) -> None:
        self.config = config
        self.device = device
        self.scale_losses(False)

    def scale_losses(self, enabled: bool) -> None:
        """Whether losses are scaled against underflow, as fp16 needs it."""
        import torch

        self.scaler = torch.amp.GradScaler(
            self.device.type,
            init_scale=INITIAL_SCALE,
            growth_interval=GROWTH_STEPS,
            enabled=enabled,
        )

    @property
    def main(self) -> bool:
        return self.rank == 0

    def wrap(self, policy: nn.Module) -> nn.Module:
        return policy

    def clear_gradients(self, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad(set_to_none=True)

    def accumulating(self, last: bool) -> AbstractContextManager[None]:
        """Surrounds forward and backward of one micro-batch; gradients need to be exchanged only in the last one."""
        del last
        return contextlib.nullcontext()

    def backward(self, sums: Mapping[str, torch.Tensor], weights: Mapping[str, float]) -> None:
        """Adds the gradient of a micro-batch: of each sum divided by its weight of the whole step."""
        parts = [part * (self.processes / weights[name]) for name, part in sums.items()]
        self.scaler.scale(sum(parts[1:], parts[0])).backward()  # type: ignore[no-untyped-call]

    def gradient_norm(self, parameters: Iterable[nn.Parameter]) -> torch.Tensor:
        """As torch's `get_total_norm`, which gives a number of 16 bits where the gradients have 16."""
        import torch

        gradients = [p.grad for p in parameters if p.grad is not None]
        if all(gradient.dtype == torch.float32 for gradient in gradients):
            return torch.nn.utils.get_total_norm(gradients)
        norms = [torch.linalg.vector_norm(gradient, dtype=torch.float32) for gradient in gradients]
        whole: torch.Tensor = torch.linalg.vector_norm(torch.stack(norms))
        return whole

    def clip_and_step(self, optimizer: torch.optim.Optimizer, max_grad_norm: float | None) -> StepResult:
        """One optimizer step, unless the gradient is not finite: then nothing has changed."""
        from torch.nn.utils import clip_grads_with_norm_

        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        scale = self.scaler.get_scale()
        self.scaler.unscale_(optimizer)
        norm = self.gradient_norm(parameters)
        applied = bool(norm.isfinite())
        if applied:
            if max_grad_norm is not None:
                clip_grads_with_norm_(parameters, max_grad_norm, norm)
            optimizer.step()
        self.scaler.update()
        halved = self.scaler.get_scale() < scale
        return StepResult(applied, float(norm), overflowed=halved and not applied and scale / 2 >= SMALLEST_SCALE)

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


class ReplicaGroup(Replica):
    """The same in a group of processes that torchrun started: how each of them hears the others."""

    def __init__(self, config: ComponentConfig, device: torch.device) -> None:
        import torch.distributed as dist

        super().__init__(config, device)
        if not launch().several:
            raise EnvironmentProblem(
                f"distributed: {config.kind}",
                "one process was started",
                "several, by torchrun",
                "torchrun --nproc-per-node 2 -m luthier train mine.yaml, or distributed=auto",
            )
        if not dist.is_initialized():
            # The others wait while the first process encodes the data, which may take hours.
            wait = datetime.timedelta(hours=12)
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=wait)
        self.processes, self.rank = dist.get_world_size(), dist.get_rank()
        if self.processes != (started := launch().processes):
            raise EnvironmentProblem(
                "distributed", f"{self.processes} processes joined", f"the {started} that were started"
            )

    def sum(self, values: list[float]) -> list[float]:
        import torch

        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        with all_alive():
            torch.distributed.all_reduce(total)
        return total.tolist()

    def from_main(self, value: Any) -> Any:
        import torch

        text = json.dumps(value).encode() if self.main else b""
        length = int(self.sum([float(len(text))])[0])
        content = torch.tensor(list(text) if self.main else [0] * length, dtype=torch.uint8, device=self.device)
        with all_alive():
            torch.distributed.broadcast(content, src=0)
        return json.loads(bytes(content.tolist()))

    def barrier(self) -> None:
        import torch.distributed as dist

        with all_alive():
            dist.barrier()

    def close(self) -> None:
        import torch.distributed as dist

        _left.append(dist.group.WORLD)
        dist.destroy_process_group()


@contextlib.contextmanager
def all_alive() -> Iterator[None]:
    """Where another process has ended, this one says so; the reason is in the other's message."""
    import torch.distributed as dist

    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "connection" not in str(error).lower():
            raise
        found = f"it ended while this one waited for it ({str(error).splitlines()[0][:120]})"
        raise EnvironmentProblem("another process", found, "all processes to go on", "see its message") from error
