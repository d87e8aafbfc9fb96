"""What objectives share that learn from a better and a worse answer to one request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING

from luthier.component import ComponentConfig
from luthier.objectives import Objective
from luthier.types import (
    Conversation,
    Example,
    LossOut,
    MicroBatch,
    Plan,
    Preference,
    Renderer,
    Sample,
    conversations_of,
)

if TYPE_CHECKING:
    import torch

PAIRS, TOKENS = "pairs", "chosen_tokens"
"""The names of the weights: of what is counted a pair, and of what is counted a trained token of the better answers."""


class Pairs(Objective):
    """An objective without its loss. Of a row with more than two answers the best and the worst are the pair.

    The request carries no loss, also where it holds answers of the assistant.
    """

    takes: tuple[type, ...] = (Preference,)
    roles = ("chosen", "rejected")
    by_likelihood = False
    defaults: Mapping[str, float] = MappingProxyType(
        {"num_train_epochs": 1.0, "warmup_steps": 0.1, "learning_rate": 5e-6}
    )

    def __init__(self, config: ComponentConfig) -> None:
        self.config = config

    def encode(self, example: Example, index: int, renderer: Renderer) -> list[Sample]:
        assert isinstance(example, Preference)
        answered = [one for one in conversations_of(example) if isinstance(one, Conversation)]
        pair = (answered[0], answered[-1])
        return [replace(renderer.encode_conversation(one, index), role=role) for role, one in enumerate(pair)]

    def weights(self, plan: Plan) -> dict[str, float]:
        chosen = plan.roles == 0
        return {PAIRS: float(chosen.sum()), TOKENS: float(plan.trained[chosen].sum())}


@dataclass(frozen=True, slots=True)
class PairSums:
    """Of the P pairs of a micro-batch, [P] each, in float64."""

    chosen: torch.Tensor
    rejected: torch.Tensor


def of_pairs(batch: MicroBatch, sums: torch.Tensor) -> PairSums:
    """Sums of documents, [S] -> of the better and of the worse answers, pair by pair; none of an empty micro-batch."""
    places = ([place for place, role in enumerate(batch.roles) if role == wanted] for wanted in (0, 1))
    return PairSums(*(sums[sums.new_tensor(found).long()] for found in places))


def paired(batch: MicroBatch, losses: torch.Tensor) -> torch.Tensor:
    """[P] -> [S] float64: the loss of each pair at its better answer, 0 at the other."""
    documents = losses.new_zeros(len(batch.lengths)).detach().cpu().double()
    places = [place for place, role in enumerate(batch.roles) if role == 0]
    documents[places] = losses.detach().cpu().double()
    return documents


def observed(batch: MicroBatch, logps: torch.Tensor, tokens: PairSums) -> dict[str, dict[str, torch.Tensor]]:
    """What is reported of pairs under every objective: log-probabilities, and how long the answers are.

    Both log-probabilities may fall while the margin grows: what is learned is a difference.

    Args:
        logps: [N] of the trained tokens, by the policy.
        tokens: trained ones of each answer.
    """
    sums = of_pairs(batch, batch.sums(logps.detach()))
    return {
        PAIRS: {
            "logps_chosen": sums.chosen.sum(),
            "logps_rejected": sums.rejected.sum(),
            "tokens_chosen": tokens.chosen.sum(),
            "tokens_rejected": tokens.rejected.sum(),
        },
        TOKENS: {"nll": -sums.chosen.sum()},
    }


def judged(rewards: PairSums) -> dict[str, torch.Tensor]:
    """What is reported of implicit rewards, [P]: both, their margin, and how often the better answer has the larger one."""
    margin = (rewards.chosen - rewards.rejected).detach()
    return {
        "reward_chosen": rewards.chosen.detach().sum(),
        "reward_rejected": rewards.rejected.detach().sum(),
        "margin": margin.sum(),
        "accuracy": (margin > 0).double().sum() + 0.5 * (margin == 0).double().sum(),
    }


def lengths_of(batch: MicroBatch, logps: torch.Tensor) -> PairSums:
    """Trained tokens of each answer."""
    import torch

    return of_pairs(batch, batch.sums(torch.ones_like(logps.detach())))


def whole(batch: MicroBatch, logps: torch.Tensor, losses: torch.Tensor) -> LossOut:
    """The losses of pairs, [P], as a sum; of an empty micro-batch 0, with a gradient of 0 for all that is trained."""
    return LossOut({PAIRS: losses.sum() + 0.0 * logps.sum()}, documents=paired(batch, losses))
