"""How a step is cut into micro-batches, laid out and shared changes neither its gradient nor a figure, with dropout on: of every objective
that learns from rows on disk (of `sft` in tests/training/test_invariance.py, of `pretrain` in test_pretrain.py).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from luthier.data.steps.kept_reference import KeptReference
from luthier.training.job import SURVEYED
from luthier.training.step import StepDone, plan_step
from luthier.types import Sample
from tests.helpers.jobs import MadeJob, step_of
from tests.helpers.pairs import OBJECTIVES as PAIRED
from tests.helpers.pairs import make_pairs, named, pair_job
from tests.helpers.taught import taught_job
from tests.objectives.test_distill import OBJECTIVES as TAUGHT
from tests.objectives.test_distill import distill
from tests.objectives.test_kto import OBJECTIVES as JUDGED
from tests.objectives.test_kto import kto_job
from tests.objectives.test_reward import REWARDS

Make = Callable[[Path, str, int], MadeJob]
CUTS = [(layout, pieces) for layout in ("flat", "padded", "shared") for pieces in ("one", "several", "each")]
"""How a step is laid out, and in how many micro-batches."""
NEAR = 1e-6
NEAR_OF_DISTRIBUTIONS = 2e-6
"""A divergence sums a whole vocabulary in float32."""


def judged(
    keys: dict[str, object], folder: Path, layout: str, limit: int, samples: list[Sample] | None = None
) -> MadeJob:
    """Away from the reference of the beginning, so that z is not 0."""
    job = kto_job(folder, keys, layout, limit, samples=samples)
    sets = {"train": job.samples}
    if job.objective.mismatched:
        sets[SURVEYED.format("train")] = job.mismatched["train"]
    for purpose, some in sets.items():
        logps = np.concatenate([np.full(one.trained_tokens, -6.4, np.float32) for one in some])
        job.reference[purpose] = KeptReference(some, logps)
    return job


def tokens(case: str, pieces: str) -> int:
    """At most, of a micro-batch."""
    return {"one": 100_000, "several": 90 if case in TAUGHT_CASES else 330, "each": 1}[pieces]


TAUGHT_CASES: dict[str, Make] = {
    f"distill-{named(keys)}": lambda folder, *cut, keys=keys: taught_job(folder, distill(**keys), *cut)
    for keys in TAUGHT
}
CASES: dict[str, Make] = {
    **{named(keys): lambda folder, *cut, keys=keys: pair_job(folder, keys, *cut) for keys in (*PAIRED, *REWARDS)},
    **{named(keys): lambda folder, *cut, keys=keys: judged(keys, folder, *cut) for keys in JUDGED},
    "kto of pairs": lambda folder, *cut: judged(JUDGED[0], folder, *cut, samples=make_pairs()),
    **TAUGHT_CASES,
}  # fmt: skip
ALL = [(case, cut) for case in CASES for cut in CUTS[1 : 6 if case in TAUGHT_CASES else None]]
"""A teacher has no answers that share a prompt."""
ONCE = [pairs[number % len(pairs)] for number, pairs in enumerate([p for p in ALL if p[0] == case] for case in CASES)]


def check(case: str, cut: tuple[str, str], folder: Path) -> None:
    def of(name: str, layout: str, pieces: str) -> tuple[torch.Tensor, StepDone]:
        job = CASES[case](folder / name, layout, tokens(case, pieces))
        found = len(plan_step(job, 0).batches)
        assert (found == 1) == (pieces == "one"), found
        return step_of(job)

    (wanted, whole), (got, found) = of("whole", *CUTS[0]), of("cut", *cut)
    near = NEAR_OF_DISTRIBUTIONS if case in TAUGHT_CASES else NEAR
    assert float((got - wanted).norm() / wanted.norm()) < near
    assert found.figures == pytest.approx(whole.figures, rel=near, abs=1e-6)
    assert case not in map(named, JUDGED[:3]) or whole.figures["kl"] > 0


@pytest.mark.parametrize(("case", "cut"), ONCE, ids=str)
def test_how_a_step_is_cut_does_not_matter(case: str, cut: tuple[str, str], tmp_path: Path) -> None:
    """Each objective once here."""
    check(case, cut, tmp_path)


@pytest.mark.prove
@pytest.mark.parametrize(("case", "cut"), ALL, ids=str)
def test_no_cut_matters(case: str, cut: tuple[str, str], tmp_path: Path) -> None:
    check(case, cut, tmp_path)
