"""Every draw is a function of what it is drawn for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from luthier.data.steps.layout import micro_batches
from luthier.kernels.dropout import DropoutKeys, KeyedDropout, mixed, random_bits
from luthier.randomness import key, permutation, uniform
from tests.helpers.jobs import make_samples


@given(st.integers(0, 500), st.integers(0, 2**40))
def test_permutation(length: int, seed: int) -> None:
    assert sorted(permutation(length, seed)) == list(range(length))


def test_permutations_are_even() -> None:
    """Each value in each place about equally often: chi-squared of 20 x 20 cells over 4,000 permutations."""
    counts = np.zeros((20, 20))
    for seed in range(4000):
        counts[np.arange(20), permutation(20, seed, "order")] += 1
    chi_squared = float(((counts - 200) ** 2 / 200).sum())
    assert 250 < chi_squared < 480  # 361 degrees of freedom: 5 standard deviations are 134


def test_keys_are_the_same_on_every_machine() -> None:
    assert key(0, "order", 1) == 7636051531545546627
    assert 0 <= uniform(3, "x") < 1
    assert key("a", "bc") != key("ab", "c")


def test_the_bits_of_draws_are_those_of_the_first_day() -> None:
    """A run that was begun with an older luthier goes on with the same order, masks and rounding."""
    assert permutation(12, 5, "order").tolist() == [3, 9, 10, 8, 4, 0, 7, 5, 6, 2, 11, 1]
    drawn = random_bits(torch.Size([5]), torch.device("cpu"), 3, "lora")
    assert drawn.tolist() == [-556986831, 1713519787, 2126904949, 284736104, -510503833]
    features = mixed(torch.tensor([7, -9], dtype=torch.int32), 3, "layer")
    assert features.tolist() == [[-2061727941, 1206815116, 826952499], [-336300952, -716461030, -1623007979]]


def mask(p: float, name: str = "layer", seed: int = 0, step: int = 0, features: int = 256) -> torch.Tensor:
    keys = DropoutKeys(seed)
    dropout = KeyedDropout(p, name, keys)
    (batch,) = micro_batches(make_samples((400, 300)), [7, 3], layout="flat", max_tokens=1000, step=step)
    with keys.using(keys.of(batch)):
        return dropout.mask(torch.Size([1, 700, features]), torch.device("cpu"))[0]


@pytest.mark.parametrize("p", [0.05, 0.1, 0.5, 0.9])
def test_share_dropped(p: float) -> None:
    """Within 5 standard deviations overall, and spread over positions and features as independent draws are."""
    kept = mask(p).float()
    assert abs(float(kept.mean()) - (1 - p)) < 5 * (p * (1 - p) / kept.numel()) ** 0.5
    for axis, count in ((0, 700), (1, 256)):
        spread = float(kept.mean(axis).std())
        assert spread == pytest.approx((p * (1 - p) / count) ** 0.5, rel=0.25)


def test_masks_of_neighbours_are_independent() -> None:
    kept = mask(0.5).float() - 0.5
    for other in (
        kept.roll(1, 0),
        kept.roll(1, 1),
        mask(0.5, "other").float() - 0.5,
        mask(0.5, seed=1).float() - 0.5,
        mask(0.5, step=1).float() - 0.5,
    ):
        correlation = float((kept * other).mean() / 0.25)
        assert abs(correlation) < 5 / kept.numel() ** 0.5


def test_expectation_and_eval_mode() -> None:
    keys = DropoutKeys(0)
    dropout = KeyedDropout(0.25, "x", keys)
    (batch,) = micro_batches(make_samples((500,)), [0], layout="flat", max_tokens=1000, step=0)
    x = torch.ones(1, 500, 64)
    with keys.using(keys.of(batch)):
        assert float(dropout(x).mean()) == pytest.approx(1.0, abs=0.02)
        assert torch.equal(dropout(x), dropout(x))
        dropout.eval()
        assert dropout(x) is x
