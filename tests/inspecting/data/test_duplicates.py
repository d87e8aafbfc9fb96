"""Duplicates, against plain twins that compare every row with every other one."""

from __future__ import annotations

import itertools
import random
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.data.dataset.samples import SampleBuffer, Samples, SampleWriter
from luthier.inspecting.data import near_duplicates
from luthier.inspecting.data.duplicates import answer_starts, decoder, find_duplicates, normalised
from luthier.inspecting.data.near_duplicates import (
    FEWEST_NGRAMS,
    NGRAM,
    SIMILAR,
    TokenRows,
    grouped,
    jaccard,
    joined,
    near_pairs,
    row_keys,
)
from luthier.randomness import key
from luthier.types import NO_TARGET, Sample
from tests.helpers.tiny_models import tiny_tokenizer

ROWS = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=6), min_size=1, max_size=12)


def token_rows(rows: list[list[int]], split: int | None = None) -> TokenRows:
    """The rows as one set, or as two."""
    parts = [rows] if split is None else [rows[:split], rows[split:]]
    return TokenRows(
        *(
            (np.array([i for row in part for i in row], np.int32), np.cumsum([0, *map(len, part)]).astype(np.int64))
            for part in parts
        )
    )


def write(
    folder: Path, rows: list[tuple[str, str]], examples: list[int] | None = None, lines: list[int] | None = None
) -> Samples:
    """Samples of prompt and answer under the tiny tokenizer."""
    tokenizer, encoded, writer = tiny_tokenizer(), SampleBuffer(), SampleWriter(folder)
    samples: dict[int, list[Sample]] = {}
    prompts = dict[int, str]()
    for index, (prompt, answer) in enumerate(rows):
        before = tokenizer.encode(f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n") if prompt else [0]
        ids = np.array([*before, *tokenizer.encode(answer + "<|im_end|>")])
        targets = np.append(ids[1:], NO_TARGET)
        targets[: len(before) - 1] = NO_TARGET
        line = lines[index] if lines else index + 1
        example = examples[index] if examples else index
        prompts[example] = prompt
        samples.setdefault(example, []).append(Sample(ids, targets, f"x:{line}", example))
    for example, members in samples.items():
        encoded.add(members, key("prompt", prompts[example]))
    writer.append(encoded)
    writer.close()
    return Samples(folder)


@settings(max_examples=200, deadline=None)
@given(rows=ROWS, split=st.integers(0, 12), size=st.integers(1, 20))
def test_equal_keys_are_equal_rows(rows: list[list[int]], split: int, size: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(near_duplicates.TokenRows.stretches, "__defaults__", (size,))
        keys = row_keys(token_rows(rows, min(split, len(rows))))
    for one, other in itertools.combinations(range(len(rows)), 2):
        assert (keys[one] == keys[other]) == (rows[one] == rows[other])
    groups, count, members = grouped(keys)
    want = {tuple(row): [] for row in map(tuple, rows)}
    for index, row in enumerate(rows):
        want[tuple(row)].append(index)
    assert [group.tolist() for group in groups] == [group for group in want.values() if len(group) > 1]
    assert (count, members) == (len(groups), sum(map(len, groups)))


def plain_jaccard(one: list[int], other: list[int]) -> float:
    a, b = ({tuple(row[i : i + NGRAM]) for i in range(len(row) - NGRAM + 1)} for row in (one, other))
    return len(a & b) / max(len(a | b), 1)


@settings(max_examples=100, deadline=None)
@given(rows=ROWS, split=st.integers(0, 12))
def test_similarity_is_that_of_sets(rows: list[list[int]], split: int) -> None:
    pairs = np.array(list(itertools.combinations(range(len(rows)), 2)), dtype=np.int64).reshape(-1, 2)
    got = jaccard(token_rows(rows, min(split, len(rows))), pairs)
    assert got == pytest.approx([plain_jaccard(rows[a], rows[b]) for a, b in pairs])


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(2, 40), vocabulary=st.sampled_from([6, 500]))
def test_near_pairs_are_those_of_all_pairs(seed: int, count: int, vocabulary: int) -> None:
    """None that is not alike; and rows that are very much alike always end in one group."""
    rng = random.Random(seed)
    rows: list[list[int]] = []
    for _ in range(count):
        row = [rng.randrange(vocabulary) for _ in range(rng.randint(1, 60))]
        if rows and rng.random() < 0.5:
            row = list(rng.choice(rows))
            for _ in range(rng.randint(0, 3)):
                row[rng.randrange(len(row))] = rng.randrange(vocabulary)
        rows.append(row)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(near_duplicates, "COMMON_ROWS", count)  # no n-gram is common: the twin knows of none
        found = near_pairs(token_rows(rows, rng.randint(0, count)), np.ones(count, dtype=bool))
    for (one, other), similarity in zip(found.pairs, found.similarity, strict=True):
        assert one < other
        assert similarity == pytest.approx(plain_jaccard(rows[one], rows[other]))
        assert similarity >= SIMILAR
    group_of = {row: number for number, group in enumerate(joined(found.pairs)) for row in group}
    long = [index for index, row in enumerate(rows) if len(row) - NGRAM + 1 >= FEWEST_NGRAMS]
    assert found.rows_too_short == count - len(long)
    assert found.candidates_left_out == 0
    for one, other in itertools.combinations(long, 2):
        if rows[one] == rows[other]:
            assert group_of[one] == group_of[other]


def test_a_word_changed_in_a_row_is_found() -> None:
    """90 % of the pairs that differ by one id of 60, and no pair of rows that have nothing to do with each other."""
    rng = random.Random(4)
    rows = [[rng.randrange(500) for _ in range(60)] for _ in range(300)]
    changed = [[*row[:30], 501, *row[31:]] for row in rows[:100]]
    found = near_pairs(token_rows([*rows, *changed]), np.ones(400, dtype=bool))
    assert set(map(tuple, found.pairs.tolist())) == {(index, 300 + index) for index in range(100)}


def test_what_all_rows_have_does_not_make_them_alike() -> None:
    rng = random.Random(5)
    rows = [[*range(1000, 1080), *(rng.randrange(500) for _ in range(20)), 1080, 1081, 1082] for _ in range(200)]
    assert len(near_pairs(token_rows(rows), np.ones(200, dtype=bool)).pairs) == 0


def test_joined() -> None:
    assert joined(np.array([[3, 5], [1, 2], [2, 5], [7, 8]])) == [[1, 2, 3, 5], [7, 8]]
    assert joined(np.zeros((0, 2), dtype=np.int64)) == []


@settings(max_examples=100, deadline=None)
@given(
    rows=st.lists(st.lists(st.booleans(), min_size=1, max_size=8), min_size=1, max_size=5), skipped=st.integers(0, 3)
)
def test_answer_starts(rows: list[list[bool]], skipped: int) -> None:
    def plain(row: list[bool]) -> int:
        spans = [place for place, now in enumerate(row) if now and (place == 0 or not row[place - 1])]
        return spans[-1] + 1 if spans and spans[-1] > 0 else 0

    targets = np.array([5 if now else NO_TARGET for row in rows for now in row])
    edges = np.cumsum([skipped, *map(len, rows)])
    assert answer_starts(targets, edges).tolist() == [plain(row) for row in rows]


def test_folding() -> None:
    assert normalised("  Hello,   WORLD! ") == normalised("hello world") == "hello world"
    assert normalised("Ｆｕｌｌ　ｗｉｄｔｈ。") == "full width"
    assert normalised("Straße") == normalised("STRASSE")
    assert normalised("1 + 1") != normalised("1 - 1")
    assert normalised("1.5") != normalised("15")
    assert normalised("?!") == "?!"
    assert normalised("你好，世界") == "你好 世界"


def test_every_degree_is_told_apart(tmp_path: Path) -> None:
    long = "What is the capital of France? The capital of France is Paris. " * 2
    rows = [
        ("Hi there", "Hello, world."),
        ("Hi there", "Hello, world."),  # exact twin of 0
        ("hi  THERE!", "hello world"),  # the same, folded
        ("Hi there", "Go away."),  # a conflict with 0
        ("Say one", "1"),
        (long + "one more word", "Write a short list of numbers."),
        (long + "one new word", "Write a short list of numbers."),  # near 5
        ("", "no prompt at all"),
        ("", "no prompt again"),
        ("Tell me", "A lute has fifteen strings in eight courses and a body like half a pear, made of thin ribs."),
    ]
    train = write(tmp_path / "train", rows)
    held_out = write(
        tmp_path / "eval",
        [
            rows[4],
            ("SAY ONE", "1!"),
            (long + "one old word", "Write a short list of numbers."),
            ("say one", "2"),
            ("new", "1"),
            ("Tell me", "A lute has fifteen strings in eight courses and a body like half a pear, made of fine ribs."),
        ],
    )
    found = find_duplicates(train, held_out, decoder(tiny_tokenizer()))
    assert (found.exact.listed, found.exact.groups, found.exact.extra) == ([[0, 1]], 1, 1)
    assert found.normalised.listed == [[0, 2]]
    assert found.near.listed == [[5, 6]]
    assert found.conflicts.listed == [[0, 3]]
    assert {degree: pairs.listed for degree, pairs in found.overlap.items()} == {
        "exact": [(0, 4)],
        "normalised": [(1, 4)],
        "near": [(2, 5), (5, 9)],
        "prompt": [],
        "near_prompt": [(3, 4)],
    }
    assert find_duplicates(train, None, decoder(tiny_tokenizer())).overlap == {}


def test_a_row_is_no_duplicate_of_itself(tmp_path: Path) -> None:
    """A row that gave a sample for each answer, and one that was drawn twice."""
    said = "A lute has fifteen strings in eight courses and a body like half a pear, made of thin ribs. " * 3
    split = [(said, "Yes."), (said + "Yes. And now?", "Yes, yes."), (said + "Yes. And now? Yes, yes. So?", "No.")]
    train = write(tmp_path / "train", [*split, ("Hi", "Ho"), ("Hi", "Ho")], [0, 0, 0, 1, 2], [1, 1, 1, 2, 2])
    alone = find_duplicates(train, None, decoder(tiny_tokenizer()))
    assert [one.rows for one in (alone.exact, alone.normalised, alone.near, alone.conflicts)] == [0, 0, 0, 0]
    twice = write(tmp_path / "twice", [*split, *split], [0, 0, 0, 1, 1, 1], [1, 1, 1, 2, 2, 2])
    found = find_duplicates(twice, train, decoder(tiny_tokenizer()))
    assert (found.exact.listed, found.exact.extra, found.near.rows) == ([[0, 1]], 1, 0)
    assert {degree: pairs.listed for degree, pairs in found.overlap.items() if pairs.rows} == {"exact": [(0, 0)]}
    listed_twice = write(tmp_path / "listed", [("Hi", "Ho"), ("Bye", "Ho"), ("Hi", "Ho")], None, [1, 2, 1])
    assert find_duplicates(listed_twice, None, decoder(tiny_tokenizer())).exact.listed == [[0, 2]]


def test_alternatives_of_one_group_are_no_conflict(tmp_path: Path) -> None:
    rows = [("Hi", "chosen"), ("Hi", "rejected"), ("Bye", "chosen"), ("Bye", "other")]
    found = find_duplicates(write(tmp_path / "train", rows, [0, 0, 1, 2]), None, decoder(tiny_tokenizer()))
    assert found.conflicts.listed == [[1, 2]]


def test_pairs_are_equal_only_whole(tmp_path: Path) -> None:
    """Two samples each: the last alone, or the same two the other way round, make no duplicate."""
    good, bad, other = ("Hi", "Hello to you."), ("Hi", "Go away."), ("Hi", "What do you want?")
    rows = [good, bad, other, bad, bad, good, good, bad]
    found = find_duplicates(write(tmp_path / "train", rows, [0, 0, 1, 1, 2, 2, 3, 3]), None, decoder(tiny_tokenizer()))
    assert (found.exact.listed, found.normalised.listed) == ([[0, 3]], [])


def test_many_rows_take_little_memory(tmp_path: Path) -> None:
    """20,000 rows of 40 ids with every kind of duplicate; the arrays are bounded by rows, not by pairs."""
    rng = np.random.default_rng(0)
    ids = rng.integers(3, 500, (20_000, 40)).astype(np.int32)
    ids[5_000:10_000] = ids[:5_000]
    ids[5_000:10_000, 20] = 1
    ids[10_000:12_000] = ids[0]  # one bucket of 2,000
    rows = TokenRows((ids.ravel(), np.arange(20_001) * 40))
    tracemalloc.start()
    found = near_pairs(rows, np.ones(20_000, dtype=bool))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    groups = joined(found.pairs)
    assert sum(map(len, groups)) >= 0.99 * 12_000
    assert max(map(len, groups)) == 2_002
    assert peak < 200e6
