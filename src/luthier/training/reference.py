"""What the policy said of the answers as the run began: computed once over the data, and read at every later run on them.

So training needs neither a second model nor a second pass.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from luthier.data.dataset.samples import SampleSet
from luthier.data.steps.kept_reference import KeptReference
from luthier.runs.beginning import beginning_of
from luthier.system.words import counted
from luthier.training.job import SURVEYED, Job
from luthier.training.kept import numbers_of, path_of


def keep_reference(job: Job, base: Mapping[str, Any], say: Callable[[str], None]) -> None:
    """Gives a job the log-probabilities of its beginning, of what it learns from and of what it holds out.

    The policy is what it was at step 0, or remembers it. Data that stream are scored as they come.

    Args:
        base: what is known of the model underneath.

    Raises:
        EnvironmentProblem: the cache cannot be written.
    """
    if not job.objective.keeps_reference or job.samples.neighbours is not None:
        return
    for purpose, samples in sets_of(job).items():

        def said(purpose: str = purpose, samples: SampleSet = samples) -> None:
            say(f"the beginning's log-probabilities of {counted(len(samples), 'answer')} ({purpose}): computed once")

        path = _path(job, samples, base)
        logps = numbers_of(job, samples, path, 1, job.policy.reference_logps, job.layout, said)
        job.reference[purpose] = KeptReference(samples, logps[:, 0])
    job.policy.initial = None  # nobody looks back any more: of a whole model it is as large as that


def sets_of(job: Job) -> dict[str, SampleSet]:
    """What it learns from, what it holds out, and what is surveyed beside them."""
    sets = {"train": job.samples} | ({"eval": job.held_out} if job.held_out is not None else {})
    return sets | {SURVEYED.format(purpose): others for purpose, others in job.mismatched.items()}


def _path(job: Job, samples: SampleSet, base: Mapping[str, Any]) -> Path:
    """Under a hash of what decides the figures to the bit."""
    digest = hashlib.sha256()
    for name, tensor in sorted(beginning_of(job.policy).items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    parts = {
        "samples": samples.fingerprint,
        "base": dict(base),
        "beginning": digest.hexdigest(),
        "dtype": str(job.policy.compute_dtype),
        "held": sorted({str(parameter.dtype) for parameter in job.policy.parameters()}),
        "layout": [job.layout, job.max_tokens, job.policy.head_is_exact],
    }
    return path_of("reference", job, parts)
