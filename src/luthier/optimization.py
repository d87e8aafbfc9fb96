"""The optimizer and the schedule of its learning rate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import get_scheduler

from luthier.config import TrainingConfig


def make_optimizer(
    training: TrainingConfig, policy: nn.Module, loraplus_lr_ratio: float | None = None
) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter, 2019, arXiv:1711.05101); biases and norms (tensors of one dimension) are not decayed.

    Args:
        loraplus_lr_ratio: how many times faster than the rest LoRA's B learns (arXiv:2402.12354).
    """
    return torch.optim.AdamW(
        parameter_groups(training, policy, loraplus_lr_ratio or 1.0),
        lr=training.learning_rate or 0.0,
        betas=(training.adam_beta1, training.adam_beta2),
        eps=training.adam_epsilon,
    )


def parameter_groups(training: TrainingConfig, policy: nn.Module, ratio: float) -> list[dict[str, Any]]:
    """Trained parameters by weight decay and peak learning rate; the first group has the rate of the configuration."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    rate, decay = training.learning_rate or 0.0, training.weight_decay or 0.0
    for name, parameter in policy.named_parameters():
        if parameter.requires_grad:
            faster = ratio if ".lora_B." in name else 1.0
            groups.setdefault((faster, decay if parameter.ndim >= 2 else 0.0), []).append(parameter)
    ordered = sorted(groups.items(), key=lambda item: (item[0][0] != 1.0, -item[0][1]))
    return [{"params": held, "weight_decay": decay, "peak_lr": rate * faster} for (faster, decay), held in ordered]


def make_schedule(training: TrainingConfig, total: int) -> Callable[[int], float]:
    """step (from 0) -> share of the peak learning rate, by the schedule of transformers. A pure function: nothing to save."""
    warmup = training.warmup_steps
    steps = round(warmup * total) if isinstance(warmup, float) and warmup < 1 else int(warmup)
    probe = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    scheduler = get_scheduler(training.lr_scheduler_type, probe, num_warmup_steps=steps, num_training_steps=total)
    share: Callable[[int], float] = scheduler.lr_lambdas[0]
    # Shifted by one within the warm-up, so that no step is spent at a rate of exactly zero.
    return lambda step: share(step + 1) if step < steps else share(step)
