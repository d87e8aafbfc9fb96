"""How a probe of something borrowed is written down (see tests/test_borrowed.py)."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

Probe = Callable[[], bool]
PROBES: dict[str, tuple[Probe, str]] = {}
"""Name -> what tries it, and the sentence where that fails."""


def probe(name: str, sentence: str) -> Callable[[Probe], Probe]:
    def keep(tries: Probe) -> Probe:
        PROBES[name] = (tries, sentence)
        return tries

    return keep


def parameters(function: Any) -> list[str]:
    return list(inspect.signature(function).parameters)
