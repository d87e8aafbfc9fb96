"""Which rows a share holds out: a function of the prompt alone, so equal prompts go the same way, and new rows do not move old
ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from luthier.randomness import uniform


def _draw(prompt: str) -> float:
    return uniform("held out", prompt)


def is_held_out(prompt: str, share: float) -> bool:
    """Whether a row with this prompt is held out."""
    return _draw(prompt) < share


def share_that_holds_out(prompts: Iterable[str]) -> float | None:
    """The least share, to two digits, that holds out one of these prompts and not all; None where there is none."""
    draws = [_draw(prompt) for prompt in prompts]
    if not draws:
        return None
    share = (math.floor(min(draws) * 100) + 1) / 100
    return share if min(draws) < share <= max(draws) else None
