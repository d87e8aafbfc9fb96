"""What is judged to have learned."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from luthier.errors import UserError
from luthier.training import learning_check
from luthier.training.learning_check import LearningCheck, hash_of


def after_two_steps(parameter: nn.Parameter, change: torch.Tensor, *waiting: nn.Parameter) -> int:
    policy = SimpleNamespace(named_parameters=lambda: [("weight", parameter)])
    check = LearningCheck(policy, waiting)  # type: ignore[arg-type]
    optimizer = torch.optim.SGD([{"params": [parameter], "lr": 1.0}])
    check.after_step(1, optimizer)
    parameter.grad = change.clone()
    parameter.data += change
    return check.after_step(2, optimizer)


def test_two_changes_do_not_cancel() -> None:
    """One number goes to the next higher float, one to the next lower: the sum of their bits is what it was."""
    eps = torch.finfo(torch.float32).eps
    change = torch.tensor([eps, -2 * eps])
    parameter = nn.Parameter(torch.tensor([1.0, 2.5]))
    before = parameter.detach().clone()
    moved = before + change
    assert int(moved.view(torch.int32).sum()) == int(before.view(torch.int32).sum())
    assert after_two_steps(parameter, change) == 0


def test_what_does_not_change_is_named_and_what_waits_is_counted() -> None:
    still = nn.Parameter(torch.ones(3))
    with pytest.raises(UserError, match="got no gradient or did not change in two steps: weight"):
        after_two_steps(still, torch.zeros(3))
    assert after_two_steps(nn.Parameter(torch.ones(3)), torch.ones(3)) == 0
    assert after_two_steps(still, torch.zeros(3), still) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_place_counts(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.randn(40, 7).to(dtype)
    found = {hash_of(values)}
    for row, column in ((0, 0), (0, 1), (17, 3), (39, 6)):
        other = values.clone()
        other[row, column] += 1
        found.add(hash_of(other))
    found.add(hash_of(values.flip(0)))
    assert len(found) == 6
    monkeypatch.setattr(learning_check, "SLICE", 16)
    assert hash_of(values) in found, "slices change nothing"
