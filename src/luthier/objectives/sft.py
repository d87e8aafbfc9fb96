"""Supervised fine-tuning: the negative log-likelihood of the tokens that the assistant should say."""

from __future__ import annotations

from typing import Literal

from luthier.component import ComponentConfig
from luthier.types import Conversation, Example, LossOut, MicroBatch, Policy, Renderer, Sample, Text

__all__ = ["SFT"]


class SFT:
    """loss = - sum over trained tokens of log p(token | what stands before it); weight = number of trained tokens."""

    class Config(ComponentConfig):
        kind: Literal["sft"] = "sft"

    takes = (Conversation, Text)
    needs_reference = False
    wants = ("correct",)

    def __init__(self, config: Config) -> None:
        self.config = config

    def encode(self, example: Example, index: int, renderer: Renderer) -> list[Sample]:
        assert isinstance(example, (Conversation, Text))
        return renderer.encode(example, index)

    def weight(self, samples: list[Sample]) -> float:
        return float(sum(sample.trained_tokens for sample in samples))

    def loss(self, policy: Policy, batch: MicroBatch) -> LossOut:
        scores = policy(batch, want=self.wants)
        assert scores.correct is not None
        return LossOut(
            -scores.logps.sum(), {"token_accuracy": scores.correct.sum()}, documents=batch.by_document(-scores.logps)
        )
