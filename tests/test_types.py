"""What flows: sums over the documents of a micro-batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from luthier.data.steps.layout import micro_batches
from luthier.types import NO_TARGET, MicroBatch
from tests.helpers.jobs import make_samples


class _Largest(TorchDispatchMode):
    """Notes the largest tensor that is made inside."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for each in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(each, torch.Tensor):
                self.numbers = max(self.numbers, each.numel())
        return out


def batch_of(layout: Any) -> MicroBatch:
    (batch,) = micro_batches(
        make_samples((9, 3, 14, 6)), [0, 1, 2, 3], layout=layout, max_tokens=512, step=0, processes=1, rank=0
    )
    return batch


@pytest.mark.parametrize("layout", ["flat", "padded"])
def test_sums_by_document(layout: str) -> None:
    batch = batch_of(layout)
    trained = batch.targets != NO_TARGET
    values = torch.arange(1, int(trained.sum()) + 1, dtype=torch.float32)
    spread = torch.zeros(batch.targets.shape).masked_scatter(trained, values)
    parts = spread[0].split(batch.lengths) if layout == "flat" else spread
    found = batch.by_document(values)
    assert found.dtype == torch.float64
    assert found.tolist() == [float(part.sum()) for part in parts]


@pytest.mark.parametrize("layout", ["flat", "padded"])
def test_sums_by_document_take_memory_by_tokens(layout: str) -> None:
    """Not by tokens times documents."""
    samples = make_samples([4] * 300)
    (batch,) = micro_batches(samples, list(range(300)), layout=layout, max_tokens=4096, step=0, processes=1, rank=0)
    values = torch.ones(int((batch.targets != NO_TARGET).sum()))
    with _Largest() as largest:
        batch.by_document(values)
    assert largest.numbers <= 2 * batch.targets.numel()
