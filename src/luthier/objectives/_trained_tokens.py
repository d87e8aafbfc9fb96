"""What objectives share that learn from conversations and texts, and count trained tokens."""

from __future__ import annotations

from luthier.component import ComponentConfig
from luthier.objectives import Objective
from luthier.types import Conversation, Example, Plan, Renderer, Sample, Text

TOKENS = "tokens"
"""The name of the weight."""


class TrainedTokens(Objective):
    """An objective without its loss; weight = number of trained tokens."""

    takes = (Conversation, Text)

    def __init__(self, config: ComponentConfig) -> None:
        self.config = config

    def encode(self, example: Example, index: int, renderer: Renderer) -> list[Sample]:
        assert isinstance(example, (Conversation, Text))
        return renderer.encode(example, index)

    def weights(self, plan: Plan) -> dict[str, float]:
        return {TOKENS: plan.tokens}
