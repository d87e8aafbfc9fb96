"""Supervised fine-tuning: the negative log-likelihood of the tokens that the assistant should say."""

from __future__ import annotations

from typing import Literal

from luthier.component import ComponentConfig
from luthier.objectives._trained_tokens import TOKENS, TrainedTokens
from luthier.types import LossOut, MicroBatch, Policy

__all__ = ["SFT"]


class SFT(TrainedTokens):
    """loss = - sum over trained tokens of log p(token | what stands before it); weight = number of trained tokens."""

    class Config(ComponentConfig):
        kind: Literal["sft"] = "sft"

    wants = ("correct",)

    def loss(self, policy: Policy, batch: MicroBatch) -> LossOut:
        scores = policy(batch, want=self.wants)
        assert scores.correct is not None
        return LossOut(
            {TOKENS: -scores.logps.sum()},
            {TOKENS: {"token_accuracy": scores.correct.sum()}},
            documents=batch.by_document(-scores.logps),
        )
