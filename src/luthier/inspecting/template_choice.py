"""Which chat template holds the conversations of some data: the model's own, or what is to be written where it does not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from luthier.data.chat.library import Facts, library, missing_tokens, of_model_type
from luthier.data.chat.renderer import ChatRenderer
from luthier.data.chat.template import Template
from luthier.data.early_check import model_type_of
from luthier.errors import LuthierError, UserError
from luthier.models.folder import tokenizer_files
from luthier.system.words import counted
from luthier.types import Conversation

OF_EACH_SHAPE = 25
"""Conversations with and without a system text, tools, thoughts, several answers: so many of each are tried."""


@dataclass(frozen=True, slots=True)
class Fit:
    """What was found, in words, and the keys of `data` to write: key -> (value, why)."""

    says: str
    keys: dict[str, tuple[str, str]] = field(default_factory=dict)
    holds: bool = True
    """whether a template was found that holds what was tried"""


class Varied:
    """The first conversations of each shape."""

    def __init__(self) -> None:
        self.conversations: list[Conversation] = []
        self._seen: Counter[tuple[bool, ...]] = Counter()

    def add(self, one: Conversation) -> None:
        self._seen[shape := _shape(one)] += 1
        if self._seen[shape] <= OF_EACH_SHAPE:
            self.conversations.append(one)


def varied(conversations: Sequence[Conversation]) -> list[Conversation]:
    """The first of each shape."""
    kept = Varied()
    for one in conversations:
        kept.add(one)
    return kept.conversations


def _shape(one: Conversation) -> tuple[bool, ...]:
    answers = [message for message in one.messages if message.role == "assistant"]
    thinks = any(message.thinking for message in answers)
    calls = bool(one.tools) or any(message.tool_calls for message in answers)
    return one.messages[0].role == "system", calls, thinks, len(answers) > 1


def look(folder: Path | None, conversations: Sequence[Conversation]) -> Fit | None:
    """Tries the conversations with the tokenizer and the template of a model; None where there are none to try.

    Args:
        folder: the model's; None where it is not on this machine.

    Raises:
        UserError: the folder holds no tokenizer.
    """
    if not conversations:
        return None
    if folder is None:
        return Fit(
            "chat template: not checked, the model is not on this machine; luthier data tells whether it holds these rows"
        )
    tokenizer_files(folder, str(folder))
    from luthier.models.reading import (
        load_tokenizer,  # torch takes seconds to import, and only a model at hand needs it
    )

    try:
        return fit(load_tokenizer(folder), varied(conversations), model_type_of(folder))
    except LuthierError as error:
        return Fit(f"chat template: not checked: {error.found}", holds=False)


def fit(tokenizer: Any, conversations: Sequence[Conversation], model_type: str = "") -> Fit:
    """The model's own template where it holds all conversations; else its system texts folded; else another one: of the model's
    family, where there is one.
    """
    tried = counted(len(conversations), "conversation")
    refused: Counter[str] = Counter()
    own = bool(tokenizer.chat_template)
    if own:
        refused = _refused(tokenizer, "auto", "template", conversations)
        if not refused:
            return Fit(f"chat template: the model's own; it holds all of {tried} tried")
        if any(one.messages[0].role == "system" for one in conversations):
            folded = _refused(tokenizer, "auto", "fold", conversations)
            if not folded:
                why = f"the model's template does not take system texts: {next(iter(refused))}"
                return Fit(
                    f"chat template: the model's own, with system texts in the first request; it holds all of {tried} tried",
                    {"on_system": ("fold", why)},
                )
    wrong = _wrong(refused, len(conversations)) if own else "the model has no chat template"
    names = [
        name
        for name in _candidates(tokenizer, conversations, model_type)
        if not _refused(tokenizer, name, "template", conversations)
    ]
    if not names:
        return Fit(f"chat template: {wrong}; none that comes with luthier holds all of {tried} tried", holds=False)
    more = f"; {', '.join(names[1:4])} would do, too" if names[1:] else ""
    return Fit(
        f"chat template: {wrong}; {names[0]} holds all of {tried} tried", {"chat_template": (names[0], wrong + more)}
    )


def _wrong(refused: Counter[str], tried: int) -> str:
    reason, _ = refused.most_common(1)[0]
    return f"the model's own refuses {refused.total():,} of {counted(tried, 'conversation')} ({reason})"


def _candidates(tokenizer: Any, conversations: Sequence[Conversation], model_type: str) -> list[str]:
    """The templates whose tokens the tokenizer has and whose headers promise what is needed: those of the model's family first,
    then usual versions.
    """
    shapes = [_shape(one) for one in conversations]
    system, tools, thoughts = (any(shape[place] for shape in shapes) for place in range(3))

    def promises(facts: Facts) -> bool:
        return (
            (not system or facts.system != "refused")
            and (not tools or facts.tools)
            and (not thoughts or facts.thinking != "no")
        )

    found = [
        one.facts for one in library().values() if promises(one.facts) and not missing_tokens(one.facts, tokenizer)
    ]
    family = [facts.full_name for facts in of_model_type(model_type)]
    others = sorted(found, key=lambda facts: not facts.default)
    names = [facts.full_name for facts in others]
    return [name for name in family if name in names] + [name for name in names if name not in family]


def _refused(
    tokenizer: Any, spec: str, on_system: Literal["template", "fold"], conversations: Sequence[Conversation]
) -> Counter[str]:
    """Reason -> how many conversations a template refuses for it, or holds otherwise than the laws want."""
    refused: Counter[str] = Counter()
    try:
        with Template.choose(tokenizer, spec, on_system) as template:
            renderer = ChatRenderer(tokenizer, template)
            renderer.prefetch(conversations)
            for one in conversations:
                try:
                    renderer.encoded_parts(one)
                except UserError as error:
                    refused[error.found] += 1
    except UserError as error:  # the template as a whole
        refused[error.found] += len(conversations)
    return refused
