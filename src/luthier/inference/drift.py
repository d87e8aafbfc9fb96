"""How far a written model is from the one that it came from, and whether that is too far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from luthier.errors import UserError

EXACT = 1e-3
"""Largest difference of logits, relative to the largest logit, that float32 allows between two orders of summation."""
LOST_SHARE = 0.5
"""A merge whose rounding changes the model by this share of what tuning changed has lost the tuning."""
NEGLIGIBLE_NATS = 1e-6
NEGLIGIBLE_SCORE = 1e-4
"""Relative to the largest score."""


@dataclass(frozen=True)
class Drift:
    """How far one model's predictions are from another's, over all positions of the texts of the comparison."""

    max_logit_difference: float
    largest_logit: float
    top1_agreement: float
    """share of positions with the same most likely token"""
    mean_kl_nats: float
    """KL(original || written) of the next token, the mean over positions"""
    positions: int

    def as_text(self) -> str:
        """What matters most of it."""
        return f"same top token {100 * self.top1_agreement:.1f} %, mean KL {self.mean_kl_nats:.1e} nats"

    def whole_text(self) -> str:
        """With the largest difference."""
        return (
            f"drift over {self.positions} positions: max |dlogit| {self.max_logit_difference:.2e} "
            f"(largest logit {self.largest_logit:.3g}), {self.as_text()}"
        )

    @property
    def distance(self) -> tuple[float, float, str]:
        """What the effect of the tuning is compared with, what of it counts for nothing, and its unit."""
        return self.mean_kl_nats, NEGLIGIBLE_NATS, "nats a token"


@dataclass(frozen=True)
class ScoreDrift:
    """How far the scores of one model are from another's; a score is one number a text, and no probability."""

    max_logit_difference: float
    """of scores"""
    largest_logit: float
    """the largest score, without its sign"""
    mean_score_difference: float
    """without signs, the mean over texts"""
    positions: int
    """texts: the last position of each has the score"""

    def as_text(self) -> str:
        """What matters most of it."""
        return f"mean |dscore| {self.mean_score_difference:.1e}"

    def whole_text(self) -> str:
        """With the largest difference."""
        return (
            f"drift over {self.positions} texts: max |dscore| {self.max_logit_difference:.2e} "
            f"(largest |score| {self.largest_logit:.3g}), {self.as_text()}"
        )

    @property
    def distance(self) -> tuple[float, float, str]:
        """As `Drift.distance`."""
        return self.mean_score_difference, NEGLIGIBLE_SCORE * max(self.largest_logit, 1.0), "of score a text"


def drift(original: Sequence[torch.Tensor], written: Sequence[torch.Tensor]) -> Drift:
    """Of logits [T, V] of the same texts."""
    found = []
    for before, after in zip(original, written, strict=True):
        first, second = before.log_softmax(-1), after.log_softmax(-1)
        kl = (first.exp() * (first - second)).sum(-1).double().sum()
        same = (before.argmax(-1) == after.argmax(-1)).double().sum()
        found.append(torch.stack([(before - after).abs().max(), before.abs().max(), same, kl]))
    (difference, largest), (same, kl) = torch.stack(found)[:, :2].amax(0), torch.stack(found)[:, 2:].sum(0)
    positions = sum(map(len, original))
    mean = float(kl) / positions
    return Drift(
        max_logit_difference=float(difference),
        largest_logit=float(largest),
        top1_agreement=float(same) / positions,
        mean_kl_nats=0.0 if mean < 0 else mean,  # what is no number stays none
        positions=positions,
    )


def score_drift(original: Sequence[torch.Tensor], written: Sequence[torch.Tensor]) -> ScoreDrift:
    """Of scores [1, 1] of the same texts."""
    before, after = torch.cat(list(original)), torch.cat(list(written))
    differences = (before - after).abs().double()
    return ScoreDrift(
        max_logit_difference=float(differences.max()),
        largest_logit=float(before.abs().max()),
        mean_score_difference=float(differences.mean()),
        positions=len(before),
    )


def refuse_lost(written: Drift | ScoreDrift, tuning: Drift | ScoreDrift | None, dtype: str) -> None:
    """Raises UserError where rounding changed the model by as much as tuning did; in float32 nothing may have changed at all."""
    if dtype == "float32" and not written.max_logit_difference <= EXACT * max(written.largest_logit, 1.0):
        raise RuntimeError(
            f"the written model is not the one it came from: logits differ by {written.max_logit_difference:.2e}"
        )
    lost, negligible, unit = written.distance
    effect = tuning.distance[0] if tuning is not None else float("inf")
    if not lost <= max(negligible, LOST_SHARE * effect):
        raise UserError(
            "export",
            f"rounding to {dtype} changes the model by {lost:.1e} {unit}, tuning by {effect:.1e}: "
            "what was learned would be lost",
            "a dtype that holds it",
            "--dtype float32, or --to adapter",
        )
