"""One of two processes: `torchrun ... -m tests.helpers.wrap_worker FOLDER` wraps a policy in DDP, and writes what it saw."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from luthier.data.steps.layout import micro_batches
from luthier.engines import make_engine
from luthier.errors import EnvironmentProblem
from luthier.policy.policy import Policy
from luthier.system.devices import device
from tests.helpers.jobs import make_config, make_policy, make_samples


def trained(policy: Policy) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in policy.parameters() if p.requires_grad])


def main(folder: Path) -> None:
    engine = make_engine("ddp", device())
    sent: list[int] = []
    whole, coalesced = dist.broadcast, dist._broadcast_coalesced

    def noted(tensor: torch.Tensor, **more: Any) -> Any:
        sent.append(tensor.numel() if tensor.is_floating_point() else 0)
        return whole(tensor, **more)

    def noted_together(group: Any, tensors: list[torch.Tensor], *more: Any) -> Any:
        sent.extend(tensor.numel() for tensor in tensors)
        return coalesced(group, tensors, *more)

    policy = make_policy(make_config(folder), warm=False)
    for parameter in policy.parameters():
        if parameter.requires_grad:
            parameter.data += engine.rank
    dist.broadcast, dist._broadcast_coalesced = noted, noted_together
    wrapped = engine.wrap(policy)
    dist.broadcast, dist._broadcast_coalesced = whole, coalesced
    (batch,) = micro_batches(make_samples((12, 8)), [0, 1], layout="flat", max_tokens=512, step=0)
    scores = wrapped(batch, want=("reference",))
    scores.logps.sum().backward()
    with torch.no_grad(), policy.model.disable_adapter():
        start = policy(batch).logps
    other = make_policy(make_config(folder / "other"))
    if engine.rank == 1:
        other.core.get_input_embeddings().weight.data *= 1.5
    try:
        engine.wrap(other)
        refused = ""
    except EnvironmentProblem as problem:
        refused = str(problem)
    gradient = torch.cat([p.grad.flatten() for p in policy.parameters() if p.requires_grad])
    found = {
        "sent": sum(sent),
        "trained": trained(policy).tolist(),
        "reference": torch.equal(scores.reference, start),
        "gradient": float(gradient.norm()),
        "refused": refused,
    }
    (folder / f"{engine.rank}.json").write_text(json.dumps(found))
    engine.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
