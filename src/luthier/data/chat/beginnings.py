"""The beginnings of conversations: what is served before each answer, and what is written up to its end.

A conversation of n answers has 2 n of them, and each is nearly as long as the whole. So the process that renders gets the messages
once and gives of each beginning only what the text of the whole does not begin with: mostly nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from luthier.data.chat.sandbox import common
from luthier.data.chat.template import MESSAGE_CHARACTERS, Template, TemplateMessage, as_line
from luthier.errors import UserError

Place = tuple[int, bool]
"""How many messages, and whether the generation prompt follows them."""
MOST_WORK = 1 << 25
"""Characters of messages (MESSAGE_CHARACTERS more for each) that are rendered for one line of requests."""


@dataclass(frozen=True, slots=True)
class Beginning:
    """A text as the part of another one with which it begins, and what it has of its own behind that."""

    base: str
    shared: int
    """so many characters, and no more, are those of `base`"""
    own: str

    def __str__(self) -> str:
        return self.base[: self.shared] + self.own

    def beside(self, text: str, other: Beginning) -> Beginning:
        """The same, as part of `text`, which is that of `other`; both have the same base."""
        if self.shared < other.shared:
            return Beginning(text, self.shared, self.own)
        if self.shared > other.shared:
            return Beginning(text, other.shared, self.base[other.shared : self.shared] + self.own)
        more = common(self.own, other.own)
        return Beginning(text, self.shared + more, self.own[more:])


@dataclass
class Chain:
    """Messages of which beginnings are wanted, each only once."""

    messages: tuple[TemplateMessage, ...]
    tools: str
    wanted: dict[Place, None] = field(default_factory=dict)

    def want(self, count: int, prompted: bool) -> Place:
        self.wanted[count, prompted] = None
        return count, prompted

    def lines(self) -> Iterator[tuple[dict[str, Any], int]]:
        """What the process that renders is asked, and how much work each of it is."""
        sizes = (MESSAGE_CHARACTERS + sum(len(text or "") for text in part) for part in self.messages)
        until = list(accumulate(sizes, initial=len(self.tools)))
        some, work = list[Place](), until[-1]
        for count, prompted in self.wanted:
            if some and work + until[count] > MOST_WORK:
                yield self._line(some), work
                some, work = [], until[-1]
            some.append((count, prompted))
            work += until[count]
        if some:
            yield self._line(some), work

    def _line(self, some: list[Place]) -> dict[str, Any]:
        return {**as_line(self.messages, self.tools), "beginnings": some}


class Chains:
    """Conversations, those among them that begin another one as a part of it."""

    def __init__(self) -> None:
        self.all: list[Chain] = []
        self._of: dict[int, list[Chain]] = {}
        """by the hash of each beginning"""

    def hold(self, messages: tuple[TemplateMessage, ...], tools: str) -> Chain:
        """The chain that begins with these messages; a new one where there is none. The longest come first."""
        hashes = list(accumulate(messages, lambda before, part: hash((before, part)), initial=hash(tools)))
        for chain in self._of.get(hashes[-1], ()):
            if chain.tools == tools and chain.messages[: len(messages)] == messages:
                return chain
        chain = Chain(messages, tools)
        self.all.append(chain)
        for one in hashes[1:]:
            self._of.setdefault(one, []).append(chain)
        return chain

    def render(self, template: Template) -> list[dict[Place, Beginning | UserError]]:
        """What is wanted of each chain, or the error in its place. Raises UserError as `Template.render`."""
        lines = [(chain, *line) for chain in self.all for line in chain.lines()]
        answers = template.answers((line, work) for _, line, work in lines)
        found: dict[int, dict[Place, Beginning | UserError]] = {id(chain): {} for chain in self.all}
        for (chain, line, _), answer in zip(lines, answers, strict=True):
            for place, one in zip(line["beginnings"], answer["beginnings"], strict=True):
                error = one.get("error")
                begun = (
                    Beginning(answer["whole"], one["shared"], one["own"]) if error is None else template.failed(error)
                )
                found[id(chain)][place] = begun
        return list(found.values())
