"""How the samples of an optimizer step are laid out over processes and forward passes: a function of their lengths alone.

The layout never changes the mathematics.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from luthier.types import NO_TARGET, Ints, MicroBatch, Sample

if TYPE_CHECKING:
    import torch

HEAD_CHUNK_TOKENS = 512
"""Trained positions whose logits exist at one time: 512 x 150,000 words in float32 are 300 MB."""


Layout = Literal["flat", "padded"]


def lay_out(
    lengths: Sequence[int], groups: Sequence[Hashable], *, processes: int, max_tokens: int, layout: Layout
) -> list[list[list[int]]]:
    """process -> micro-batches -> indices into `lengths`; every process gets the same number of micro-batches (some may be empty).

    Units (samples of one group, which stay beside each other) go longest first to the process with the fewest tokens, and there into
    the first micro-batch with room. In the padded layout a micro-batch costs its rows times its longest.

    Args:
        lengths: tokens of each sample of the step.
        groups: what names the group of each sample, such as its example and the group in it; equal names are one group.
    """
    members: dict[Hashable, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    units = sorted(members.values(), key=lambda unit: (-sum(lengths[i] for i in unit), unit))

    def cost(indices: list[int]) -> int:
        taken = [lengths[i] for i in indices]
        return sum(taken) if layout == "flat" else len(taken) * max(taken)

    loads = [0] * processes
    bins: list[list[list[int]]] = [[] for _ in range(processes)]
    for unit in units:
        process = loads.index(min(loads))
        loads[process] += sum(lengths[i] for i in unit)
        for micro_batch in bins[process]:
            if cost(micro_batch + unit) <= max_tokens:
                micro_batch += unit
                break
        else:
            bins[process].append(list(unit))
    most = max(map(len, bins))
    return [own + [[] for _ in range(most - len(own))] for own in bins]


def micro_batches(
    samples: Sequence[Sample],
    indices: Sequence[int],
    *,
    layout: Layout,
    max_tokens: int,
    step: int,
    processes: int = 1,
    rank: int = 0,
) -> list[MicroBatch]:
    """This process's share of a step. `indices` are the samples' places in the data set: they key the random draws."""
    plan = lay_out(
        [len(sample) for sample in samples],
        [(sample.example, sample.group) for sample in samples],
        processes=processes,
        max_tokens=max_tokens,
        layout=layout,
    )
    build: Callable[[list[Sample], list[int], int], MicroBatch] = _flat if layout == "flat" else _padded
    out = []
    for position, chosen in enumerate(plan[rank]):
        batch = (
            build([samples[i] for i in chosen], [indices[i] for i in chosen], step) if chosen else _empty(step, layout)
        )
        trained = max(sum(samples[i].trained_tokens for i in own[position]) for own in plan)
        batch.head_chunks = max(1, math.ceil(trained / HEAD_CHUNK_TOKENS))
        out.append(batch)
    return out


def _tensor(values: Ints) -> torch.Tensor:
    import torch  # here: the layout alone, which `luthier data` draws, needs none

    return torch.tensor(values, dtype=torch.int64)


def _flat(samples: list[Sample], indices: list[int], step: int) -> MicroBatch:
    """[1, T]: documents one after the other, positions restart."""
    lengths = [len(sample) for sample in samples]
    return MicroBatch(
        input_ids=_tensor(np.concatenate([sample.input_ids for sample in samples]))[None],
        position_ids=_tensor(np.concatenate([np.arange(length) for length in lengths]))[None],
        targets=_tensor(np.concatenate([sample.targets for sample in samples]))[None],
        rows=_tensor(np.repeat(np.asarray(indices), lengths))[None],
        lengths=lengths,
        layout="flat",
        step=step,
        row_ids=[sample.row for sample in samples],
        examples=[sample.example for sample in samples],
    )


def _padded(samples: list[Sample], indices: list[int], step: int) -> MicroBatch:
    """[B, T]: one document a row, padded on the right with id 0 and no target."""
    lengths = [len(sample) for sample in samples]
    shape = (len(samples), max(lengths))
    input_ids, targets = np.zeros(shape, np.int64), np.full(shape, NO_TARGET, np.int64)
    for row, sample in enumerate(samples):
        input_ids[row, : len(sample)] = sample.input_ids
        targets[row, : len(sample)] = sample.targets
    positions = np.broadcast_to(np.arange(shape[1]), shape)
    rows = np.broadcast_to(np.asarray(indices)[:, None], shape)
    return MicroBatch(
        _tensor(input_ids),
        _tensor(positions),
        _tensor(targets),
        _tensor(rows),
        lengths,
        "padded",
        step,
        row_ids=[sample.row for sample in samples],
        examples=[sample.example for sample in samples],
    )


def _empty(step: int, layout: Layout) -> MicroBatch:
    """One token that trains nothing: a process without work still runs what the others run."""
    import torch

    one = torch.zeros((1, 1), dtype=torch.int64)
    return MicroBatch(one, one.clone(), torch.full_like(one, NO_TARGET), one.clone(), [1], layout, step)
