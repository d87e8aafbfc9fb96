"""The z-loss (Chowdhery et al., 2022, arXiv:2204.02311, section 5): keeps the logits' normaliser near one."""

from __future__ import annotations

from typing import Literal

from luthier.component import ComponentConfig
from luthier.types import Conversation, Example, LossOut, MicroBatch, Policy, Renderer, Sample, Text

__all__ = ["ZLoss"]


class ZLoss:
    """loss = sum over trained tokens of (log sum exp of the logits)^2; weight = number of trained tokens.

    It says nothing of the answers: a term of `weighted`, usually with a weight of 1e-4.
    """

    class Config(ComponentConfig):
        kind: Literal["z_loss"] = "z_loss"

    takes = (Conversation, Text)
    needs_reference = False
    wants = ("logsumexp",)

    def __init__(self, config: Config) -> None:
        self.config = config

    def encode(self, example: Example, index: int, renderer: Renderer) -> list[Sample]:
        assert isinstance(example, (Conversation, Text))
        return renderer.encode(example, index)

    def weight(self, samples: list[Sample]) -> float:
        return float(sum(sample.trained_tokens for sample in samples))

    def loss(self, policy: Policy, batch: MicroBatch) -> LossOut:
        log_z = policy(batch, want=self.wants).logsumexp
        assert log_z is not None
        squares = log_z.square()
        return LossOut(squares.sum(), {"log_z": log_z.detach().sum()}, documents=batch.by_document(squares))
