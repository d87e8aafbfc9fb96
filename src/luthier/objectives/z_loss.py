"""The z-loss: keeps logits from growing, which the log-likelihood alone does not see."""

from __future__ import annotations

from typing import Any, Literal

from luthier.component import ComponentConfig
from luthier.objectives._trained_tokens import TOKENS, TrainedTokens
from luthier.types import LossOut, MicroBatch, Policy

__all__ = ["ZLoss"]


class ZLoss(TrainedTokens):
    """loss = sum over trained tokens of z^2; weight = number of trained tokens.

    z is log sum exp of the logits (Chowdhery et al., 2022, arXiv:2204.02311, section 5, with a weight of 1e-4), or the
    largest logit, which is what a `z_loss_weight` in a model's config.json stands for (Yang et al., 2023,
    arXiv:2309.10305, with 2e-4). There the square is averaged over every position, also of prompts and padding; padding
    would make it depend on the layout, so it is that of the trained tokens here.

    It says nothing of the answers: a term of `weighted`.
    """

    class Config(ComponentConfig):
        kind: Literal["z_loss"] = "z_loss"
        form: Literal["logsumexp", "largest"] = "logsumexp"
        """What is squared: `logsumexp`, the logarithm of the softmax's denominator, or the `largest` logit, which models with
        a `z_loss_weight` in their config.json were trained with."""

    config: Config
    only_as_term = 1e-4
    """the weight of Chowdhery et al."""

    @classmethod
    def of_model(cls, model_config: Any) -> tuple[str, dict[str, Any]] | None:
        weight = getattr(model_config, "z_loss_weight", 0.0)
        return ("z_loss_weight", {"kind": "z_loss", "form": "largest", "weight": weight}) if weight else None

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.wants = (config.form,)

    def loss(self, policy: Policy, batch: MicroBatch) -> LossOut:
        scores = policy(batch, want=self.wants)
        z = scores.logsumexp if self.config.form == "logsumexp" else scores.largest
        assert z is not None
        name = "log_z" if self.config.form == "logsumexp" else "largest_logit"
        squares = z.square()
        return LossOut({TOKENS: squares.sum()}, {TOKENS: {name: z.detach().sum()}}, batch.by_document(squares))
