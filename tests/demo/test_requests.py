"""The generator: rows that load, that repeat, and tests that are as unseen as they claim."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from dataclasses import fields
from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.config import build
from luthier.config.documents import parse_yaml
from luthier.demo import phrases, values
from luthier.demo.judge import judge, leaves
from luthier.demo.phrases import Phrasing
from luthier.demo.requests import TEST_ROWS, TRAINING_ROWS, Pair, held_out_sets, make, training_set, write_yaml
from tests.helpers.properties import examples

LEAVES = {
    "model": "model.path",
    "data": "data.train.0.path",
    "epochs": "training.num_train_epochs",
    "learning_rate": "training.learning_rate",
}
NEAR_DUPLICATE = 0.8


@pytest.fixture(scope="module")
def train() -> list[Pair]:
    return training_set()


@pytest.fixture(scope="module")
def tests() -> dict[str, list[Pair]]:
    return held_out_sets()


def every_template(phrasing: Phrasing) -> set[str]:
    clauses = chain.from_iterable(chain.from_iterable(manners.values()) for manners in phrasing.clauses.values())
    return {*phrasing.prose, *phrasing.steps, *phrasing.notes, *phrasing.before, *phrasing.after, *clauses}


def test_sizes_and_no_request_twice(train: list[Pair], tests: dict[str, list[Pair]]) -> None:
    assert len({pair.request for pair in train}) == len(train) == TRAINING_ROWS >= 400
    assert [len(pairs) for pairs in tests.values()] == [TEST_ROWS, TEST_ROWS] == [50, 50]
    asked = {pair.request for pairs in tests.values() for pair in pairs}
    assert not asked & {pair.request for pair in train}


def test_the_same_rows_each_time_and_others_for_another_seed(train: list[Pair]) -> None:
    assert training_set() == train
    assert training_set(50) == train[:50]
    assert {pair.request for pair in training_set(50, seed=1)}.isdisjoint(pair.request for pair in train[:50])


@examples(25)
@given(seed=st.integers(0, 2**32), unseen=st.booleans(), reworded=st.booleans())
def test_every_answer_loads_and_says_what_was_asked(seed: int, unseen: bool, reworded: bool) -> None:
    pools = values.UNSEEN if unseen else values.SEEN
    phrasing = phrases.UNSEEN if reworded else phrases.SEEN
    for pair in make(8, seed, phrasing, pools, "property"):
        build(parse_yaml(pair.yaml, "answer"))
        found = leaves(parse_yaml(pair.yaml, "answer").tree)
        for field, value in pair.said.items():
            if field == "method":
                assert found["tuning.kind"] == ("full" if value == "full" else "lora")
                assert found.get("model.quantization.kind") == ("nf4" if value == "qlora" else None)
            else:
                assert found[LEAVES[field]] == parse_yaml(f"x: {value}", "value").tree["x"]
        unsaid = {LEAVES[field] for field in LEAVES if field not in pair.said}
        assert {found[leaf] for leaf in unsaid} <= {None}
        slots = {"output_dir", "tuning.kind", *LEAVES.values()}
        assert set(found) - {"model.quantization", "model.quantization.kind", "objective.kind"} == slots
        assert pair.said["model"] in pair.request
        assert pair.said["data"] in pair.request
        assert not re.search(r"[{}]", pair.request)


def test_values_of_the_first_test_were_never_seen(train: list[Pair], tests: dict[str, list[Pair]]) -> None:
    closed = {"method"}
    for field in {name for pair in train for name in pair.said} - closed:
        seen = {pair.said[field] for pair in train if field in pair.said}
        new = {pair.said[field] for pair in tests["unseen values"] if field in pair.said}
        assert new, f"no request of the test has a {field}"
        assert seen.isdisjoint(new), field
    for pool in fields(values.Values):
        assert set(getattr(values.SEEN, pool.name)).isdisjoint(getattr(values.UNSEEN, pool.name)), pool.name


def test_numbers_are_new_as_numbers_not_only_as_spellings() -> None:
    for name in ("epochs", "learning_rate"):
        seen, new = (
            {float(values.NUMBER_WORDS.get(value, value)) for value in getattr(pools, name)}
            for pools in (values.SEEN, values.UNSEEN)
        )
        assert seen.isdisjoint(new), name


def test_the_first_test_keeps_to_known_phrasings_and_the_second_has_none_of_them(
    train: list[Pair], tests: dict[str, list[Pair]]
) -> None:
    known, new = every_template(phrases.SEEN), every_template(phrases.UNSEEN)
    assert known.isdisjoint(new)
    used = {
        name: {text for pair in pairs for text in pair.templates} for name, pairs in {"train": train, **tests}.items()
    }
    assert used["train"] <= known
    assert used["unseen values"] <= known
    assert used["unseen phrasings"] <= new
    assert used["train"].isdisjoint(used["unseen phrasings"])


def test_new_phrasings_are_no_near_copies_of_known_ones() -> None:
    known = [words(text) for text in every_template(phrases.SEEN)]
    for text in every_template(phrases.UNSEEN):
        mine = words(text)
        nearest = max(difflib.SequenceMatcher(None, mine, other).ratio() for other in known)
        assert nearest < NEAR_DUPLICATE, text


def words(text: str) -> list[str]:
    """The words and signs of a phrasing; the places of values count as words."""
    return re.findall(r"\{\w+\}|\w+|[^\w\s]", text.lower())


def test_both_phrasings_know_the_same_wishes_in_every_manner() -> None:
    assert phrases.SEEN.clauses.keys() == phrases.UNSEEN.clauses.keys()
    for phrasing in (phrases.SEEN, phrases.UNSEEN):
        for name, manners in phrasing.clauses.items():
            assert manners.keys() == {"prose", "steps", "notes"}
            for text in chain.from_iterable(manners.values()):
                assert ("{v}" in text) == ("=" not in name), text
        for frame in (*phrasing.prose, *phrasing.notes):
            assert all(frame.count(slot) == 1 for slot in ("{model}", "{data}", "{list}")), frame
        for frame in phrasing.steps:
            assert "{list}" not in frame
            assert frame.count("{model}") == frame.count("{data}") == 1, frame


def test_training_uses_its_variety(train: list[Pair]) -> None:
    used = Counter(text for pair in train for text in pair.templates)
    clauses = {text for manners in phrases.SEEN.clauses.values() for texts in manners.values() for text in texts}
    assert len(clauses & used.keys()) > 0.9 * len(clauses)
    assert len({pair.said["model"] for pair in train}) > 200
    assert len({pair.said["data"] for pair in train}) > 150
    fields_said = Counter(field for pair in train for field in pair.said)
    assert min(fields_said.values()) >= 40, fields_said


def test_a_few_requests_have_slips_and_their_values_do_not(train: list[Pair]) -> None:
    slipped = [pair for pair in train if any(wrong in pair.request for _, wrong in phrases.TYPOS)]
    assert 3 < len(slipped) < 0.1 * len(train)
    assert not any(wrong in pair.yaml for pair in slipped for _, wrong in phrases.TYPOS)


def test_the_example_of_the_documentation() -> None:
    said = {
        "model": "qwen3-8b",
        "data": "tickets.csv",
        "method": "qlora",
        "epochs": "2",
    }
    written = write_yaml(said)
    assert written == (
        "model: {path: qwen3-8b, quantization: nf4}\ndata: tickets.csv\ntuning: lora\n"
        "training: {num_train_epochs: 2, learning_rate: null}"
    )
    assert judge(written, written).exact
