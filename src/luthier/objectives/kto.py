"""Kahneman-Tversky optimization: learning from answers that somebody called good or bad, each by itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from luthier.component import ComponentConfig
from luthier.errors import UserError
from luthier.objectives import Objective
from luthier.system.words import counted
from luthier.types import (
    Conversation,
    Example,
    Feedback,
    LossOut,
    MicroBatch,
    Plan,
    Policy,
    Preference,
    Renderer,
    Sample,
    conversations_of,
)

if TYPE_CHECKING:
    import torch

__all__ = ["KTO"]

ANSWERS, GOOD, BAD, TOKENS = "answers", "good_answers", "bad_answers", "good_tokens"
"""The names of the weights: of what is counted an answer, a good one, a bad one, and a trained token of the good ones."""
BALANCED = (1.0, 4 / 3)
"""What the good answers should weigh together for each unit that the bad ones weigh (section 4.2 of the paper)."""


class KTO(Objective):
    """With d(y) = log p(y) - log p_ref(y), s the logistic function, w the weight of an answer's kind, and z as below:

    - kto: w (1 - s(beta (d - z))) of a good answer, w (1 - s(beta (z - d))) of a bad one (Ethayarajh et al., 2024,
      arXiv:2402.01306, equations 7 and 8).
    - apo_zero_unpaired: the same with z = 0 (D'Oosterlinck et al., 2024, arXiv:2408.06266, for answers without a partner).

    z = max(0, mean of d(y') behind x) over mismatched pairs: each prompt x of the step with the answer y' to another one. It is an
    estimate of the divergence from the reference, the same for all answers of a step, counted before it in a pass without gradient.

    Of a row with a better and a worse answer the one is good and the other bad. The reference p_ref is the policy as it was at the
    beginning of the run. weight = number of answers, whatever theirs are.
    """

    class Config(ComponentConfig):
        kind: Literal["kto"] = "kto"
        loss: Literal["kto", "apo_zero_unpaired"] = "kto"
        """`kto` is that of the paper; `apo_zero_unpaired` measures from the reference itself, and needs no mismatched answers."""
        beta: Annotated[float, Field(gt=0, le=1000)] = 0.1
        """How closely the policy is held to the reference: larger is closer."""
        desirable_weight: Annotated[float, Field(ge=0, le=1000)] = 1.0
        """What the loss of a good answer is multiplied with."""
        undesirable_weight: Annotated[float, Field(ge=0, le=1000)] = 1.0
        """What the loss of a bad answer is multiplied with. All good answers together should weigh 1 to 4/3 times as much as all
        bad ones."""
        reference: Literal["kept", "live"] = "kept"
        """`kept`: the beginning's log-probabilities are computed once, before the first step, and read at every later run on the same
        data; `live`: in every step."""

    takes = (Feedback, Preference)
    roles = ("good", "bad")
    reads_together = False
    by_likelihood = False
    usual = True
    encoded_by = ()
    wants = ("reference",)
    defaults: Mapping[str, float] = MappingProxyType(
        {"num_train_epochs": 1.0, "warmup_steps": 0.1, "learning_rate": 5e-6}
    )

    def __init__(self, config: Config) -> None:
        self.config = config
        self.keeps_reference = config.reference == "kept"
        self.mismatched = config.loss == "kto"
        self.z = 0.0
        """of the step"""

    def encode(self, example: Example, index: int, renderer: Renderer) -> list[Sample]:
        """The answers of a pair are a group, so that they can share their prompt; the loss reads each alone."""
        answered = [one for one in conversations_of(example) if isinstance(one, Conversation)]
        judged = {0: answered[0], 1: answered[-1]}
        if isinstance(example, Feedback):
            judged = {int(not example.good): answered[0]}
        return [replace(renderer.encode_conversation(one, index), role=role) for role, one in judged.items()]

    def notes(self, plan: Plan) -> list[str]:
        good, bad = int((plan.roles == 0).sum()), int((plan.roles == 1).sum())
        if not good or not bad:
            found = f"no negative feedback: {counted(good, 'good answer')}, and no bad one"
            if not good:
                found = f"no positive feedback: {counted(bad, 'bad answer')}, and no good one"
            raise UserError(
                "data.train",
                found,
                "good and bad answers, of which the policy learns the difference",
                "add rows with label: false; good answers alone are for sft" if good else "add rows with label: true",
            )
        once = plan.standing("shared").sum()
        cost = f"z: {plan.lengths.sum():,} tokens an epoch of prompts with the answers to others, in a pass without gradient"
        cost += f"; {once:,} where answers share their prompt" if once < plan.lengths.sum() else ""
        notes = [cost] if self.mismatched else []
        weights = (good * self.config.desirable_weight, bad * self.config.undesirable_weight)
        low, high = BALANCED
        if low * weights[1] * 0.999 <= weights[0] <= high * weights[1] * 1.001:
            return notes
        said = f"{good:,} good answers weigh {weights[0]:,g}, {bad:,} bad ones {weights[1]:,g}: 1 to 4/3 times is advised, as with "
        share = (low + high) / 2
        if weights[0] > high * weights[1]:
            return [*notes, f"{said}objective.undesirable_weight={weights[0] / share / bad:.3g}"]
        return [*notes, f"{said}objective.desirable_weight={weights[1] * share / good:.3g}"]

    def weights(self, plan: Plan) -> dict[str, float]:
        good = plan.roles == 0
        count = float(good.sum())
        return {
            ANSWERS: float(len(good)),
            GOOD: count,
            BAD: float(len(good)) - count,
            TOKENS: float(plan.trained[good].sum()),
        }

    def first_step(self) -> dict[str, float]:
        known = {
            "reward_good": 0.0,
            "reward_bad": 0.0,
        }  # a kl that is not 0 shows in the loss, multiplied with beta as these are
        if self.config.desirable_weight == self.config.undesirable_weight:
            known["loss"] = 0.5 * self.config.desirable_weight
        return known

    def survey(self, policy: Policy, batch: MicroBatch) -> list[float]:
        """The log-ratios of the mismatched answers, added up, and how many they are."""
        if not self.mismatched:
            return []
        scores = policy(batch, want=self.wants)
        assert scores.reference is not None
        return [float((scores.logps - scores.reference).double().sum()), float(len(batch.examples))]

    def begin_step(self, totals: list[float], plan: Plan) -> None:
        self.z = max(0.0, totals[0] / totals[1])

    def loss(self, policy: Policy, batch: MicroBatch) -> LossOut:
        import torch

        scores = policy(batch, want=self.wants)
        assert scores.reference is not None
        # Differences are added up, not sums subtracted: they are small numbers near the reference.
        sums = [scores.logps - scores.reference, scores.logps.detach(), torch.ones_like(scores.logps.detach())]
        ratios, logps, tokens = (_of_samples(batch, batch.sums(one)) for one in sums)
        good = torch.tensor([role == 0 for role in batch.roles], dtype=torch.bool, device=ratios.device)
        rewards, z = self.config.beta * ratios, self.config.beta * self.z
        gains = torch.where(good, rewards - z, z - rewards)
        weights = torch.where(good, self.config.desirable_weight, self.config.undesirable_weight).to(gains)
        losses = weights * torch.sigmoid(-gains)
        known, gain = rewards.detach(), gains.detach()
        documents = torch.zeros(len(batch.lengths), dtype=torch.float64)
        documents[: len(losses)] = losses.detach().cpu().double()
        return LossOut(
            {ANSWERS: losses.sum() + 0.0 * scores.logps.sum()},
            {
                ANSWERS: {
                    "kl": torch.tensor(self.z * len(batch.roles), dtype=torch.float64),
                    "accuracy": (gain > 0).double().sum() + 0.5 * (gain == 0).double().sum(),
                    "share_good": good.double().sum(),
                },
                GOOD: {
                    "margin": known[good].sum(),
                    "reward_good": known[good].sum(),
                    "logps_good": logps[good].sum(),
                    "tokens_good": tokens[good].sum(),
                },
                BAD: {
                    "margin": -known[~good].sum(),
                    "reward_bad": known[~good].sum(),
                    "logps_bad": logps[~good].sum(),
                    "tokens_bad": tokens[~good].sum(),
                },
                TOKENS: {"nll": -logps[good].sum()},
            },
            documents,
        )


def _of_samples(batch: MicroBatch, sums: torch.Tensor) -> torch.Tensor:
    """[S]; of an empty micro-batch, whose one document is no sample, nothing."""
    return sums[: len(batch.roles)]
