"""The optimizer and the schedule of its learning rate."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from transformers import get_scheduler

from luthier.config import TrainingConfig


def make_optimizer(training: TrainingConfig, policy: nn.Module) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter, 2019, arXiv:1711.05101); biases and norms (tensors of one dimension) are not decayed."""
    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    groups = [
        {
            "params": [p for p in trained if (p.ndim >= 2) == decayed],
            "weight_decay": training.weight_decay if decayed else 0.0,
            "peak_lr": training.learning_rate,
        }
        for decayed in (True, False)
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=training.learning_rate or 0.0,
        betas=(training.adam_beta1, training.adam_beta2),
        eps=training.adam_epsilon,
    )


def make_schedule(training: TrainingConfig, total: int) -> Callable[[int], float]:
    """step (from 0) -> share of the peak learning rate, by the schedule of transformers. A pure function: nothing to save."""
    warmup = training.warmup_steps
    steps = round(warmup * total) if isinstance(warmup, float) and warmup < 1 else int(warmup)
    probe = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    scheduler = get_scheduler(training.lr_scheduler_type, probe, num_warmup_steps=steps, num_training_steps=total)
    share: Callable[[int], float] = scheduler.lr_lambdas[0]
    # Shifted by one within the warm-up, so that no step is spent at a rate of exactly zero.
    return lambda step: share(step + 1) if step < steps else share(step)
