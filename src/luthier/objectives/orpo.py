"""Odds ratio preference optimization: supervised tuning on the better answers, and a term that makes them likelier than the others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from luthier.component import ComponentConfig
from luthier.objectives._pairs import PAIRS, TOKENS, Pairs, PairSums, judged, lengths_of, observed, of_pairs, whole
from luthier.types import LossOut, MicroBatch, Policy

if TYPE_CHECKING:
    import torch

__all__ = ["ORPO"]

SURE = -1e-7
"""The largest log-probability a token whose odds are finite in float32."""


class ORPO(Pairs):
    """loss = NLL of the better answer, a token, + beta * -log s(log odds(w) - log odds(l)); there is no reference.

    odds(y) = p / (1 - p) of p = exp(mean log-probability a token) (Hong et al., 2024, arXiv:2403.07691, equations 4 to 7; its lambda
    is beta). weights = trained tokens of the better answers, and pairs.
    """

    class Config(ComponentConfig):
        kind: Literal["orpo"] = "orpo"
        beta: Annotated[float, Field(gt=0, le=1000)] = 0.1
        """The weight of the term of odds (the paper's lambda)."""

    config: Config

    def loss(self, policy: Policy, batch: MicroBatch) -> LossOut:
        from torch import nn

        scores = policy(batch)
        tokens, sums = lengths_of(batch, scores.logps), of_pairs(batch, batch.sums(scores.logps))
        means = PairSums(sums.chosen / tokens.chosen, sums.rejected / tokens.rejected)
        odds = PairSums(log_odds(means.chosen), log_odds(means.rejected))
        losses = -self.config.beta * nn.functional.logsigmoid(odds.chosen - odds.rejected)
        out = whole(batch, scores.logps, losses)
        out.sums[TOKENS] = -sums.chosen.sum()
        out.metrics = observed(batch, scores.logps, tokens)
        rewards = PairSums(self.config.beta * means.chosen, self.config.beta * means.rejected)
        log_ratio = (odds.chosen - odds.rejected).detach().sum()
        out.metrics[PAIRS] |= {"loss_preference": losses.detach().sum(), "log_odds_ratio": log_ratio, **judged(rewards)}
        return out


def log_odds(mean: torch.Tensor) -> torch.Tensor:
    """log(p / (1 - p)) of log p, without subtracting nearly equal numbers (Maechler, 2012)."""
    import math

    import torch

    mean = mean.clamp(max=SURE)
    small = mean > -math.log(2)
    rest = torch.where(
        small,
        torch.log(-torch.expm1(torch.where(small, mean, -1.0))),
        torch.log1p(-torch.exp(torch.where(small, -1.0, mean))),
    )
    return mean - rest
