"""Simple preference optimization: the better answer is to be likelier a token than the other, by a margin and without a reference."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from luthier.component import ComponentConfig
from luthier.objectives._pairs import PAIRS, Pairs, PairSums, judged, lengths_of, observed, of_pairs, whole
from luthier.types import LossOut, MicroBatch, Policy

__all__ = ["SimPO"]


class SimPO(Pairs):
    """loss = -log s(beta (m(w) - m(l)) - gamma), m the mean log-probability a token (Meng et al., 2024, arXiv:2405.14734, equation 6).

    weight = number of pairs.
    """

    class Config(ComponentConfig):
        kind: Literal["simpo"] = "simpo"
        beta: Annotated[float, Field(gt=0, le=1000)] = 2.0
        """What log-probabilities are multiplied with: 2.0 to 10 in the paper."""
        gamma_beta_ratio: Annotated[float, Field(ge=0, le=1000)] = 0.5
        """The margin as a share of beta: 0.3 to 0.6 in the paper."""

    config: Config

    def loss(self, policy: Policy, batch: MicroBatch) -> LossOut:
        from torch import nn

        scores, beta = policy(batch), self.config.beta
        tokens, sums = lengths_of(batch, scores.logps), of_pairs(batch, batch.sums(scores.logps))
        rewards = PairSums(beta * sums.chosen / tokens.chosen, beta * sums.rejected / tokens.rejected)
        losses = -nn.functional.logsigmoid(rewards.chosen - rewards.rejected - self.config.gamma_beta_ratio * beta)
        out = whole(batch, scores.logps, losses)
        out.metrics = observed(batch, scores.logps, tokens)
        out.metrics[PAIRS] |= judged(rewards)
        return out
