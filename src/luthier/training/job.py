"""What the loop works with, and how far it is."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from luthier.config import TrainingConfig
from luthier.data.dataset.samples import SampleSet
from luthier.data.steps.layout import Layout
from luthier.data.steps.order import Steps
from luthier.engines import Engine
from luthier.objectives import Objective
from luthier.policy.policy import Policy
from luthier.runs.recorder import Recorder
from luthier.training.checkpoint import Checkpoints


@dataclass
class Progress:
    """Where a run is; with the weights and the optimizer's state all that a resume needs."""

    step: int = 0
    """optimizer steps done"""
    trained_tokens: int = 0
    moving_steps: int = 0
    """steps with a non-zero learning rate"""
    best_loss: float = math.inf
    best_step: int | None = None
    evaluations_without_gain: int = 0


@dataclass
class Job:
    """Everything that the loop works with, built by training/run.py."""

    config: TrainingConfig
    seed: int
    policy: Policy
    wrapped: nn.Module
    """the policy as the engine wraps it; what is called"""
    engine: Engine
    objective: Objective
    samples: SampleSet
    held_out: SampleSet | None
    steps: Steps
    layout: Layout
    max_tokens: int
    optimizer: torch.optim.Optimizer
    schedule: Callable[[int], float]
    """step (from 0) -> share of the peak learning rate"""
    checkpoints: Checkpoints
    progress: Progress = field(default_factory=Progress)
    surveyed: int | None = None
    """the step whose totals the objective has"""
    recorder: Recorder = field(init=False)
    """made when the step that the run starts from is known, as the next two"""
    manifest: Mapping[str, Any] = field(init=False)
    answer_samples: Callable[[int], None] = field(init=False)
    """lets the model answer the sample prompts after a step"""
