"""Supervised fine-tuning: the negative log-likelihood of the tokens that the assistant should say."""

from __future__ import annotations

from typing import Literal

from luthier.component import ComponentConfig
from luthier.objectives._trained_tokens import Likelihood

__all__ = ["SFT"]


class SFT(Likelihood):
    """loss = - sum over trained tokens of log p(token | what stands before it); weight = number of trained tokens."""

    class Config(ComponentConfig):
        kind: Literal["sft"] = "sft"
