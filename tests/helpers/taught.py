"""Jobs that learn from a teacher, and the teacher."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from luthier import component
from luthier.engines.ddp import DDP
from luthier.kernels.dropout import DropoutKeys
from luthier.models.flat import use_flat_attention
from luthier.objectives import Objective
from luthier.policy.policy import Policy
from luthier.policy.teacher import Teacher
from tests.helpers.jobs import MadeJob, make_config, make_job, make_policy, make_samples
from tests.helpers.tiny_models import VOCAB, twin

LENGTHS = (3, 70, 17, 40, 5, 61, 33, 8)
OBJECTIVES: tuple[dict[str, Any], ...] = (
    {},
    {"divergence": "reverse"},
    {"divergence": "jsd"},
    {"divergence": "jsd", "beta": 0.1, "temperature": 2.0},
    {"temperature": 0.7},
    {"top_k": 5},
    {"divergence": "reverse", "top_k": 40, "temperature": 1.5},
    {"divergence": "jsd", "top_k": 1},
)


def named(keys: dict[str, Any]) -> str:
    """For the ids of tests."""
    return "-".join(map(str, keys.values())) or "forward"


def distill(**keys: Any) -> Objective:
    cls = component.load("objectives", "distill")
    objective: Objective = cls(cls.Config(teacher="made", **keys))
    return objective


def sharpen(policy: Policy) -> None:
    """Random models know nothing, and are near each other: with a larger head they are far apart."""
    policy.core.get_output_embeddings().weight.data.mul_(8)


def make_teacher(objective: Objective, name: str = "qwen3", *, flat: bool = True, **changes: Any) -> Teacher:
    """Of another architecture than the student, with 32 rows more than it has."""

    def opens() -> Policy:
        policy = Policy(twin(name, seed=7, vocab_size=VOCAB + 32, **changes), DropoutKeys(0))
        policy.verify_head()
        sharpen(policy)
        if flat:
            use_flat_attention(policy.core)
        return policy

    assert objective.teaching is not None
    return Teacher(objective.teaching, VOCAB, opens, flat=flat)


def taught_job(
    folder: Path,
    objective: Objective,
    layout: str = "flat",
    max_tokens: int = 100_000,
    *overrides: str,
    teacher: Teacher | None = None,
    engine: DDP | None = None,
    held_out: Sequence[int] = (),
    policy: dict[str, Any] | None = None,
) -> MadeJob:
    """One step takes all samples, with dropout."""
    given = ["global_batch_size=8", "max_steps=5", "learning_rate=1e-3", "warmup_steps=0", "max_grad_norm=null"]
    given += [] if "tuning=full" in overrides else ["lora_dropout=0.1"]
    config = make_config(folder, *given, *overrides)
    job = make_job(
        config,
        make_samples(LENGTHS),
        make_policy(config, layout=layout, **(policy or {})),
        layout=layout,
        max_tokens=max_tokens,
        engine=engine,
        held_out=make_samples(held_out, seed=5) if held_out else None,
    )
    sharpen(job.policy)
    job.objective = objective
    job.policy.teacher = teacher or make_teacher(objective, flat=layout == "flat")
    return job
