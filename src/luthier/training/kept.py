"""Numbers of a data set's trained tokens that are computed once and read at every later run: in the cache, under all that decides
a bit of them."""

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
from luthier.data.steps.layout import Chosen, Layout, micro_batches
from luthier.system.devices import hardware
from luthier.system.files import write_file
from luthier.system.paths import cache_dir, cache_written
from luthier.system.progress import Progress
from luthier.system.words import counted
from luthier.training.job import Job
from luthier.types import MicroBatch

WINDOW = 256
"""Samples that one process scores at a time, about, longest first. Its own layout: the number of processes changes no bit."""
UNUSED_DAYS = 30
DIGEST_BYTES = 32
PIECE_BYTES = 1 << 20

Numbers = npt.NDArray[np.float32]


def path_of(folder: str, job: Job, parts: Mapping[str, Any]) -> Path:
    """Where numbers lie, by a hash of `parts` and of the machine."""
    known = {
        **parts,
        "hardware": hardware(job.engine.device),
        "threads": torch.get_num_threads(),
        "versions": [torch.__version__, transformers.__version__],
    }
    name = hashlib.sha256(json.dumps(known, sort_keys=True, default=str).encode()).hexdigest()[:32]
    return cache_dir() / folder / f"{name}.f32"


def numbers_of(
    job: Job,
    samples: SampleSet,
    path: Path,
    width: int,
    compute: Callable[[MicroBatch], torch.Tensor],
    layout: Layout,
    say: Callable[[], None],
) -> Numbers:
    """[trained tokens of all samples, width], sample after sample, the same on every process: read, or computed and kept.

    Args:
        compute: a micro-batch in `layout` -> [N, width] or, where width is 1, [N].
        say: called before they are computed.

    Raises:
        EnvironmentProblem: the cache cannot be written.
    """
    rows = int(samples.trained.sum())
    found = _read(path, rows, width) if job.engine.main else None
    if not job.engine.from_main(found is not None):
        say()
        found = _computed(job, samples, width, compute, layout)
        if job.engine.main:
            _write(path, found)
        job.engine.barrier()
    elif found is None:
        found = _read(path, rows, width)
    assert found is not None, f"{path} is gone"
    return found


def _computed(
    job: Job, samples: SampleSet, width: int, compute: Callable[[MicroBatch], torch.Tensor], layout: Layout
) -> Numbers:
    starts = np.concatenate([[0], np.cumsum(samples.trained)])
    found = torch.zeros(int(starts[-1]), width, dtype=torch.float32)
    with torch.no_grad(), Progress() as progress:
        for number, places in enumerate(samples.windows(WINDOW)):
            if number % job.engine.processes != job.engine.rank:
                continue
            for batch in micro_batches(
                Chosen(samples, places),
                places,
                plan=samples.plan(places),
                layout=layout,
                max_tokens=job.max_tokens,
                step=0,
            ):
                numbers = compute(batch).float().cpu().reshape(-1, width)
                counts = [int(samples.trained[place]) for place in batch.places]
                for place, part in zip(batch.places, torch.split(numbers, counts), strict=True):
                    found[starts[place] : starts[place + 1]] = part
            done = places[-1] + 1
            progress(f"{done:,} of {counted(len(samples), 'answer')} scored", done / len(samples))
    if job.engine.processes > 1:  # each number is one process's, the others have 0
        found = found.to(job.engine.device)
        torch.distributed.all_reduce(found)
    return found.cpu().numpy()


def _write(path: Path, numbers: Numbers) -> None:
    content = numbers.astype("<f4").tobytes()
    with cache_written(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, hashlib.sha256(content).digest() + content)
    oldest = time.time() - UNUSED_DAYS * 86_400
    for other in path.parent.glob("*.f32"):
        with suppress(OSError):
            if other.lstat().st_mtime < oldest:
                other.unlink()


def _read(path: Path, rows: int, width: int) -> Numbers | None:
    """Mapped, not held; None where there is nothing, or it is not what was written."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            written = file.read(DIGEST_BYTES)
            while piece := file.read(PIECE_BYTES):
                digest.update(piece)
            size = file.tell() - DIGEST_BYTES
    except FileNotFoundError:
        return None
    if written != digest.digest() or size != 4 * rows * width:
        return None
    with suppress(OSError):  # a cache that may only be read
        os.utime(path)
    if not rows:
        return np.zeros((0, width), np.float32)  # nothing can be mapped
    return np.memmap(path, dtype="<f4", mode="r", offset=DIGEST_BYTES, shape=(rows, width))
