"""Two templates on one conversation: where their tokens, or what is trained of them, part."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from itertools import groupby
from typing import Any, Literal

from luthier.config import DataFile
from luthier.data.chat.check import made_tokenizer, shapes, tokens_of
from luthier.data.chat.renderer import ChatRenderer
from luthier.data.chat.template import Template
from luthier.data.files import sources
from luthier.data.recognise import recognised
from luthier.data.row_names import NAMES, RowName, option_of, row_called
from luthier.errors import BadRow, UserError
from luthier.types import NO_TARGET, Conversation, Row, Sample

Side = Literal["both", "first", "second"]
END = -1
"""In the place of a token: the text ends."""
Learned = tuple[int, int]
"""A token's id, and what is learned in its place: the same, another one, or NO_TARGET."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """Tokens that stand in both texts or in one of them, all trained or none."""

    side: Side
    text: str
    ids: tuple[int, ...]
    trained: bool
    instead: str | None = None
    """what is learned in the place of the token, or of the end of the text, where that is another token"""
    sample: int = 0
    """which sample of the row it is of"""


def row_at(place: str) -> Conversation:
    """The conversation of a row, FILE:LINE.

    Raises:
        UserError: no such file or row, or the row is no conversation.
    """
    wanted, nearest = RowName.read(place), ""
    if not wanted.file:
        raise UserError(f"--row {place}", "no file", "FILE:LINE", option_of(replace(wanted, file="train.jsonl")))
    for source in sources(DataFile(path=wanted.file), "--row"):
        row, before = row_called(replace(wanted, file=source.name), source.rows())
        if isinstance(row, BadRow):
            raise row
        if row is not None:
            return _conversation(row, source.name)
        nearest = before or nearest
    fix = option_of(RowName.read(nearest)) if nearest else ""
    raise UserError(f"--row {place}", f"{wanted.file} has no such row", NAMES, fix)


def _conversation(row: Row, name: str) -> Conversation:
    found = recognised([row], name, "--row").parse(row)
    if not isinstance(found, Conversation):
        raise UserError(row.place, f"a {type(found).__name__.lower()}", "a conversation: nothing else needs a template")
    return found


def difference(first: str, second: str, conversation: Conversation, tokenizer: Any | None = None) -> list[Stretch]:
    """The tokens of both templates in order, of one sample after the other. Where only one template trains one answer at
    a time, the last samples are compared, and those before them stand on one side.

    Args:
        first: a name, a file, or `auto`.
        tokenizer: without one, words, <s>, </s> and the control tokens of both templates.

    Raises:
        UserError: a template is not there, or refuses the conversation.
    """
    used = tokenizer if tokenizer is not None else _words(first, second, conversation)
    one, other = (_encoded(spec, conversation, used) for spec in (first, second))
    count = max(len(one), len(other))
    out: list[Stretch] = []
    for sample in range(count):
        a, b = (_learned(some[sample - count]) if sample >= count - len(some) else [] for some in (one, other))
        for kind, *(a_start, a_end, b_start, b_end) in SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
            left: Side = "both" if kind == "equal" else "first"
            out += _stretches(left, a[a_start:a_end], used, sample)
            out += _stretches("second", b[b_start:b_end], used, sample) if left == "first" else ()
    return out


def holdable(
    first: str, second: str, conversation: Conversation, tokenizer: Any | None = None
) -> tuple[Conversation, list[str]]:
    """What of a conversation both templates hold, and what is said of the rest: where one refuses it, it is compared without
    its system text."""
    notes = list[str]()
    for spec in (first, second):
        try:
            difference(spec, spec, conversation, tokenizer)
        except UserError as error:
            notes.append(f"{spec}: {error.found}; compared without the system text")
    if not notes or conversation.messages[0].role != "system":
        return conversation, []
    return replace(conversation, messages=conversation.messages[1:]), notes


def _encoded(spec: str, conversation: Conversation, tokenizer: Any) -> list[Sample]:
    with Template.choose(tokenizer, spec) as template:
        return ChatRenderer(tokenizer, template).encode(conversation, 0)


def _learned(sample: Sample) -> list[Learned]:
    """The tokens of a sample; an END where something is learned behind the last one."""
    pairs = list(zip([*sample.input_ids.tolist(), END], [NO_TARGET, *sample.targets.tolist()], strict=True))
    return pairs if pairs[-1][1] != NO_TARGET else pairs[:-1]


def _stretches(side: Side, tokens: list[Learned], tokenizer: Any, sample: int) -> Iterator[Stretch]:
    def kind(token: Learned) -> tuple[bool, str | None]:
        index, target = token
        return index == target, None if target in (index, NO_TARGET) else tokenizer.decode([target])

    for (trained, instead), some in groupby(tokens, kind):
        ids = tuple(index for index, _ in some if index != END)
        yield Stretch(side, tokenizer.decode(ids), ids, trained, instead, sample)


def _words(first: str, second: str, conversation: Conversation) -> Any:
    """A tokenizer whose tokens are the words of the conversation under both templates."""
    control = tokens_of(first, second)
    texts = []
    for spec in (first, second):
        with Template.choose(made_tokenizer(control), spec) as template:
            texts.append(template.render_one(conversation.messages, tools=conversation.tools))
    return made_tokenizer(control, texts=texts)


def default_conversation() -> Conversation:
    """What is shown where no row is named."""
    return shapes()["system, several turns"]
