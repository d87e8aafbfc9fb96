"""The schedule of the learning rate."""

from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import get_scheduler

from luthier.config import TrainingConfig
from luthier.errors import UserError
from luthier.system.words import counted


def warmup_steps(training: TrainingConfig, total: int) -> int:
    """Of `total` steps.

    Raises:
        UserError: the learning rate would rise to the very end, or further.
    """
    asked = training.warmup_steps or 0
    if isinstance(asked, float) and asked < 1:
        return round(asked * total)
    if asked >= total:
        raise UserError(
            "training.warmup_steps",
            f"{asked:g} warm-up steps of {counted(total, 'step')}",
            "fewer warm-up steps than steps",
            "warmup_steps=0.03",
        )
    return int(asked)


def make_schedule(training: TrainingConfig, total: int) -> Callable[[int], float]:
    """step (from 0) -> share of the peak learning rate, by the schedule of transformers. A pure function: nothing to save."""
    steps = warmup_steps(training, total)
    probe = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    scheduler = get_scheduler(training.lr_scheduler_type, probe, num_warmup_steps=steps, num_training_steps=total)
    share: Callable[[int], float] = scheduler.lr_lambdas[0]
    # Shifted by one within the warm-up, so that no step is spent at a rate of exactly zero.
    return lambda step: share(step + 1) if step < steps else share(step)
