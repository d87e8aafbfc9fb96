"""What the policy said of the answers as the run began: computed once over the data, and read at every later run on them.

So training needs neither a second model nor a second pass. The figures lie in the cache, under all that decides a bit of them.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import transformers

from luthier.data.dataset.samples import SampleSet
from luthier.data.steps.kept_reference import KeptReference
from luthier.data.steps.layout import Chosen, micro_batches
from luthier.runs.beginning import beginning_of
from luthier.system.devices import hardware
from luthier.system.files import write_file
from luthier.system.paths import cache_dir, cache_written
from luthier.system.progress import Progress
from luthier.system.words import counted
from luthier.training.job import SURVEYED, Job

WINDOW = 256
"""Samples that one process scores at a time, longest first. Its own layout: the number of processes changes no bit."""
UNUSED_DAYS = 30
Numbers = npt.NDArray[np.float32]


def keep_reference(job: Job, base: Mapping[str, Any], say: Callable[[str], None]) -> None:
    """Gives a job the log-probabilities of its beginning, of what it learns from and of what it holds out.

    The policy is what it was at step 0, or remembers it. Data that stream are scored as they come.

    Args:
        base: what is known of the model underneath.

    Raises:
        EnvironmentProblem: the cache cannot be written.
    """
    if not job.objective.keeps_reference or job.samples.streamed:
        return
    sets = {"train": job.samples} | ({"eval": job.held_out} if job.held_out is not None else {})
    sets |= {SURVEYED.format(purpose): others for purpose, others in job.mismatched.items()}
    for purpose, samples in sets.items():
        path = _path(job, samples, base)
        logps = _read(path, samples) if job.engine.main else None
        if not job.engine.from_main(logps is not None):
            say(f"the beginning's log-probabilities of {counted(len(samples), 'answer')} ({purpose}): computed once")
            logps = _scored(job, samples)
            if job.engine.main:
                _write(path, logps)
            job.engine.barrier()
        elif logps is None:
            logps = _read(path, samples)
        assert logps is not None, f"{path} is gone"
        job.reference[purpose] = KeptReference(samples, logps)
    job.policy.initial = None  # nobody looks back any more: of a whole model it is as large as that


def _scored(job: Job, samples: SampleSet) -> Numbers:
    """[trained tokens of all samples], the same on every process."""
    starts = np.concatenate([[0], np.cumsum(samples.trained)])
    found = torch.zeros(int(starts[-1]), dtype=torch.float32)
    windows = range(0, len(samples), WINDOW)
    with torch.no_grad(), Progress() as progress:
        for number, first in enumerate(windows):
            if number % job.engine.processes != job.engine.rank:
                continue
            places = list(range(first, min(first + WINDOW, len(samples))))
            for batch in micro_batches(
                Chosen(samples, places),
                places,
                plan=samples.plan(places),
                layout=job.layout,
                max_tokens=job.max_tokens,
                step=0,
            ):
                logps = job.policy.reference_logps(batch).float().cpu()
                counts = [int(samples.trained[place]) for place in batch.places]
                for place, part in zip(batch.places, torch.split(logps, counts), strict=True):
                    found[starts[place] : starts[place + 1]] = part
            progress(
                f"{places[-1] + 1:,} of {counted(len(samples), 'answer')} scored by the beginning",
                (number + 1) / len(windows),
            )
    if job.engine.processes > 1:  # each number is one process's, the others have 0
        found = found.to(job.engine.device)
        torch.distributed.all_reduce(found)
    return found.cpu().numpy()


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
        "hardware": hardware(job.engine.device),
        "threads": torch.get_num_threads(),
        "versions": [torch.__version__, transformers.__version__],
    }
    name = hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:32]
    return cache_dir() / "reference" / f"{name}.f32"


def _write(path: Path, logps: Numbers) -> None:
    content = logps.astype("<f4").tobytes()
    with cache_written(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, hashlib.sha256(content).digest() + content)
    oldest = time.time() - UNUSED_DAYS * 86_400
    for other in path.parent.glob("*.f32"):
        with suppress(OSError):
            if other.lstat().st_mtime < oldest:
                other.unlink()


def _read(path: Path, samples: SampleSet) -> Numbers | None:
    """None where there is nothing, or it is not what was written."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    if content[:32] != hashlib.sha256(content[32:]).digest():
        return None
    logps = np.frombuffer(content, dtype="<f4", offset=32)
    if len(logps) != int(samples.trained.sum()):
        return None
    with suppress(OSError):  # a cache that may only be read
        os.utime(path)
    return logps
