"""What is to be written instead of another tool's key, with its value."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from luthier.config.answers import Answer
from luthier.config.foreign_values import BY_VALUE, anywhere, batch, ours
from luthier.config.other_tools import BATCH_PARTS, NOT_NEEDED, RENAMED

UNSAID = object()
"""The value of a key that is asked about alone."""

DOTTED = re.compile(r"[a-z_]+(\.[a-z_]+)*")


def generic(key: str) -> str | None:
    """What to write instead of another tool's key, whatever its value is; None for a key that no tool that we know has."""
    if key in NOT_NEEDED:
        return f"{NOT_NEEDED[key]}; leave it out"
    if key in RENAMED:
        return f"write {RENAMED[key]}"
    return "write global_batch_size: the product of all its parts" if key in BATCH_PARTS else None


def answer(key: str, value: Any, tree: Mapping[str, Any], typed: Collection[str] = ()) -> Answer | None:
    """What another tool's key becomes with its value; None for a key that no tool that we know has.

    Args:
        typed: names of the keys of the tree that the command line has.
    """
    words = generic(key)
    if words is None or value is UNSAID:
        return Answer(says=words) if words is not None else None
    if key in BATCH_PARTS:
        return batch(tree, typed)
    if key in BY_VALUE:
        return BY_VALUE[key](value, lambda name: anywhere(tree, name))
    path = RENAMED.get(key, "").partition(" ")[0]
    if not DOTTED.fullmatch(path):
        return Answer(says=words)
    return Answer({path: ours(path, value)})
