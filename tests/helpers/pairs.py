"""Pairs of answers as samples, and jobs that learn from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from luthier import component
from luthier.data.steps.order import Steps
from luthier.engines.ddp import DDP
from luthier.objectives import Objective
from luthier.types import NO_TARGET, Sample
from tests.helpers.jobs import MadeJob, make_config, make_job, make_policy
from tests.helpers.tiny_models import VOCAB

LENGTHS = ((3, 5, 9), (100, 40, 60), (17, 3, 1), (4, 90, 33), (33, 7, 7), (8, 1, 20), (60, 12, 70))
"""Tokens of a request, of its better answer and of its worse one."""

OBJECTIVES = (
    *({"kind": "dpo", "loss": loss} for loss in ("sigmoid", "hinge", "ipo", "apo_zero", "apo_down", "sigmoid_norm")),
    {"kind": "dpo", "loss": "robust", "label_smoothing": 0.1},
    {"kind": "dpo", "label_smoothing": 0.2, "ld_alpha": 0.3, "sft_weight": 0.7},
    {"kind": "dpo", "reference": "none"},
    {"kind": "simpo"},
    {"kind": "cpo"},
    {"kind": "orpo"},
)


def named(objective: dict[str, Any]) -> str:
    """For the ids of tests."""
    return "-".join(map(str, objective.values()))


def made(**keys: Any) -> Objective:
    cls = component.load("objectives", keys["kind"])
    objective: Objective = cls(cls.Config(**keys))
    return objective


def make_pairs(lengths: Sequence[tuple[int, int, int]] = LENGTHS, seed: int = 0) -> list[Sample]:
    """Random ids; of each answer all tokens are trained."""
    rng, out = np.random.default_rng(seed), list[Sample]()
    for index, (asked, *answers) in enumerate(lengths):
        request = rng.integers(3, VOCAB, asked)
        for role, length in enumerate(answers):
            ids = np.concatenate([request, rng.integers(3, VOCAB, length)])
            targets = np.full(len(ids), NO_TARGET)
            targets[asked - 1 : -1] = ids[asked:]
            out.append(replace(Sample(ids, targets, f"pairs.jsonl:{index + 1}", index), role=role))
    return out


def pair_job(
    folder: Path,
    objective: dict[str, Any],
    layout: str = "flat",
    max_tokens: int = 100_000,
    *overrides: str,
    engine: DDP | None = None,
    warm: bool = True,
    held_out: bool = False,
    family: str = "llama",
) -> MadeJob:
    """Of the seven pairs, with dropout; the beginning is that of the policy as it is made."""
    config = make_config(
        folder, "lora_dropout=0.1", "global_batch_size=7", "max_steps=5", "learning_rate=1e-3", "warmup_steps=0", *overrides
    )
    policy = make_policy(config, family, layout, warm=warm, scored=objective["kind"] == "reward")
    job = make_job(
        config,
        make_pairs(),
        policy,
        layout=layout,
        max_tokens=max_tokens,
        engine=engine,
        held_out=make_pairs(LENGTHS[:3], seed=5) if held_out else None,
    )
    job.objective = made(**objective)
    job.steps = Steps(job.samples.examples, config.training.global_batch_size, config.seed, 1.0, 5)
    policy.keep_reference()
    return job
