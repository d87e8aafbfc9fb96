"""Numbers of a data set's trained tokens that are computed once and read at every later run: in the cache, under all that decides
a bit of them."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import torch
import transformers

from luthier.data.dataset.samples import SampleSet
from luthier.data.steps.layout import Chosen, Layout, micro_batches
from luthier.errors import EnvironmentProblem
from luthier.system.devices import hardware
from luthier.system.files import require_room, write_pieces
from luthier.system.paths import CACHE_WITH_ROOM, cache_dir, cache_written
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
    """[trained tokens of all samples, width], sample after sample, the same on every process: read, or computed and kept. They
    are mapped from the disk, not held.

    Args:
        compute: a micro-batch in `layout` -> [N, width] or, where width is 1, [N].
        say: called before they are computed.

    Raises:
        EnvironmentProblem: the cache cannot be written, has no room, or is not the same for all processes.
    """
    rows, engine = int(samples.trained.sum()), job.engine
    there = engine.main and _whole(path, rows, width)
    if not engine.from_main(there):
        say()
        pieces = _computed(job, samples, width, compute, layout)
        if engine.main:
            _write(path, pieces, 4 * rows * width)
        else:
            deque(pieces, maxlen=0)
        engine.barrier()
    seen = path.is_file()
    if engine.sum([float(not seen)])[0]:
        raise EnvironmentProblem(
            str(path), "a process does not see what another one keeps", "one cache for all", "set LUTHIER_CACHE to a shared folder"
        )
    if not rows:
        return np.zeros((0, width), np.float32)  # nothing can be mapped
    return np.memmap(path, dtype="<f4", mode="r", offset=DIGEST_BYTES, shape=(rows, width))


def _computed(
    job: Job, samples: SampleSet, width: int, compute: Callable[[MicroBatch], torch.Tensor], layout: Layout
) -> Iterator[torch.Tensor]:
    """The numbers of all trained tokens, a window a process at a time and in their order, [tokens of these, width]: the same on every
    process. So they need never be in memory together.
    """
    starts, engine, windows = np.concatenate([[0], np.cumsum(samples.trained)]), job.engine, samples.windows(WINDOW)
    with Progress() as progress:
        while together := list(islice(windows, engine.processes)):
            done = together[-1][-1] + 1
            begin = int(starts[together[0][0]])
            found = torch.zeros(int(starts[done]) - begin, width, dtype=torch.float32)
            for place, numbers in _of_window(job, samples, together[engine.rank : engine.rank + 1], width, compute, layout):
                found[starts[place] - begin : starts[place + 1] - begin] = numbers
            if engine.processes > 1:  # each number is one process's, the others have 0
                found = found.to(engine.device)
                torch.distributed.all_reduce(found)
            progress(f"{done:,} of {counted(len(samples), 'answer')} scored", done / len(samples))
            yield found.cpu()


@torch.no_grad()
def _of_window(
    job: Job,
    samples: SampleSet,
    windows: Sequence[list[int]],
    width: int,
    compute: Callable[[MicroBatch], torch.Tensor],
    layout: Layout,
) -> Iterator[tuple[int, torch.Tensor]]:
    """Each sample of some windows, by its place, and its numbers: [its trained tokens, width]."""
    for places in windows:
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
            yield from zip(batch.places, torch.split(numbers, counts), strict=True)


def _write(path: Path, pieces: Iterator[torch.Tensor], size: int) -> None:
    """Writes them as they come: of all there is one copy, on the disk."""

    def fill(file: BinaryIO) -> None:
        digest = hashlib.sha256()
        file.write(bytes(DIGEST_BYTES))
        for piece in pieces:
            content = piece.numpy().astype("<f4", copy=False).tobytes()
            digest.update(content)
            file.write(content)
        file.seek(0)
        file.write(digest.digest())

    with cache_written(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        require_room(path.parent, size, "what is kept of the answers", CACHE_WITH_ROOM[1])
        write_pieces(path, fill)
    oldest = time.time() - UNUSED_DAYS * 86_400
    for other in path.parent.glob("*.f32"):
        with suppress(OSError):
            if other.lstat().st_mtime < oldest:
                other.unlink()


def _whole(path: Path, rows: int, width: int) -> bool:
    """Whether what was written is there, as it was written; then it is marked as used."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            written = file.read(DIGEST_BYTES)
            while piece := file.read(PIECE_BYTES):
                digest.update(piece)
            size = file.tell() - DIGEST_BYTES
    except FileNotFoundError:
        return False
    if written != digest.digest() or size != 4 * rows * width:
        return False
    with suppress(OSError):  # a cache that may only be read
        os.utime(path)
    return True
