"""What a checkpoint holds of a job, and how it comes back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch

from luthier import component
from luthier.optimizers import Optimizer
from luthier.policy.policy import Policy
from luthier.runs.checkpoint import Damaged
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


def least_bytes(job: Job) -> int:
    """What a run writes at least: its checkpoints and its result hold the trained weights, in float32 or as they are."""
    held = sum(
        parameter.numel() * parameter.element_size() for parameter in job.policy.parameters() if parameter.requires_grad
    )
    return held * 2


def restore(job: Job, state: Mapping[str, Any], step: int) -> None:
    """Puts the state of a checkpoint of `step` into a freshly built job.

    Raises:
        Damaged: it is not the state of such a job.
    """
    kept = asdict(job.progress)
    if state.keys() != state_of(job).keys() or not isinstance(state["progress"], dict):
        raise Damaged("its state has not what a state has")
    if state["progress"].keys() != kept.keys():
        raise Damaged("its state does not say how far it is")
    if state["progress"]["step"] != step:
        raise Damaged(f"its state is of step {state['progress']['step']}")
    put_weights(job.policy, state["weights"])
    optimizer: Optimizer = component.make("optimizers", job.config.optim)
    try:
        optimizer.restore(job.optimizer, state["optimizer"])
        if job.engine.scaler.is_enabled():
            job.engine.scaler.load_state_dict(state["scaler"])
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError, IndexError) as error:
        raise Damaged(f"the optimizer's state does not fit ({type(error).__name__})") from None
    for name, value in state["progress"].items():
        setattr(job.progress, name, value)


def put_weights(policy: Policy, weights: Any) -> None:
    """Puts a checkpoint's weights into a policy.

    Raises:
        Damaged: they are not its trained weights.
    """
    trained = {name: parameter for name, parameter in policy.named_parameters() if parameter.requires_grad}
    if not isinstance(weights, Mapping) or trained.keys() != weights.keys():
        raise Damaged("its state does not have the trained tensors of the model")
    for name, parameter in trained.items():
        if not isinstance(weights[name], torch.Tensor) or weights[name].shape != parameter.shape:
            raise Damaged(f"its state has another shape of {name}")
        parameter.data.copy_(weights[name])
