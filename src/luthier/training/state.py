"""What a checkpoint holds of a job, and how it comes back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch

from luthier import component
from luthier.errors import UserError
from luthier.optimizers import Optimizer
from luthier.policy.policy import Policy
from luthier.training.job import Job


def state_of(job: Job) -> dict[str, Any]:
    return {
        "weights": {
            name: parameter.data for name, parameter in job.policy.named_parameters() if parameter.requires_grad
        },
        "optimizer": job.optimizer.state_dict(),
        "progress": asdict(job.progress),
        "scaler": job.engine.scaler.state_dict(),
    }


def restore(job: Job, state: Mapping[str, Any]) -> None:
    """Puts a checkpoint's state into a freshly built job."""
    put_weights(job.policy, state["weights"])
    optimizer: Optimizer = component.make("optimizers", job.config.optim)
    optimizer.restore(job.optimizer, state["optimizer"])
    if job.engine.scaler.is_enabled():
        job.engine.scaler.load_state_dict(state["scaler"])
    for name, value in state["progress"].items():
        setattr(job.progress, name, value)


def put_weights(policy: Policy, weights: Mapping[str, torch.Tensor]) -> None:
    trained = {name: parameter for name, parameter in policy.named_parameters() if parameter.requires_grad}
    if trained.keys() != weights.keys():
        raise UserError(
            "checkpoint",
            f"it holds {len(weights)} trained tensors, the model has {len(trained)} with other names",
            "the configuration of the run",
            "resume with the config.yaml of the run's folder",
        )
    for name, parameter in trained.items():
        parameter.data.copy_(weights[name])
