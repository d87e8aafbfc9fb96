"""What the loop works with, and how far it is."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from luthier.config import TrainingConfig
from luthier.data.dataset.samples import SampleSet
from luthier.data.steps.kept_reference import KeptReference
from luthier.data.steps.layout import Layout
from luthier.data.steps.order import Steps
from luthier.engines import Engine
from luthier.objectives import Objective
from luthier.policy.policy import Policy
from luthier.runs.checkpoint import Checkpoints
from luthier.runs.recorder import Recorder

SURVEYED = "{} mismatched"
"""Under which the reference is kept of what is surveyed in the place of a set."""


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
    """Everything that the loop works with, built by training/build.py."""

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
    waiting: Collection[nn.Parameter] = ()
    """of what is trained, those that learn only once a token comes to them (`Tuned.waiting`)"""
    mismatched: dict[str, SampleSet] = field(default_factory=dict)
    """what is surveyed in the place of `train` and of `eval`, where the objective asks for that: sample by sample"""
    reference: dict[str, KeptReference] = field(default_factory=dict)
    """what is kept of the policy at step 0: of `train` and of `eval`, and of what is surveyed in their place (SURVEYED), where the
    objective keeps it"""
    progress: Progress = field(default_factory=Progress)


@dataclass(frozen=True)
class Record:
    """Where a run writes what it does; made when the step that it starts from is known."""

    recorder: Recorder
    manifest: Mapping[str, Any]
    """what every checkpoint says of the run"""
    answer_samples: Callable[[int], None]
    """lets the model answer the sample prompts after a step"""
