"""Defaults that depend on the method: one table, printed at the start of every run."""

from __future__ import annotations

from typing import Any

LEARNING_RATE = {"lora": 2e-4, "freeze": 2e-5, "full": 2e-5}
WEIGHT_DECAY = {"lora": 0.0, "freeze": 0.01, "full": 0.01}
OTHER_LEARNING_RATE = 2e-5
WITHOUT_WARMUP = "constant"
"""The schedule that has no warm-up, whatever is asked for."""


def method_defaults(tuning: str, schedule: str = "cosine") -> dict[str, Any]:
    """Values of `training` keys that the user left out, for a tuning method and a schedule."""
    return {
        "learning_rate": LEARNING_RATE.get(tuning, OTHER_LEARNING_RATE),
        "weight_decay": WEIGHT_DECAY.get(tuning, 0.0),
        "warmup_steps": 0 if schedule == WITHOUT_WARMUP else 0.03,
        "num_train_epochs": 3.0,
        "save_steps": 0.34,
    }
