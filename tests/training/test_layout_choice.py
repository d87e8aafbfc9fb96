"""Which layout a run takes: prompts are shared where that is exact, and pays."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from luthier import config
from luthier.models.flat import prove
from luthier.objectives.router_balance import RouterBalance
from luthier.planning.layout import choose_layout
from luthier.types import Sample
from tests.helpers.jobs import Listed, make_samples
from tests.helpers.pairs import made, make_pairs
from tests.helpers.tiny_models import twin_config


def chosen(
    family: str = "llama",
    samples: list[Sample] | None = None,
    objective: Any = None,
    sharing: str = "auto",
    **changes: Any,
) -> tuple[str, str]:
    run = config.load(None, ["model=m", "data=d", f"share_prefix={sharing}"])
    model = twin_config(family)
    verdict = prove(model, torch.float32)
    for name, value in changes.items():
        setattr(model, name, value)
    return choose_layout(
        run, model, verdict, objective or made(kind="dpo"), Listed(make_pairs() if samples is None else samples)
    )


def test_prompts_of_pairs_are_shared() -> None:
    layout, why = chosen()
    assert layout == "shared"
    assert why.startswith("proven in float32")
    assert why.endswith("; answers to one prompt share it: 27 % fewer tokens")


@pytest.mark.parametrize(
    ("given", "layout", "words"),
    [
        ({"sharing": "never"}, "flat", ""),
        ({"samples": make_samples((30, 20))}, "flat", ""),
        ({"samples": make_pairs(((3, 40, 50),))}, "flat", ""),
        ({"family": "yuan"}, "flat", "each answer has its prompt again: logits of documents that share tokens differ"),
        ({"family": "lfm2"}, "padded", ""),
        ({"classifier_dropout": 0.1}, "shared", "; answers to one prompt share it"),
        ({"attention_dropout": 0.1}, "flat", "each answer has its prompt again: the model has dropout of its own"),
        (
            {"objective": RouterBalance(RouterBalance.Config())},
            "flat",
            "the load of experts is counted by whole answers",
        ),
    ],
    ids=lambda value: str(value)[:30],
)
def test_where_that_is_not_exact_or_does_not_pay_they_are_not(given: dict[str, Any], layout: str, words: str) -> None:
    found, why = chosen(**given)
    assert found == layout
    assert words in why
    assert ("each answer has its prompt again" in why) is bool(words and layout != "shared")


def test_what_a_forward_pass_must_hold_is_planned_as_it_lies() -> None:
    """A prompt that two answers share once, and padding with them."""
    pairs = Listed(make_pairs(((100, 40, 60), (4, 9, 3))))
    found = {layout: pairs.tokens_together(layout).tolist() for layout in ("flat", "shared", "padded")}
    assert found == {"flat": [300, 20], "shared": [201, 17], "padded": [320, 26]}
    assert Listed(make_samples((5, 9))).tokens_together("padded").tolist() == [5, 9]
