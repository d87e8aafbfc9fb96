"""The unit of a step is the example, whatever number of samples it has, however the data are kept and shared."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier import config
from luthier.data.dataset import workers
from luthier.data.dataset.prepare import Prepared, prepare
from luthier.data.dataset.samples import SampleBuffer, Samples, SampleSet, SampleWriter
from luthier.data.steps.layout import Layout, lay_out, micro_batches
from luthier.data.steps.order import Mixture, Steps
from luthier.types import NO_TARGET, MicroBatch, Sample
from tests.helpers import tokenizers
from tests.helpers.properties import examples
from tests.helpers.split_rows import Several, write_groups

MOST_SAMPLES, MOST_PROCESSES = 7, 5


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


groups_of_examples = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=MOST_SAMPLES), min_size=1, max_size=30)
"""Of each example the groups of its samples: 1 to 7 of them."""


def kept(folder: Path, groups: Sequence[Sequence[int]]) -> Samples:
    """Made-up samples, written in buffers of three examples each and mapped from the disk."""
    draw, writer = np.random.default_rng(len(groups)), SampleWriter(folder)
    for start in range(0, len(groups), 3):
        buffer = SampleBuffer()
        for example in range(start, min(start + 3, len(groups))):
            buffer.add([made(draw, example, group) for group in groups[example]], example)
        writer.append(buffer)
    writer.close()
    return Samples(folder)


def made(draw: np.random.Generator, example: int, group: int) -> Sample:
    ids = draw.integers(3, 60, draw.integers(2, 30))
    return Sample(ids, np.append(ids[1:], NO_TARGET), f"made:{example + 1}", example, group)


def check_step(
    samples: SampleSet, rows: list[int], processes: int, max_tokens: int, layout: Layout
) -> list[MicroBatch]:
    """All micro-batches of a step: every sample of its examples once, groups beside each other in one micro-batch, and the
    same number of micro-batches for every process.
    """
    indices = samples.members_of(rows)
    members = [samples[index] for index in indices]
    shares = [
        micro_batches(members, indices, layout=layout, max_tokens=max_tokens, step=0, processes=processes, rank=rank)
        for rank in range(processes)
    ]
    assert len({len(share) for share in shares}) == 1
    batches = [batch for share in shares for batch in share]
    seen: Counter[int] = Counter()
    for batch in batches:
        places = documents_of(batch)
        seen.update(places)
        assert batch.examples == [samples[index].example for index in places]
        units = [(samples[index].example, samples[index].group) for index in places]
        for unit in set(units):
            own = [index for index in indices if (samples[index].example, samples[index].group) == unit]
            at = units.index(unit)
            assert places[at : at + len(own)] == own
    assert seen == Counter(indices)
    return batches


def documents_of(batch: MicroBatch) -> list[int]:
    """The sample of each document; none in an empty micro-batch."""
    if not batch.row_ids:
        return []
    if batch.layout == "padded":
        return [int(index) for index in batch.rows[range(len(batch.lengths)), np.array(batch.lengths) - 1]]
    return [int(index) for index in batch.rows[0, np.cumsum(batch.own) - 1]]


@pytest.mark.prove
@given(
    groups_of_examples,
    st.integers(1, 8),
    st.integers(1, MOST_PROCESSES),
    st.integers(1, 90),
    st.sampled_from(["flat", "shared", "padded"]),
    st.sampled_from([None, 3, 512]),
)
@examples(60)
def test_an_epoch_has_every_example_once_and_whole(
    groups: list[list[int]], batch: int, processes: int, max_tokens: int, layout: Layout, neighbours: int | None
) -> None:
    with TemporaryDirectory() as folder:
        samples = kept(Path(folder), groups)
        steps = Steps(samples.examples, batch, 1, 2.0, neighbours=neighbours)
        assert steps.per_epoch == -(-len(groups) // batch)
        for epoch in range(2):
            seen: list[int] = []
            for step in range(epoch * steps.per_epoch, (epoch + 1) * steps.per_epoch):
                rows = steps.indices(step)
                found = check_step(samples, rows, processes, max_tokens, layout)
                assert {example for one in found for example in one.examples} == set(rows)
                seen += rows
            assert sorted(seen) == list(range(len(groups)))


@pytest.mark.prove
@given(
    st.lists(groups_of_examples, min_size=2, max_size=3),
    st.lists(st.floats(0.2, 5), min_size=3, max_size=3),
    st.sampled_from(["first_exhausted", "all_exhausted"]),
    st.integers(1, MOST_PROCESSES),
    st.sampled_from([None, 3, 512]),
)
@examples(40)
def test_a_mixture_counts_examples(
    sources: list[list[list[int]]], weights: list[float], until: Any, processes: int, neighbours: int | None
) -> None:
    with TemporaryDirectory() as folder:
        samples = kept(Path(folder), [groups for source in sources for groups in source])
        mixture = Mixture(tuple(map(len, sources)), tuple(weights[: len(sources)]), until)
        steps = Steps(samples.examples, 4, 1, 2.0, mixture=mixture, neighbours=neighbours)
        edges = np.cumsum([0, *mixture.sizes])
        for epoch in range(2):
            seen: Counter[int] = Counter()
            for step in range(epoch * steps.per_epoch, (epoch + 1) * steps.per_epoch):
                rows = steps.indices(step)
                seen.update(rows)
                if len(set(rows)) == len(rows):  # a short source may come round within one step
                    check_step(samples, rows, processes, 50, "flat")
            for place, count in enumerate(mixture.counts):
                own = [seen[example] for example in range(edges[place], edges[place + 1])]
                assert sum(own) == count
                assert max(own) - min(own) <= 1 + (epoch > 0)


@given(groups_of_examples, st.integers(1, 120))
@examples(60)
def test_what_lies_together_is_what_a_forward_pass_must_hold(groups: list[list[int]], max_tokens: int) -> None:
    with TemporaryDirectory() as folder:
        samples = kept(Path(folder), groups)
        names = [(sample.example, sample.group) for sample in samples]
        plan = lay_out(samples.lengths.tolist(), names, processes=1, max_tokens=1, layout="flat")
        costs = [sum(int(samples.lengths[index]) for index in batch) for batch in plan[0]]
        assert sorted(costs) == sorted(samples.tokens_together("flat").tolist())


# ---- from files


def prepared(*overrides: str) -> Prepared:
    keys = ["model=m", "output_dir=runs/x", "objective=tests.helpers.split_rows:Several", *overrides]
    run = config.load(None, keys)
    return prepare(run, tokenizers.chatml(), context_length=None, objective=Several(Several.Config(kind="several")))


def described(samples: SampleSet) -> list[Any]:
    found = [(s.input_ids.tolist(), s.targets.tolist(), s.row, s.example, s.group) for s in samples]
    arrays = (samples.lengths, samples.trained, samples.groups, samples.first_samples, samples.prompt_keys)
    rows = [samples.row(example) for example in range(samples.examples)]
    return [found, rows, samples.fingerprint, *(np.asarray(array).tolist() for array in arrays)]


@pytest.mark.prove
@given(groups_of_examples, groups_of_examples, st.integers(1, MOST_PROCESSES), st.booleans(), st.booleans())
@examples(8)
def test_rows_of_files_are_whole_kept_or_streamed(
    one: list[list[int]], other: list[list[int]], processes: int, mixed: bool, held_out: bool
) -> None:
    """Chunks of four rows, so that examples of several chunks meet in a step."""
    write_groups(Path("one.jsonl"), one)
    write_groups(Path("other.jsonl"), other)
    data = "[{path: one.jsonl, weight: 2.0}, {path: other.jsonl, weight: 1.0}]" if mixed else "[one.jsonl, other.jsonl]"
    keys = [f"data.train={data}", "max_samples=25", *(["mixing=all_exhausted"] if mixed else [])]
    keys += ["data.eval=[other.jsonl]"] if held_out else []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workers, "CHUNK_ROWS", 4)
        found = [prepared(*keys, f"streaming={streaming}") for streaming in ("false", "true")]
        wanted = [*one[:25], *other[:25]]
        for data_set in found:
            train, rows = data_set.train, len(wanted)
            assert (train.examples, len(train)) == (rows, sum(map(len, wanted)))
            assert [[int(train.groups[i]) for i in train.members_of([row])] for row in range(rows)] == wanted
            steps = data_set.steps(config.load(None, ["model=m", "data=d", "output_dir=o", "global_batch_size=3"]))
            assert steps.per_pass == (rows if not mixed else sum(data_set.mixture.counts))  # type: ignore[union-attr]
            for step in range(steps.per_epoch):
                rows_of_step = steps.indices(step)
                if len(set(rows_of_step)) == len(rows_of_step):
                    check_step(train, rows_of_step, processes, 60, "flat")
        assert described(found[0].train) == described(found[1].train)
        if held_out:
            assert found[0].eval is not None
            assert found[1].eval is not None
            assert described(found[0].eval) == described(found[1].eval)
