"""What objectives share that learn from conversations and texts, and count trained tokens."""

from __future__ import annotations

from luthier.component import ComponentConfig
from luthier.objectives import Objective
from luthier.types import Conversation, Example, LossOut, MicroBatch, Plan, Policy, Renderer, Sample, Text

TOKENS = "tokens"
"""The name of the weight."""


class TrainedTokens(Objective):
    """An objective without its loss; weight = number of trained tokens."""

    takes: tuple[type, ...] = (Conversation, Text)

    def __init__(self, config: ComponentConfig) -> None:
        self.config = config

    def encode(self, example: Example, index: int, renderer: Renderer) -> list[Sample]:
        assert isinstance(example, (Conversation, Text))
        return renderer.encode(example, index)

    def weights(self, plan: Plan) -> dict[str, float]:
        return {TOKENS: plan.tokens}


class Likelihood(TrainedTokens):
    """loss = - sum over trained tokens of log p(token | what stands before it)."""

    wants = ("correct",)

    def loss(self, policy: Policy, batch: MicroBatch) -> LossOut:
        scores = policy(batch, want=self.wants)
        assert scores.correct is not None
        return LossOut(
            {TOKENS: -scores.logps.sum()},
            {TOKENS: {"token_accuracy": scores.correct.sum()}},
            documents=batch.by_document(-scores.logps),
        )
