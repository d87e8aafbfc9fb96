"""Runs that end in the middle."""

from __future__ import annotations

from typing import Any

import pytest

from luthier.training import loop
from luthier.training.step import Step


class Broken(Exception):
    """The end of a run that nobody asked for."""


def break_after(steps: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Lets each run end before the step that follows; the list gets the number of steps of each that did."""
    whole, broken = loop.optimizer_step, list[int]()

    def breaking(job: loop.Job, step: Step, *rest: Any) -> Any:
        if step.number == steps:
            broken.append(steps)
            raise Broken
        return whole(job, step, *rest)

    monkeypatch.setattr(loop, "optimizer_step", breaking)
    return broken
