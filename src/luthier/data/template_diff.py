"""Two templates on one conversation: where their tokens, or what is trained of them, part."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any, Literal

from luthier.config import DataFile
from luthier.data.reading import recognised
from luthier.data.render import ChatRenderer
from luthier.data.row_names import NUMBER, RowName
from luthier.data.source import sources
from luthier.data.template import Template
from luthier.data.template_check import made_tokenizer, shapes, tokens_of
from luthier.errors import UserError
from luthier.types import Conversation, Row, Sample

Side = Literal["both", "first", "second"]


@dataclass(frozen=True, slots=True)
class Stretch:
    """Tokens that stand in both texts or in one of them, all trained or none."""

    side: Side
    text: str
    ids: tuple[int, ...]
    trained: bool


def row_at(place: str) -> Conversation:
    """The conversation of a row, `FILE:N`.

    Raises:
        UserError: no such file or row, or the row is no conversation.
    """
    wanted, at_line = RowName.read(place), ""
    if not wanted.file:
        raise UserError(f"--row {place}", "no file", "FILE:N", f"--row train.jsonl:{wanted.number}")
    for source in sources(DataFile(path=wanted.file), "--row"):
        named = RowName(source.name, wanted.number)
        for row in source.rows():
            if not isinstance(row, Row):
                if named.means(row.row):
                    raise row
            elif row.number == wanted.number:
                return _conversation(row, source.name)
            elif row.line == wanted.number:
                at_line = f"--row {row.id} is the one that begins at line {row.line}"
    raise UserError(f"--row {place}", f"{wanted.file} has no row {wanted.number}", f"FILE:N; {NUMBER}", at_line)


def _conversation(row: Row, name: str) -> Conversation:
    found = recognised([row], name, "--row").parse(row)
    if not isinstance(found, Conversation):
        raise UserError(row.place, f"a {type(found).__name__.lower()}", "a conversation: nothing else needs a template")
    return found


def difference(first: str, second: str, conversation: Conversation, tokenizer: Any | None = None) -> list[Stretch]:
    """The tokens of both templates in order. Where a template trains one answer at a time, those of the last answer.

    Args:
        first: a name, a file, or `auto`.
        tokenizer: without one, words, <s>, </s> and the control tokens of both templates.

    Raises:
        UserError: a template is not there, or refuses the conversation.
    """
    used = tokenizer if tokenizer is not None else _words(first, second, conversation)
    samples = [_encoded(spec, conversation, used) for spec in (first, second)]
    tokens = [list(zip(*_ids_and_trained(sample), strict=True)) for sample in samples]
    matcher = SequenceMatcher(a=tokens[0], b=tokens[1], autojunk=False)
    out: list[Stretch] = []
    for kind, a, b, c, d in matcher.get_opcodes():
        if kind == "equal":
            out += _stretches("both", tokens[0][a:b], used)
        else:
            out += [*_stretches("first", tokens[0][a:b], used), *_stretches("second", tokens[1][c:d], used)]
    return out


def _encoded(spec: str, conversation: Conversation, tokenizer: Any) -> Sample:
    with Template.choose(tokenizer, spec) as template:
        return ChatRenderer(tokenizer, template).encode(conversation, 0)[-1]


def _ids_and_trained(sample: Sample) -> tuple[list[int], list[bool]]:
    """A target that is not the next id is of no token of the text."""
    return sample.input_ids.tolist(), [False, *(sample.targets[:-1] == sample.input_ids[1:]).tolist()]


def _stretches(side: Side, tokens: list[tuple[int, bool]], tokenizer: Any) -> Iterator[Stretch]:
    start = 0
    for end in range(1, len(tokens) + 1):
        if end == len(tokens) or tokens[end][1] != tokens[start][1]:
            ids = tuple(index for index, _ in tokens[start:end])
            yield Stretch(side, tokenizer.decode(ids), ids, tokens[start][1])
            start = end


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
