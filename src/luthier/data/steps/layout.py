"""How the samples of an optimizer step are laid out over processes and forward passes: a function of their lengths alone, and of how
many tokens they share.

The layout never changes the mathematics. Nor does it change what is drawn: tokens that samples of a group begin with are keyed by
the first of them, whether they stand once or several times.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from luthier.types import NO_TARGET, Ints, MicroBatch, Plan, Sample

if TYPE_CHECKING:
    import torch

HEAD_CHUNK_TOKENS = 512
"""Trained positions whose logits exist at one time: 512 x 150,000 words in float32 are 300 MB."""


Layout = Literal["flat", "shared", "padded"]


class Chosen:
    """Some samples of a data set, read when they are asked for: another process's are not."""

    def __init__(self, samples: Sequence[Sample], indices: Sequence[int]) -> None:
        self.samples, self.indices = samples, indices

    def __getitem__(self, place: int) -> Sample:
        return self.samples[self.indices[place]]


def lay_out(
    lengths: Sequence[int], groups: Sequence[Hashable], *, processes: int, max_tokens: int, layout: Layout
) -> list[list[list[int]]]:
    """process -> micro-batches -> indices into `lengths`; every process gets the same number of micro-batches (some may be empty).

    Units (samples of one group, which stay beside each other) go longest first to the process with the fewest tokens, and there into
    the first micro-batch with room. In the padded layout a micro-batch costs its rows times its longest.

    Args:
        lengths: tokens of each sample of the step, without those that do not stand in the row.
        groups: what names the group of each sample, such as its example and the group in it; equal names are one group.
    """
    members: dict[Hashable, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    units = sorted(members.values(), key=lambda unit: (-sum(lengths[i] for i in unit), unit))

    def cost(indices: list[int]) -> int:
        taken = [lengths[i] for i in indices]
        return len(taken) * max(taken) if layout == "padded" else sum(taken)

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
    samples: Sequence[Sample] | Chosen,
    indices: Sequence[int],
    *,
    layout: Layout,
    max_tokens: int,
    step: int,
    processes: int = 1,
    rank: int = 0,
    plan: Plan | None = None,
) -> list[MicroBatch]:
    """This process's share of a step.

    Args:
        samples: of the step; only those of this process are asked for, where `plan` says what is known of all.
        indices: the samples' places in the data set: they key the random draws.
    """
    plan = plan or Plan.of([samples[place] for place in range(len(indices))])
    laid = lay_out(
        plan.standing(layout).tolist(),
        plan.named_groups,
        processes=processes,
        max_tokens=max_tokens,
        layout=layout,
    )
    out = []
    for position, chosen in enumerate(laid[rank]):
        if not chosen:
            batch = _empty(step, layout)
        else:
            documents, places = [samples[i] for i in chosen], [indices[i] for i in chosen]
            rows = _rows(places, [len(sample) for sample in documents], plan.shared[chosen].tolist())
            if layout == "padded":
                batch = _padded(documents, places, rows, step)
            else:
                missing = plan.lengths[chosen] - plan.standing(layout)[chosen]
                batch = _flat(documents, places, rows, step, missing.tolist(), layout)
        trained = max(int(plan.trained[own[position]].sum()) if own[position] else 0 for own in laid)
        batch.head_chunks = max(1, math.ceil(trained / HEAD_CHUNK_TOKENS))
        out.append(batch)
    return out


def _tensor(values: Ints) -> torch.Tensor:
    import torch  # here: the layout alone, which `luthier data` draws, needs none

    return torch.tensor(values, dtype=torch.int64)


def _rows(places: list[int], lengths: list[int], shared: list[int]) -> list[Ints]:
    """The place in the data set that keys each token of each document: of a shared one that of its lender."""
    found, lender = list[Ints](), 0
    for place, length, count in zip(places, lengths, shared, strict=True):
        lender = lender if count else place
        found.append(np.repeat([lender, place], [count, length - count]))
    return found


def _flat(
    samples: list[Sample], places: list[int], rows: list[Ints], step: int, shared: list[int], layout: Layout
) -> MicroBatch:
    """[1, T]: documents one after the other, each without its first `shared` tokens; positions restart."""

    def joined(values: Iterable[Ints]) -> torch.Tensor:
        return _tensor(np.concatenate([own[count:] for own, count in zip(values, shared, strict=True)]))[None]

    lengths = [len(sample) for sample in samples]
    return MicroBatch(
        input_ids=joined(sample.input_ids for sample in samples),
        position_ids=joined(map(np.arange, lengths)),
        targets=joined(sample.targets for sample in samples),
        rows=joined(rows),
        lengths=lengths,
        layout=layout,
        step=step,
        row_ids=[sample.row for sample in samples],
        examples=[sample.example for sample in samples],
        roles=[sample.role for sample in samples],
        places=places,
        shared=shared,
    )


def _padded(samples: list[Sample], places: list[int], rows: list[Ints], step: int) -> MicroBatch:
    """[B, T]: one document a row, padded on the right with id 0 and no target."""
    lengths = [len(sample) for sample in samples]
    shape = (len(samples), max(lengths))
    input_ids, targets = np.zeros(shape, np.int64), np.full(shape, NO_TARGET, np.int64)
    keys = np.broadcast_to(np.asarray(places)[:, None], shape).copy()
    for row, sample in enumerate(samples):
        input_ids[row, : len(sample)] = sample.input_ids
        targets[row, : len(sample)] = sample.targets
        keys[row, : len(sample)] = rows[row]
    positions = np.broadcast_to(np.arange(shape[1]), shape)
    return MicroBatch(
        _tensor(input_ids),
        _tensor(positions),
        _tensor(targets),
        _tensor(keys),
        lengths,
        "padded",
        step,
        row_ids=[sample.row for sample in samples],
        examples=[sample.example for sample in samples],
        roles=[sample.role for sample in samples],
        places=places,
    )


def _empty(step: int, layout: Layout) -> MicroBatch:
    """One token that trains nothing: a process without work still runs what the others run."""
    import torch

    one = torch.zeros((1, 1), dtype=torch.int64)
    return MicroBatch(one, one.clone(), torch.full_like(one, NO_TARGET), one.clone(), [1], layout, step)
