"""Which examples a step covers, and how they are laid out."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from luthier.data.steps.layout import lay_out, micro_batches
from luthier.data.steps.order import Steps
from luthier.randomness import permutation
from luthier.types import NO_TARGET, Plan, Sample, shared_tokens
from tests.helpers.jobs import make_samples
from tests.helpers.properties import examples


@given(examples=st.integers(1, 60), batch=st.integers(1, 20), epochs=st.integers(1, 4), seed=st.integers(0, 9))
def test_each_epoch_covers_every_example_once(examples: int, batch: int, epochs: int, seed: int) -> None:
    steps = Steps(examples, batch, seed, float(epochs))
    for epoch in range(epochs):
        seen = [
            i for step in range(epoch * steps.per_epoch, (epoch + 1) * steps.per_epoch) for i in steps.indices(step)
        ]
        assert sorted(seen) == list(range(examples))
        assert steps.epoch_of((epoch + 1) * steps.per_epoch - 1) == epoch + 1
    assert steps.total == epochs * steps.per_epoch


def test_epochs_are_shuffled_apart_and_seeds_too() -> None:
    orders = [tuple(permutation(50, seed, "order", epoch)) for seed in (0, 1) for epoch in (0, 1)]
    assert len(set(orders)) == 4
    assert orders[0] != tuple(range(50))


def test_a_step_is_a_function_of_its_number() -> None:
    """Asked in any order, by any process, after any resume."""
    forward = [Steps(37, 8, 3, 3.0).indices(step) for step in range(15)]
    backward = [Steps(37, 8, 3, 3.0).indices(step) for step in reversed(range(15))]
    assert forward == backward[::-1]


layouts = st.tuples(
    st.lists(st.integers(1, 50), min_size=1, max_size=20),
    st.integers(1, 4),
    st.integers(1, 120),
    st.sampled_from(["flat", "shared", "padded"]),
)


@given(layouts)
def test_layout_holds_each_sample_once_and_keeps_its_limits(given_: tuple[list[int], int, int, str]) -> None:
    lengths, processes, limit, layout = given_
    plan = lay_out(lengths, range(len(lengths)), processes=processes, max_tokens=limit, layout=layout)
    assert Counter(i for own in plan for batch in own for i in batch) == Counter(range(len(lengths)))
    assert len({len(own) for own in plan}) == 1
    for batch in (batch for own in plan for batch in own if len(batch) > 1):
        taken = [lengths[i] for i in batch]
        assert (len(taken) * max(taken) if layout == "padded" else sum(taken)) <= limit


@given(
    st.lists(st.tuples(st.integers(1, 30), st.integers(0, 4)), min_size=1, max_size=15),
    st.integers(1, 3),
    st.integers(1, 60),
)
def test_groups_stay_together(samples: list[tuple[int, int]], processes: int, limit: int) -> None:
    lengths, groups = zip(*samples, strict=True)
    for own in lay_out(lengths, groups, processes=processes, max_tokens=limit, layout="flat"):
        for batch in own:
            for group in {groups[i] for i in batch}:
                assert {i for i, other in enumerate(groups) if other == group} <= set(batch)


@examples(25)
@given(st.lists(st.integers(2, 30), min_size=1, max_size=10), st.integers(1, 3), st.sampled_from(["flat", "padded"]))
def test_micro_batches_hold_the_samples(lengths: list[int], processes: int, layout: str) -> None:
    """Ids, targets, positions from 0 and row numbers of every document, and nothing trained beside them."""
    samples = make_samples(lengths)
    found: dict[str, tuple[list[int], list[int]]] = {}
    for rank in range(processes):
        for batch in micro_batches(
            samples, list(range(len(samples))), layout=layout, max_tokens=40, step=0, processes=processes, rank=rank
        ):
            assert batch.head_chunks >= 1
            if not batch.row_ids:
                assert batch.input_ids.shape == (1, 1)
                assert (batch.targets == NO_TARGET).all()
                continue
            start = 0
            for place, (row, length) in enumerate(zip(batch.row_ids, batch.lengths, strict=True)):
                where = (0, slice(start, start + length)) if layout == "flat" else (place, slice(0, length))
                start += length
                assert torch.equal(batch.position_ids[where], torch.arange(length))
                assert set(batch.rows[where].tolist()) == {int(row.rpartition(":")[2]) - 1}
                found[row] = (batch.input_ids[where].tolist(), batch.targets[where].tolist())
            trained = sum(samples[int(row.rpartition(":")[2]) - 1].trained_tokens for row in batch.row_ids)
            assert int((batch.targets != NO_TARGET).sum()) == trained
    assert found == {sample.row: (sample.input_ids.tolist(), sample.targets.tolist()) for sample in samples}


asked_and_answered = st.lists(
    st.tuples(st.integers(1, 12), st.lists(st.integers(1, 9), min_size=1, max_size=4)), min_size=1, max_size=6
)


def answers_of(rows: list[tuple[int, list[int]]], words: int) -> list[Sample]:
    """Answers to requests, of few words: some begin alike beyond what is asked."""
    draw, out = np.random.default_rng(0), list[Sample]()
    for number, (asked, answers) in enumerate(rows):
        request = draw.integers(0, words, asked)
        for role, length in enumerate(answers):
            ids = np.concatenate([request, draw.integers(0, words, length)])
            targets = np.append(ids[1:], NO_TARGET)
            targets[: asked - 1] = NO_TARGET
            out.append(Sample(ids, targets, f"made.jsonl:{number + 1}", number, role=role))
    return out


@examples(60)
@given(asked_and_answered, st.integers(1, 3), st.integers(1, 80), st.integers(1, 3))
def test_what_answers_share_stands_once(
    rows: list[tuple[int, list[int]]], processes: int, limit: int, words: int
) -> None:
    """All but the prompt's last token. With the tokens of its lender each document is whole, and every position draws by what it
    draws by where documents stand apart.
    """
    samples = answers_of(rows, words)
    plan = Plan.of(samples)
    assert plan.shared.tolist() == [
        0 if role == 0 else asked - 1 for asked, answers in rows for role in range(len(answers))
    ]
    drawn: dict[str, dict[tuple[int, int], int]] = {}
    for layout in ("shared", "flat", "padded"):
        keys = drawn[layout] = {}
        standing = 0
        for rank in range(processes):
            for batch in micro_batches(
                samples,
                list(range(len(samples))),
                layout=layout,
                max_tokens=limit,
                step=0,
                processes=processes,
                rank=rank,
            ):
                if not batch.places:
                    continue
                assert sum(batch.own) <= limit or len(set(batch.examples)) == 1 or layout == "padded"
                standing += sum(batch.own)
                ids, places, lender = list[list[int]](), list[list[int]](), 0
                for number, (place, length, own) in enumerate(zip(batch.places, batch.lengths, batch.own, strict=True)):
                    start = sum(batch.own[:number])
                    where = (number, slice(0, length)) if layout == "padded" else (0, slice(start, start + own))
                    lender = number if own == length else lender
                    shared = length - own
                    before = (ids[lender][:shared], places[lender][:shared]) if shared else ([], [])
                    ids.append([*before[0], *batch.input_ids[where].tolist()])
                    places.append([*before[1], *batch.rows[where].tolist()])
                    assert ids[-1] == samples[place].input_ids.tolist()
                    assert batch.position_ids[where].tolist() == list(range(shared, length))
                    assert batch.targets[where].tolist() == samples[place].targets[shared:].tolist()
                    keys |= {(place, at): key for at, key in enumerate(places[-1])}
                counts = [samples[place].trained_tokens for place in batch.places]
                assert batch.documents.tolist() == [n for n, count in enumerate(counts) for _ in range(count)]
        saved = int(plan.shared.sum()) if layout == "shared" else 0
        assert standing == int(plan.lengths.sum()) - saved
    assert drawn["shared"] == drawn["flat"] == drawn["padded"]


def test_only_what_is_alike_is_shared() -> None:
    """By ids, within a group, and never what is trained."""
    base = answers_of([(6, [4, 4, 4, 4])], 500)
    other = base[2].input_ids.copy()
    other[2] += 1
    parted = [base[0], replace(base[1], group=1), replace(base[2], input_ids=other), base[3]]
    assert shared_tokens(parted) == [0, 0, 2, 5]
    unlike = replace(base[1], input_ids=np.concatenate([[501], base[1].input_ids[1:]]))
    assert shared_tokens([base[0], unlike, base[2]]) == [0, 0, 0]
    nothing_trained = replace(base[0], targets=np.full(len(base[0]), NO_TARGET))
    assert shared_tokens([nothing_trained, nothing_trained]) == [0, len(base[0]) - 1]


def test_head_chunks_are_the_same_on_every_process() -> None:
    samples = make_samples((2000, 10), trained_share=0.9)
    chunks = [
        [
            b.head_chunks
            for b in micro_batches(samples, [0, 1], layout="flat", max_tokens=4000, step=0, processes=2, rank=rank)
        ]
        for rank in (0, 1)
    ]
    assert chunks[0] == chunks[1]
    assert chunks[0][0] > 1


def test_targets_at_document_edges_are_untrained() -> None:
    samples = make_samples((5, 6, 7))
    (batch,) = micro_batches(samples, [0, 1, 2], layout="flat", max_tokens=100, step=0)
    ends = np.cumsum(batch.lengths) - 1
    assert (batch.targets[0, ends] == NO_TARGET).all()


def test_very_many_epochs_are_remarked_upon() -> None:
    """Where they are asked for by steps: who writes epochs has seen their number."""
    assert Steps(20, 8, 0, 3.0, 151).notes() == [
        "max_steps 151: 50 epochs of 20 rows, each of 3 steps, if that is meant"
    ]
    assert Steps(20, 8, 0, 3.0, 150).notes() == []
    assert Steps(20, 8, 0, 1000.0).notes() == []
    assert Steps(2, 8, 0, 3.0, 2000).notes() == [
        "global batch 8: an epoch has 2 rows, so every step is of 2 rows",
        "max_steps 2,000: 2,000 epochs of 2 rows, each of 1 step, if that is meant",
    ]


def test_a_share_of_an_epoch_is_whole_steps() -> None:
    """0.07 * 100 is 7.000000000000001 in floats."""
    assert Steps(100, 1, 0, 0.07).total == 7
    assert Steps(100, 1, 0, 0.075).total == 8
    assert Steps(3, 2, 0, 0.1).total == 1
