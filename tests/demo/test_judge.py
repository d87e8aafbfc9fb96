"""The judge: meaning counts, not spelling; what is missing, wrong or invented is counted."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.demo.judge import BASE_MOST_EXACT, TARGETS, Outcome, Verdict, figures, judge, leaves, strip_fences
from luthier.demo.requests import Pair
from luthier.errors import UserError

WANTED = (
    "model: {path: org/m, quantization: nf4}\ndata: x.csv\ntuning: {kind: lora, r: 8}\n"
    "training: {learning_rate: 2e-4}\noutput_dir: runs/x"
)


@pytest.mark.parametrize(
    "answer",
    [
        WANTED,
        f"```yaml\n{WANTED}\n```",
        f"```\n{WANTED}\n```\nThis is your configuration.",
        "output_dir: runs/x\ntraining:\n  learning_rate: 0.0002\ntuning: {r: 8}\ndata: {train: [{path: x.csv}]}\n"
        "model: {quantization: {kind: nf4}, path: org/m}",
    ],
)
def test_the_same_configuration_in_other_words_is_exact(answer: str) -> None:
    verdict = judge(WANTED, answer)
    assert verdict.exact
    assert verdict.right == verdict.fields == 7


@pytest.mark.parametrize(
    ("old", "new", "right", "of"),
    [
        ("r: 8", "r: 9", 6, 7),
        (", quantization: nf4", "", 6, 7),
        ("learning_rate: 2e-4", "learning_rate: 2e-4, max_steps: 5", 7, 8),
        ("2e-4", "fast", 6, 7),
        ("r: 8", "rank: 8", 6, 8),
        ("r: 8", "r: true", 6, 7),
    ],
)
def test_each_wrong_missing_or_invented_field_is_counted(old: str, new: str, right: int, of: int) -> None:
    assert judge(WANTED, WANTED.replace(old, new)) == Verdict(False, right, of)


@pytest.mark.parametrize(
    "answer", ["", "Sure! Here is how to tune it.", "- a\n- b", "model: {path: x", "a: 1\na: 2", "```yaml"]
)
def test_an_answer_that_is_no_map_has_nothing_right(answer: str) -> None:
    assert judge(WANTED, answer) == Verdict(False, 0, 7)


def test_a_value_spelled_out_that_is_the_default_is_exact_but_a_field_too_many() -> None:
    assert judge(WANTED, WANTED + "\nseed: 0") == Verdict(True, 7, 8)


def test_what_is_left_to_a_default_is_right() -> None:
    written = "model: a\ndata: b\ntuning: lora\noutput_dir: c"
    assert judge(written, written.replace("tuning: lora\n", "")) == Verdict(True, 4, 4)


def test_true_is_not_one() -> None:
    assert judge(WANTED + "\nseed: 1", WANTED + "\nseed: true") == Verdict(False, 7, 8)


def test_the_reference_must_be_a_configuration() -> None:
    with pytest.raises(UserError):
        judge("model: x", WANTED)


@given(st.text(max_size=200))
def test_any_text_can_be_judged(text: str) -> None:
    verdict = judge(WANTED, text)
    assert not verdict.exact
    assert 0 <= verdict.right < verdict.fields


def test_leaves_write_shorthands_out() -> None:
    assert leaves({"model": "a", "data": "b", "output_dir": "c"}) == {
        "model.path": "a",
        "data.train.0.path": "b",
        "output_dir": "c",
        "tuning.kind": "lora",
        "objective.kind": "sft",
    }


def test_text_before_a_fence_is_no_configuration() -> None:
    assert strip_fences("Here:\n```yaml\na: 1\n```").startswith("Here:")


def test_figures_of_a_set() -> None:
    verdicts = [Verdict(True, 5, 5)] * 3 + [Verdict(False, 2, 4)]
    found = figures(verdicts)
    assert found.requests == 4
    assert found.exact.value == 0.75
    assert found.fields.value == 17 / 19
    for share in (found.exact, found.fields):
        assert 0 <= share.low <= share.value <= share.high <= 1
    assert figures(verdicts) == found


def test_targets_are_those_that_the_table_shows() -> None:
    good, bad = figures([Verdict(True, 5, 5)] * 20), figures([Verdict(False, 0, 5)] * 20)
    pair = Pair("request", WANTED, {}, ())
    for name in TARGETS:
        assert Outcome(name, [pair], [""], [WANTED], bad, good).met
        assert not Outcome(name, [pair], [""], [WANTED], good, good).met, (
            "a base that knows the answers would prove nothing"
        )
        assert not Outcome(name, [pair], [""], [WANTED], bad, bad).met
    assert BASE_MOST_EXACT == 0.05
    assert {name: (target.exact, target.fields) for name, target in TARGETS.items()} == {
        "unseen values": (0.85, 0.95),
        "unseen phrasings": (0.70, None),
    }
