"""What objectives share that learn from conversations and texts, and count trained tokens."""

from __future__ import annotations

from luthier.component import ComponentConfig
from luthier.objectives import Objective
from luthier.types import Conversation, Example, Renderer, Sample, Text


class TrainedTokens(Objective):
    """An objective without its loss; weight = number of trained tokens."""

    takes = (Conversation, Text)

    def __init__(self, config: ComponentConfig) -> None:
        self.config = config

    def encode(self, example: Example, index: int, renderer: Renderer) -> list[Sample]:
        assert isinstance(example, (Conversation, Text))
        return renderer.encode(example, index)

    def weight(self, samples: list[Sample]) -> float:
        return float(sum(sample.trained_tokens for sample in samples))
