"""What is to be written instead of another tool's key, with its value."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from luthier.config.answers import Answer, as_value
from luthier.config.foreign_values import BY_VALUE, LEAST_KEPT, anywhere, batch, ours
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


def answer(key: str, value: Any, tree: Mapping[str, Any]) -> Answer | None:
    """What another tool's key becomes with its value; None for a key that no tool that we know has."""
    words = generic(key)
    if words is None or value is UNSAID:
        return Answer(says=words) if words is not None else None
    if key in BATCH_PARTS:
        return batch(tree)
    if key in BY_VALUE:
        return BY_VALUE[key](value, lambda name: anywhere(tree, name))
    path = RENAMED.get(key, "").partition(" ")[0]
    if not DOTTED.fullmatch(path):
        return Answer(says=words)
    return Answer({path: ours(path, value)})


def answer_value(dotted: str, value: Any) -> Answer | None:
    """What a value of another tool becomes of a key that is ours; None where it is one of ours."""
    if dotted == "model.quantization" and value is True:
        return Answer({"model.quantization.kind": "int8"}, value="true")
    if dotted == "report_to" and value in ("none", "all", ["none"], ["all"]):
        return Answer(says="no tracker is asked where report_to is left out; leave it out", value=as_value(value))
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return None
    if dotted == "training.max_steps" and value <= 0:
        return Answer(says="num_train_epochs decides where max_steps is left out; leave it out", value=f"{value:g}")
    if dotted == "training.save_total_limit" and value == 1:
        return Answer({dotted: LEAST_KEPT}, "the last one may be damaged while the next is written", value="1")
    if dotted == "training.max_grad_norm" and value == 0:
        return Answer({dotted: None}, "nothing is scaled down", value="0")
    return None
