"""Regular expressions of a configuration that would be tried for longer than anybody waits."""

from __future__ import annotations

import signal
import threading
from typing import Any

import pytest

from luthier.errors import UserError
from luthier.kernels.dropout import DropoutKeys
from luthier.tuning import Start, _patterns
from luthier.tuning._patterns import matched
from luthier.tuning.freeze import Freeze
from luthier.tuning.lora import Lora
from tests.helpers.tiny_models import twin

ENDLESS = "(([a-z._0-9])+)+!"
"""Tried in more ways than there are seconds, on a name of thirty characters that does not end so."""
NAMES = [f"model.layers.{number}.self_attn.q_proj" for number in range(3)]


def test_what_a_pattern_matches() -> None:
    assert matched(r".*\.[02]\..*", NAMES, "tuning.patterns") == {NAMES[0], NAMES[2]}


@pytest.mark.parametrize("pattern", ["(", "a{4294967296}", "(" * 5_000 + ")" * 5_000])
def test_what_is_none_is_refused(pattern: str) -> None:
    with pytest.raises(UserError, match="is no regular expression"):
        matched(pattern, NAMES, "tuning.patterns")


def test_one_that_is_tried_for_ever_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_patterns, "LIMIT_S", 0.05)
    before = signal.getsignal(signal.SIGALRM)
    with pytest.raises(UserError, match=r"tuning\.patterns.*is still being tried"):
        matched(ENDLESS, NAMES, "tuning.patterns")
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_another_thread_has_no_signals_and_is_answered_all_the_same() -> None:
    found: list[set[str]] = []
    thread = threading.Thread(target=lambda: found.append(matched(r".*\.1\..*", NAMES, "tuning.patterns")))
    thread.start()
    thread.join()
    assert found == [{NAMES[1]}]


@pytest.mark.parametrize(
    ("tuning", "key", "value"),
    [
        (Lora, "target_modules", ENDLESS),
        (Lora, "rank_pattern", {ENDLESS: 2}),
        (Lora, "alpha_pattern", {ENDLESS: 2}),
        (Freeze, "patterns", (ENDLESS,)),
    ],
)
def test_wherever_a_configuration_has_one(tuning: Any, key: str, value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_patterns, "LIMIT_S", 0.05)
    with pytest.raises(UserError, match=f"tuning.{key}.*is still being tried"):
        tuning(tuning.Config(**{key: value})).apply(twin("llama"), Start(DropoutKeys(0)))
