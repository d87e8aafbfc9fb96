"""One number a document: what the head of scores makes of the hidden state of its last token."""

from __future__ import annotations

from typing import Any

import torch

from luthier.types import MicroBatch


def values_of(core: Any, inputs: dict[str, Any], batch: MicroBatch) -> torch.Tensor:
    """The model's own arguments -> [S] float32, computed in the head's own type.

    The last token is the last of the document as it was encoded, which for a conversation is the token that ends its last trained
    answer: no token is looked for, so that padding may be any.

    Args:
        core: a transformers model of the layout of `models/score_head.py`.
    """
    hidden = core.base_model(**inputs)[0]
    row, place = _last(batch)
    last = hidden[row.to(hidden.device), place.to(hidden.device)]
    with torch.autocast(hidden.device.type, enabled=False):
        found: torch.Tensor = core.score(last.to(next(core.score.parameters()).dtype))
    return found[:, 0].float()


def _last(batch: MicroBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """Row of the batch and place in it of each document's last token: [S] each."""
    own = torch.tensor(batch.own)
    if batch.layout == "padded":
        return torch.arange(len(own)), own - 1
    return torch.zeros_like(own), own.cumsum(0) - 1
