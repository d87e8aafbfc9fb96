"""Jobs of the training loop on tiny models and made-up samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from luthier import component
from luthier import config as configuration
from luthier.data.dataset.samples import SampleSet
from luthier.data.steps.order import Steps
from luthier.engines.ddp import DDP
from luthier.engines.single import Single
from luthier.kernels.dropout import DropoutKeys, seeded
from luthier.models.flat import use_flat_attention
from luthier.objectives.sft import SFT
from luthier.policy.policy import Policy
from luthier.randomness import key
from luthier.runs.checkpoint import Checkpoints
from luthier.runs.recorder import Recorder
from luthier.training.before_step import survey
from luthier.training.job import Job, Record
from luthier.training.parameters import make_optimizer
from luthier.training.schedule import make_schedule
from luthier.training.step import StepDone, optimizer_step, plan_step
from luthier.tuning import Start
from luthier.tuning._anatomy import trained_experts
from luthier.types import NO_TARGET, Sample, shared_tokens
from tests.helpers.tiny_models import VOCAB, scored_twin, twin


class Listed(SampleSet):
    """Samples of a list, in which those of an example stand one after the other."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self._samples = list(samples)
        examples = [sample.example for sample in samples]
        assert sorted(set(examples)) == list(dict.fromkeys(examples)) == list(range(len(set(examples))))
        self.lengths = np.array([len(sample) for sample in samples])
        self.trained = np.array([sample.trained_tokens for sample in samples])
        self.groups = np.array([sample.group for sample in samples])
        self.roles = np.array([sample.role for sample in samples])
        self.shared = np.array(shared_tokens(samples))
        self.first_samples = np.unique(examples, return_index=True)[1]
        self.prompt_keys = np.arange(self.examples, dtype=np.uint64)
        self.row_lines = np.zeros(self.examples, dtype=np.int64)

    def row(self, example: int) -> str:
        return self._samples[int(self.first_samples[example])].row

    @property
    def fingerprint(self) -> str:
        return "made"

    def at(self, index: int) -> Sample:
        return self._samples[index]


@dataclass(kw_only=True)
class MadeJob(Job):
    """A job, and where it writes."""

    record: Record


def make_samples(lengths: Sequence[int], seed: int = 0, trained_share: float = 0.6) -> list[Sample]:
    """Random ids; the last `trained_share` of each sample (at least one token) is trained."""
    rng = np.random.default_rng(seed)
    out = []
    for index, length in enumerate(lengths):
        ids = rng.integers(3, VOCAB, length)
        targets = np.full(length, NO_TARGET)
        first = min(length - 2, int(length * (1 - trained_share)))
        targets[first:-1] = ids[first + 1 :]
        out.append(Sample(ids, targets, f"made.jsonl:{index + 1}", index))
    return out


def make_config(folder: Path, *overrides: str) -> configuration.RunConfig:
    """A configuration whose model and data are never read."""
    return configuration.load(None, ["model=unused", "data=unused", f"output_dir={folder}", *overrides])


def make_policy(
    config: configuration.RunConfig,
    name: str = "llama",
    layout: str = "flat",
    dtype: torch.dtype = torch.float32,
    *,
    warm: bool = True,
    scored: bool = False,
    **changes: Any,
) -> Policy:
    """A tiny twin with LoRA; `warm` gives lora_B random values, so that every gradient is non-zero from the first step; `scored`: with
    a head of scores."""
    keys = DropoutKeys(config.seed)
    with seeded(key(config.seed, "initial weights") % 2**63):
        tuning = component.make("tuning", config.tuning)
        model = tuning.apply((scored_twin if scored else twin)(name, **changes).to(dtype), Start(keys)).model
        if warm:
            for parameter_name, parameter in model.named_parameters():
                if "lora_B" in parameter_name:
                    torch.nn.init.normal_(parameter, std=0.1)
    policy = Policy(model, keys, compute_dtype=dtype, starts_at_base=not warm)
    assert policy.verify_head()
    if layout != "padded":
        use_flat_attention(policy.core)
    return policy


def make_job(
    config: configuration.RunConfig,
    samples: Sequence[Sample],
    policy: Policy,
    *,
    layout: Any = "flat",
    max_tokens: int = 512,
    held_out: Sequence[Sample] | None = None,
    engine: Single | DDP | None = None,
    scaled: bool = False,
) -> MadeJob:
    engine = engine or Single(Single.Config(), torch.device("cpu"))
    engine.scale_losses(scaled)
    training = config.training
    listed = Listed(samples)
    steps = Steps(
        listed.examples, training.global_batch_size, config.seed, training.num_train_epochs or 1.0, training.max_steps
    )
    optimizer = make_optimizer(training, policy)
    folder = Path(config.output_dir)
    recorder = Recorder(folder, config, total_steps=steps.total, main=engine.main, quiet=True)
    return MadeJob(
        config=training,
        seed=config.seed,
        policy=policy,
        wrapped=engine.wrap(policy),
        engine=engine,
        objective=SFT(SFT.Config()),
        samples=listed,
        held_out=Listed(held_out) if held_out is not None else None,
        steps=steps,
        layout=layout,
        max_tokens=max_tokens,
        optimizer=optimizer,
        schedule=make_schedule(training, steps.total),
        checkpoints=Checkpoints(folder / "checkpoints", training.save_total_limit),
        waiting=trained_experts(policy),
        record=Record(recorder, {}, lambda step: None),
    )


def step_of(job: MadeJob) -> tuple[torch.Tensor, StepDone]:
    """The gradient of the first step, and what it reports."""
    job.wrapped.train()
    step = plan_step(job, 0)
    survey(job, step)
    done = optimizer_step(job, step)
    return torch.cat(
        [p.grad.flatten() for p in job.policy.parameters() if p.requires_grad and p.grad is not None]
    ), done
