"""What is kept of another model is never whole in memory: it goes to the disk as it is computed, and is mapped from there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from luthier.training import kept
from luthier.training.teacher import known_teacher
from luthier.types import NO_TARGET, MicroBatch
from tests.helpers.jobs import make_config, make_job, make_policy, make_samples
from tests.helpers.pairs import made
from tests.helpers.tiny_models import tiny_llama

WIDTH = 900
"""Numbers of a token: more bytes than a file keeps back."""


def test_numbers_are_written_as_they_are_computed_and_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "WINDOW", 2)
    settings = make_config(tmp_path)
    job = make_job(settings, make_samples((15, 9, 14, 7, 16, 13)), make_policy(settings))
    path, on_disk = tmp_path / "kept" / "some.f32", list[int]()

    def compute(batch: MicroBatch) -> torch.Tensor:
        on_disk.append(sum(file.stat().st_size for file in path.parent.iterdir()))
        return batch.targets[batch.targets != NO_TARGET].float()[:, None] + torch.arange(WIDTH)

    def numbers() -> np.ndarray:
        return kept.numbers_of(job, job.samples, path, WIDTH, compute, "flat", lambda: None)

    found = numbers()
    assert isinstance(found, np.memmap)
    targets = np.concatenate([sample.targets[sample.targets != NO_TARGET] for sample in job.samples])
    assert np.array_equal(found, targets[:, None] + np.arange(WIDTH))
    assert len(on_disk) == 3
    before_last = int(job.samples.trained[:4].sum())
    assert on_disk[-1] >= 4 * WIDTH * before_last
    assert np.array_equal(numbers(), found)
    assert len(on_disk) == 3, "they are read"


def test_a_teacher_is_held_where_nothing_of_it_can_be_kept(tmp_path: Path) -> None:
    """Of rows that stream its likeliest tokens are asked for in every step."""
    objective = made(kind="distill", teacher=str(tiny_llama(tmp_path / "model")), top_k=5)
    known = known_teacher(objective.teaching, trust_remote_code=False)
    assert known is not None
    assert known.held_bytes(torch.float32, streamed=False) == 0
    assert known.held_bytes(torch.float32, streamed=True) == known.stored_bytes(torch.float32) > 0
