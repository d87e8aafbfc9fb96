"""Reward modelling: a head learns to give the answer that people prefer the higher score."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Literal

from pydantic import Field

from luthier.component import ComponentConfig
from luthier.objectives._pairs import PAIRS, Pairs, judged, of_pairs, whole
from luthier.types import LossOut, MicroBatch, Plan, Policy

__all__ = ["Reward"]


class Reward(Pairs):
    """With r(y) the score of an answer behind its request, w the better one and l the worse one:
    -log s(r(w) - r(l) - margin) + center_rewards_coefficient (r(w) + r(l))^2, s the logistic function.

    The model of Bradley and Terry (1952), as Ouyang et al., 2022, arXiv:2203.02155, equation 1; the margin is that of Touvron et
    al., 2023, arXiv:2307.09288, equation 2, the same for all pairs; the centring that of Eisenstein et al., 2023,
    arXiv:2312.09244. weight = number of pairs.

    The score is that of the last token: a linear layer on its hidden state, trained whole under every tuning method. The head of
    words is neither trained nor computed.
    """

    class Config(ComponentConfig):
        kind: Literal["reward"] = "reward"
        margin: Annotated[float, Field(ge=0, le=1000)] = 0.0
        """By how much the better answer's score should be the larger one."""
        center_rewards_coefficient: Annotated[float, Field(ge=0, le=1000)] = 0.0
        """What the square of the sum of both scores counts, which holds scores near zero; the literature takes 0.01."""

    config: Config
    wants = ("value",)
    defaults: Mapping[str, float] = MappingProxyType({"num_train_epochs": 1.0, "warmup_steps": 0.1})
    defaults_of_own_weights: Mapping[str, float] = MappingProxyType({"learning_rate": 1e-5})

    def weights(self, plan: Plan) -> dict[str, float]:
        return {PAIRS: super().weights(plan)[PAIRS]}

    def loss(self, policy: Policy, batch: MicroBatch) -> LossOut:
        from torch import nn

        values = policy(batch, want=self.wants, head=False).value
        assert values is not None
        rewards = of_pairs(batch, values.double())
        losses = -nn.functional.logsigmoid(rewards.chosen - rewards.rejected - self.config.margin)
        if (centred := self.config.center_rewards_coefficient) > 0:
            losses = losses + centred * (rewards.chosen + rewards.rejected).square()
        out = whole(batch, values, losses)
        answers = of_pairs(batch, values.detach().new_tensor(batch.trained_tokens).double())
        out.metrics = {
            PAIRS: {
                **judged(rewards),
                "tokens_chosen": answers.chosen.sum(),
                "tokens_rejected": answers.rejected.sum(),
            }
        }
        return out
