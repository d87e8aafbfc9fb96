"""What an optimizer is given: the parameters that are trained, in the type that it needs, in groups."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from luthier import component
from luthier.component import ComponentConfig
from luthier.config import TrainingConfig
from luthier.errors import UserError
from luthier.kernels.lora import starts_of
from luthier.models.precision import dtype_name
from luthier.models.score_head import SCORE, head_weights
from luthier.optimizers import Optimizer, TrainedParameters
from luthier.policy.policy import Policy


def make_optimizer(
    training: TrainingConfig, policy: Policy, rates: Mapping[str, float] | None = None, seed: int = 0
) -> torch.optim.Optimizer:
    """The optimizer that `training.optim` names; biases and norms (tensors of one dimension) are not decayed.

    Args:
        rates: parts of the names of parameters, and how many times the learning rate they learn at (`Tuned.rates`).
        seed: of its draws.

    Raises:
        UserError: parameters of 16 bits, and an optimizer that would lose small steps in them; or keys that it does not read.
    """
    optimizer: Optimizer = component.make("optimizers", training.optim)
    _refuse_lost_steps(training.optim.kind, optimizer, policy)
    edges = (policy.core.get_input_embeddings(), policy.core.get_output_embeddings(), getattr(policy.core, SCORE, None))
    outside = frozenset(id(parameter) for edge in edges if edge is not None for parameter in edge.parameters())
    groups = parameter_groups(training, policy, rates or {})
    return optimizer.make(TrainedParameters(groups, outside, training.learning_rate or 0.0, seed))


def parameter_groups(training: TrainingConfig, policy: nn.Module, rates: Mapping[str, float]) -> list[dict[str, Any]]:
    """Trained parameters by weight decay and peak learning rate; the first group has the rate of the configuration."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    rate, decay = training.learning_rate or 0.0, training.weight_decay or 0.0
    for name, parameter in policy.named_parameters():
        if parameter.requires_grad:
            faster = next((times for part, times in rates.items() if part in name), 1.0)
            groups.setdefault((faster, decay if parameter.ndim >= 2 else 0.0), []).append(parameter)
    ordered = sorted(groups.items(), key=lambda item: (item[0][0] != 1.0, -item[0][1]))
    return [{"params": held, "weight_decay": decay, "peak_lr": rate * faster} for (faster, decay), held in ordered]


def _refuse_lost_steps(kind: str, optimizer: Optimizer, policy: nn.Module) -> None:
    """A step much smaller than a weight is nothing after rounding to 16 bits."""
    if optimizer.in_bfloat16:
        return
    for name, parameter in policy.named_parameters():
        if parameter.requires_grad and parameter.dtype != torch.float32:
            others = component.listing("optimizers")
            able = [f"training.optim={other}" for other in others if component.load("optimizers", other).in_bfloat16]
            raise UserError(
                "training.optim",
                f"{name} is trained in {dtype_name(parameter.dtype)}, in which {kind} would lose most steps",
                "parameters in float32, or an optimizer with stochastic rounding",
                ", or ".join(able),
            )


def train_in_bfloat16(model: Any, dtype: torch.dtype, optim: ComponentConfig) -> None:
    """Trained parameters, and what they are counted from, become bfloat16, as the optimizer wants them; a head of scores stays float32.

    Raises:
        UserError: another type is computed in.
    """
    if dtype != torch.bfloat16:
        raise UserError(
            "training.optim",
            f"{optim.kind} while {dtype_name(dtype)} is computed in",
            "bfloat16",
            "model.dtype=bfloat16, or another training.optim",
        )
    head = head_weights(model)
    for parameter in model.parameters():
        if parameter.requires_grad and id(parameter) not in head:
            parameter.data = parameter.data.to(dtype)
    for start in starts_of(model).values():
        start.data = start.data.to(dtype)
