"""Properties of the configuration: whatever comes, the answer is a run or an error of ours."""

from __future__ import annotations

import contextlib
import random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from luthier import config
from luthier.config.documents import parse_yaml, to_yaml
from luthier.config.keys import keys
from luthier.errors import LuthierError
from tests.helpers.properties import examples

SMALL = "model: org/name\ndata: train.jsonl\noutput_dir: runs/mine\n"


def load(text: str, *overrides: str) -> config.RunConfig:
    document = parse_yaml(text, "mine.yaml")
    for override in overrides:
        config.apply_override(document, override)
    return config.build(document)


WRITABLE = st.characters(exclude_categories=("Cs",), exclude_characters="\0")
"""What a text of a configuration may be of; the others are refused."""


@pytest.mark.prove
@example({}, ["a\x85b", "\u2028", "\ufeff"], "a\x85b", 0)
@given(
    st.dictionaries(
        st.sampled_from(["learning_rate", "max_grad_norm", "weight_decay"]),
        st.floats(min_value=1e-300, max_value=100),
    ),
    st.lists(st.text(WRITABLE, min_size=1, max_size=12), max_size=3),
    st.text(WRITABLE, min_size=1, max_size=12),
    st.integers(0, 2**32 - 1),
)
def test_any_numbers_and_texts_survive_the_resolved_file(
    numbers: dict[str, float], prompts: list[str], path: str, seed: int
) -> None:
    run = config.from_dict(
        {
            "model": path,
            "data": path,
            "output_dir": path,
            "seed": seed,
            "training": {**numbers, "sample_prompts": prompts},
        }
    )
    assert load(run.resolved_yaml()) == run


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-3, 20)
    | st.floats()
    | st.sampled_from(["lora", "nf4", "full", "auto", "x.jsonl", "1e-5"])
    | st.text(max_size=5)
)
NAMES = st.sampled_from(sorted({key.name for key in keys()} | {"kind", "lr", "batch_size", "bogus"})) | st.text(
    max_size=5
)
TREES = st.recursive(
    SCALARS, lambda part: st.lists(part, max_size=3) | st.dictionaries(NAMES, part, max_size=5), max_leaves=12
)


@given(st.dictionaries(NAMES, TREES, max_size=7))
def test_no_tree_raises_anything_but_our_errors(tree: dict[str, object]) -> None:
    whole = {"model": "m", "data": "d.jsonl", "output_dir": "o", **tree}
    try:
        run = config.from_dict(whole)
    except LuthierError:
        return
    assert load(run.resolved_yaml()) == run


@pytest.mark.prove
@given(st.dictionaries(NAMES, TREES, max_size=5))
def test_a_tree_means_the_same_as_its_yaml(tree: dict[str, object]) -> None:
    whole = {"model": "m", "data": "d.jsonl", "output_dir": "o", **tree}
    try:
        run = config.from_dict(whole)
    except LuthierError:
        with pytest.raises(LuthierError):
            load(to_yaml(whole))
        return
    assert load(to_yaml(whole)) == run


@given(
    st.text(
        alphabet=st.sampled_from(list("abm:-[]{}&*!|>'\"%@`#,? \n\t\x00\x85\ufeff0123.e=<")) | st.characters(),
        max_size=60,
    )
)
def test_no_text_raises_anything_but_our_errors(text: str) -> None:
    with contextlib.suppress(LuthierError):
        load(text)


@given(st.text(max_size=30), st.text(max_size=30))
def test_no_override_raises_anything_but_our_errors(key: str, value: str) -> None:
    for override in (f"{key}={value}", f"seed={value}", f"{key}", f"model.{key}={value}"):
        with contextlib.suppress(LuthierError):
            load(SMALL, override)


@examples(30)
@given(st.randoms(use_true_random=False))
def test_a_damaged_file_raises_only_our_errors(rng: random.Random) -> None:
    text = list(load(SMALL, "quantization=nf4", "data.eval=0.1").resolved_yaml())
    for _ in range(rng.randint(1, 8)):
        text[rng.randrange(len(text))] = rng.choice("abc:-{}[]&*'\"\t\n #%!|>0")
    with contextlib.suppress(LuthierError):
        load("".join(text))
