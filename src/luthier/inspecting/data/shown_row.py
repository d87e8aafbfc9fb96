"""One row as it is shown: its tokens, and what is served to get its answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from luthier.data.chat.renderer import ChatRenderer
from luthier.data.dataset.reread import asides_of, contents_of, served_prompts
from luthier.inspecting.data.token_view import Token, texts_of, tokens_of
from luthier.system.words import counted
from luthier.types import Example, Feedback, Preference, Sample, conversations_of


@dataclass(frozen=True)
class ServedPrompt:
    """What is served to get one answer of a row, encoded on its own."""

    answer: int
    """which of the row's trained answers, from 1"""
    tokens: int
    begins: int
    """where the answer begins in the row's tokens"""
    equal: bool
    """the ids that are served are the ids that stand before the answer in training"""
    text: list[str]
    """what each token adds"""


@dataclass(frozen=True)
class ShownRow:
    """One row, token by token."""

    row: str
    purpose: str
    """train, eval, or dropped"""
    why: list[str]
    """for what it was chosen"""
    tokens: list[Token]
    trained: int
    fits: int | None = None
    """how many of its tokens fit, where it has more than that"""
    served: list[ServedPrompt] = field(default_factory=list)
    role: str = ""
    """what it is of the row, where that gives several samples or a judged one: chosen, rejected; good, bad"""

    @property
    def over(self) -> str:
        """What stands between the tokens that fit and the others."""
        assert self.fits is not None
        return f"---- {counted(self.fits, 'token')} fit; {len(self.tokens) - self.fits:,} more do not: ----"

    @property
    def suffix(self) -> str:
        """What is said behind its name: its role, and that it is not learned from."""
        return (self.role and f", {self.role}") + {"train": "", "eval": ", held out", "dropped": ", dropped"}[
            self.purpose
        ]


def shown_row(
    renderer: ChatRenderer,
    sample: Sample,
    example: Example | None,
    place: str,
    purpose: str,
    why: list[str],
    fits: int | None = None,
    roles: Sequence[str] = ("",),
    follows: bool = False,
) -> ShownRow:
    """A sample of a row.

    Args:
        example: the row that it is made of; None where that is not known any more.
        place: what the row is called.
        fits: as `ShownRow.fits`.
        roles: of the objective.
        follows: it is a text that is learned behind another one, so its first token is learned too.
    """
    tokenizer = renderer.tokenizer
    if isinstance(example, Preference):  # the first role is that of the best answer, the last that of the worst
        example = conversations_of(example)[-1 if sample.role else 0]
    elif isinstance(example, Feedback):
        example = conversations_of(example)[0]
    contents, asides = (contents_of(example), asides_of(example)) if example is not None else (None, ())
    served = served_prompts(renderer, example, sample) if example is not None else []
    tokens = tokens_of(tokenizer, sample, contents, renderer.encoder.control_ids, asides)
    if follows:
        tokens[0] = replace(tokens[0], trained=True)
    return ShownRow(
        row=place,
        purpose=purpose,
        why=why,
        tokens=tokens,
        trained=sample.trained_tokens + follows,
        fits=fits,
        role=roles[sample.role],
        served=[
            ServedPrompt(one.answer, len(one.ids), one.begins, one.equal, texts_of(tokenizer, one.ids))
            for one in served
        ],
    )
