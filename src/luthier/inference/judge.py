"""Answers of models judged by a reward model, which reads them as they were made: token by token.

So its tokenizer and chat template must be those of the models that answered. An answer that was cut is judged without the token
that would have ended it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from luthier.errors import UserError
from luthier.inference.generation import Generation
from luthier.inference.intervals import wilson
from luthier.inference.opened import Opened, open_model, open_tokenizer
from luthier.inference.scoring import score_answers
from luthier.system.progress import Watch, unwatched
from luthier.types import NO_TARGET, Conversation, Message, Sample

SCORED_TOKENS = 4096
"""Most tokens of one forward pass."""
REQUEST = (Message("user", "Who are you?"),)
Scores = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Reading:
    """How a model reads a request: by this the tokens of one are those of another."""

    target: str
    vocabulary: dict[str, int]
    request: tuple[int, ...]
    """a fixed request as tokens"""


def reading_of(opened: Opened) -> Reading:
    """Raises UserError where it has no chat template."""
    return Reading(opened.target, opened.tokenizer.get_vocab(), tuple(opened.prompt_ids(REQUEST)))


def check_reading(judge: str, other: Reading, trust_remote_code: bool = False) -> None:
    """Before anything is answered. Raises UserError where a judge reads requests otherwise, or has no chat template."""
    tokenizer, renderer = open_tokenizer(judge, trust_remote_code)
    _refuse_other(judge, Reading(judge, tokenizer.get_vocab(), tuple(renderer.prompt_ids(REQUEST))), other)


def _refuse_other(judge: str, own: Reading, other: Reading) -> None:
    if (own.vocabulary, own.request) != (other.vocabulary, other.request):
        raise UserError(
            f"--judge {judge}",
            f"it reads requests otherwise than {other.target}: its tokenizer or chat template is another",
            "a reward run on a model of the same tokenizer and template",
            f"train one on the model of {other.target}, or leave --judge out",
        )


def judged(
    judge: str,
    readings: Sequence[Reading],
    answers: Sequence[Sequence[tuple[list[int], Generation]]],
    *,
    trust_remote_code: bool = False,
    watch: Watch = unwatched,
) -> list[Scores]:
    """The scores of the answers of several models, [answers] each.

    Args:
        judge: a reward run, one of its checkpoints, or a model that gives scores.
        readings: of the models that answered.
        answers: of each model: requests as tokens, and its answers.

    Raises:
        UserError: it gives no scores, or reads requests otherwise.
    """
    opened = open_model(judge, trust_remote_code=trust_remote_code, takes="scores")
    own = reading_of(opened)
    for other in readings:
        _refuse_other(judge, own, other)
    end = _end_of_answers(opened)
    policy, found = opened.policy(), list[Scores]()
    for some in answers:
        samples = [_sample(ids, answer, end, place) for place, (ids, answer) in enumerate(some)]
        found.append(score_answers(policy, samples, SCORED_TOKENS, watch))
    return found


def wins(own: Scores, other: Scores) -> tuple[float, float, float]:
    """How often the first gets the higher score, with its interval; a tie counts half."""
    share = np.where(own > other, 1.0, np.where(own == other, 0.5, 0.0))
    return (float(share.mean()), *wilson(round(float(share.sum())), len(share)))


def _end_of_answers(opened: Opened) -> int:
    """The token at which the judge saw answers end."""
    spoken = Conversation((*REQUEST, Message("assistant", "A luthier.")), "probe")
    return int(opened.renderer.encode_conversation(spoken, 0).input_ids[-1])


def _sample(prompt: list[int], answer: Generation, end: int, place: int) -> Sample:
    ids = np.array([*prompt, *answer.ids, *([end] if answer.stopped else [])], dtype=np.int64)
    return Sample(ids, np.full(len(ids), NO_TARGET), "", place)
