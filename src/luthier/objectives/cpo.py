"""Contrastive preference optimization: DPO without its reference, and supervised tuning on the better answers beside it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from luthier.component import ComponentConfig
from luthier.objectives._pairs import PAIRS, TOKENS, Pairs, PairSums, judged, lengths_of, observed, of_pairs, whole
from luthier.types import LossOut, MicroBatch, Policy

__all__ = ["CPO"]


class CPO(Pairs):
    """loss = -log s(beta (log p(w) - log p(l))) + sft_weight * NLL of w a token (Xu et al., 2024, arXiv:2401.08417, equation 3).

    weights = number of pairs, and trained tokens of the better answers.
    """

    class Config(ComponentConfig):
        kind: Literal["cpo"] = "cpo"
        beta: Annotated[float, Field(gt=0, le=1000)] = 0.1
        """What the difference of log-probabilities is multiplied with."""
        sft_weight: Annotated[float, Field(ge=0, le=1000)] = 1.0
        """The weight of the negative log-likelihood of the better answer."""

    config: Config

    def loss(self, policy: Policy, batch: MicroBatch) -> LossOut:
        from torch import nn

        scores, beta = policy(batch), self.config.beta
        sums = of_pairs(batch, batch.sums(scores.logps))
        rewards = PairSums(beta * sums.chosen, beta * sums.rejected)
        losses = -nn.functional.logsigmoid(rewards.chosen - rewards.rejected)
        out = whole(batch, scores.logps, losses)
        out.sums[TOKENS] = -self.config.sft_weight * sums.chosen.sum()
        out.metrics = observed(batch, scores.logps, lengths_of(batch, scores.logps))
        out.metrics[PAIRS] |= {"loss_preference": losses.detach().sum(), **judged(rewards)}
        return out
