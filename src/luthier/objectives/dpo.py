"""Direct preference optimization: answers that people prefer become more likely than the others, measured from the beginning."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from luthier.component import ComponentConfig
from luthier.objectives._pairs import PAIRS, TOKENS, Pairs, PairSums, judged, lengths_of, observed, of_pairs, whole
from luthier.types import LossOut, MicroBatch, Policy

if TYPE_CHECKING:
    import torch

__all__ = ["DPO"]

Loss = Literal["sigmoid", "hinge", "ipo", "robust", "apo_zero", "apo_down", "sigmoid_norm"]
BY_TOKEN = ("ipo", "sigmoid_norm")
"""Losses of log-ratios that are means over an answer's tokens, not sums."""


class DPO(Pairs):
    """With w the better answer, l the worse one, r(y) = beta (log p(y) - log p_ref(y)) and x = r(w) - r(l):

    - sigmoid: -log s(x), s the logistic function (Rafailov et al., 2023, arXiv:2305.18290, equation 7); with label_smoothing e
      -(1 - e) log s(x) - e log s(-x), conservative DPO (Mitchell, 2023).
    - robust: (-(1 - e) log s(x) + e log s(-x)) / (1 - 2 e) (Chowdhury et al., 2024, arXiv:2403.00409).
    - hinge: max(0, 1 - x) (Zhao et al., 2023, arXiv:2305.10425).
    - ipo: (d - 1 / (2 beta))^2, d the difference of the log-ratios a token (Azar et al., 2023, arXiv:2310.12036, equation 17).
    - sigmoid_norm: -log s(beta d), d as in ipo.
    - apo_zero: 1 - s(r(w)) + s(r(l)); apo_down: s(r(w)) + 1 - s(r(w) - r(l)) (D'Oosterlinck et al., 2024, arXiv:2408.06266).

    The reference p_ref is the policy as it was at the beginning of the run. weight = number of pairs.
    """

    class Config(ComponentConfig):
        kind: Literal["dpo"] = "dpo"
        loss: Loss = "sigmoid"
        """Which function of the log-ratios: `sigmoid` is that of the paper."""
        beta: Annotated[float, Field(gt=0, le=1000)] = 0.1
        """How closely the policy is held to the reference: larger is closer."""
        label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
        """The share of pairs that may be the wrong way round; of `sigmoid` and `robust`."""
        ld_alpha: Annotated[float, Field(ge=0, le=1)] | None = None
        """What the tokens count that one answer has beyond the length of the other: below 1 long answers are favoured less
        (Liu et al., 2024, arXiv:2409.06411); unset: 1."""
        reference: Literal["kept", "live", "none"] = "kept"
        """`kept`: the beginning's log-probabilities are computed once, before the first step, and read at every later run on the same
        data; `live`: in every step; `none`: the loss is without a reference, as if it found all answers alike."""
        sft_weight: Annotated[float, Field(ge=0, le=1000)] = 0.0
        """What the negative log-likelihood of the better answer, a token, is added with: it keeps that answer likely
        (Pang et al., 2024, arXiv:2404.19733)."""

        @model_validator(mode="after")
        def _smoothed(self) -> Self:
            if self.label_smoothing and self.loss not in ("sigmoid", "robust"):
                raise ValueError(
                    f"label_smoothing is of the losses sigmoid and robust, not of {self.loss}: leave it out"
                )
            return self

    config: Config
    usual = True

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.wants = () if config.reference == "none" else ("reference",)
        self.keeps_reference = config.reference == "kept"

    def first_step(self) -> dict[str, float]:
        if self.config.reference == "none":
            return {}
        beta = self.config.beta
        equal = {"hinge": 1.0, "ipo": 1 / (4 * beta**2), "apo_zero": 1.0, "apo_down": 1.0}
        name = "loss_preference" if self.config.sft_weight else "loss"
        return {name: equal.get(self.config.loss, math.log(2)), "margin": 0.0}

    def loss(self, policy: Policy, batch: MicroBatch) -> LossOut:
        scores = policy(batch, want=self.wants)
        tokens = lengths_of(batch, scores.logps)
        # Differences are added up, not sums subtracted: they are small numbers near the reference.
        ratios = scores.logps if scores.reference is None else scores.logps - scores.reference
        ratio = of_pairs(batch, batch.sums(ratios * self._counted(batch, scores.logps)))
        if self.config.loss in BY_TOKEN:
            ratio = PairSums(ratio.chosen / tokens.chosen, ratio.rejected / tokens.rejected)
        rewards = PairSums(self.config.beta * ratio.chosen, self.config.beta * ratio.rejected)
        losses = self._losses(rewards)
        out = whole(batch, scores.logps, losses)
        out.metrics = observed(batch, scores.logps, tokens)
        out.metrics[PAIRS] |= judged(rewards)
        if self.config.sft_weight:
            out.metrics[PAIRS]["loss_preference"] = losses.detach().sum()
            chosen = of_pairs(batch, batch.sums(scores.logps)).chosen
            out.sums[TOKENS] = -self.config.sft_weight * chosen.sum()
        return out

    def _losses(self, rewards: PairSums) -> torch.Tensor:
        """[P]"""
        import torch
        from torch import nn

        logsigmoid, sigmoid = nn.functional.logsigmoid, torch.sigmoid

        beta, noise = self.config.beta, self.config.label_smoothing
        x = rewards.chosen - rewards.rejected
        losses: Any
        match self.config.loss:
            case "sigmoid" | "sigmoid_norm":
                losses = -(1 - noise) * logsigmoid(x) - noise * logsigmoid(-x)
            case "robust":
                losses = (-(1 - noise) * logsigmoid(x) + noise * logsigmoid(-x)) / (1 - 2 * noise)
            case "hinge":
                losses = torch.relu(1 - x)
            case "ipo":
                losses = (x / beta - 1 / (2 * beta)).square()
            case "apo_zero":
                losses = 1 - sigmoid(rewards.chosen) + sigmoid(rewards.rejected)
            case "apo_down":
                losses = sigmoid(rewards.chosen) + 1 - sigmoid(x)
        return losses  # type: ignore[no-any-return]

    def _counted(self, batch: MicroBatch, logps: torch.Tensor) -> torch.Tensor | float:
        """What each trained token counts, [N]."""
        alpha = self.config.ld_alpha
        if alpha is None:
            return 1.0
        import torch

        of = batch.documents
        counts = torch.bincount(of, minlength=len(batch.lengths))
        shorter = counts.clone()
        for place, role in enumerate(batch.roles):
            if role == 0:  # its other answer lies behind it
                shorter[place : place + 2] = counts[place : place + 2].min()
        inside = torch.arange(len(of)) - (counts.cumsum(0) - counts)[of]
        return torch.where(inside < shorter[of], 1.0, alpha).to(logps)
