"""From conversations to samples: rendered once, cut at the start of each answer, the parts encoded apart.

So the ids before an answer are those of the prompt that is served for it, by construction. What the assistant says is
told by the template's generation marks, else by prefix renders: the render of the messages up to an answer with the
generation prompt, and that of the messages with the answer, must both begin the render of the whole.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np

from luthier.data.chat.beginnings import Beginning, Chain, Chains, Place
from luthier.data.chat.encoded import Encoded, Evidence, Turn
from luthier.data.chat.laws import (
    ANOTHER_TEMPLATE,
    MARKS_CHANGE_NOTHING,
    TEMPLATE_ONLY_APPENDS,
    Broken,
    LawBroken,
    check,
)
from luthier.data.chat.library import Facts, token_ids
from luthier.data.chat.ordinary_tokens import ordinary_tokens_of
from luthier.data.chat.splitting import answers_of, one_answer_each
from luthier.data.chat.stop_tokens import stop_ids_of
from luthier.data.chat.template import PROBE, Request, Template, TemplateMessage, probing
from luthier.data.chat.tokenize import Encoder, Piece
from luthier.data.chat.tools import changed_tools, extras_of, has_extras
from luthier.errors import BadRow, UserError
from luthier.types import NO_TARGET, Conversation, Message, Sample, Text

SPLITTABLE = {
    TEMPLATE_ONLY_APPENDS,
    "served_prompt_is_trained_prefix",
    "every_message_is_shown",
    "every_tool_call_and_thought_is_shown",
}
"""Laws that a conversation may break because a template writes what is history otherwise than what is new."""


@dataclass(frozen=True, slots=True)
class _Rendered:
    text: str
    plain: str
    turns: tuple[Turn, ...]
    cuts: list[int]
    drops_system: bool = False


@dataclass(slots=True)
class _Plan:
    """Where the texts of one conversation are found."""

    chain: Chain
    plain: Place
    whole: int | None = None
    """the text with our marks; None where it is the plain one"""
    probe: int | None = None
    turns: list[tuple[Place, Place]] = field(default_factory=list)
    """of each answer: what is served before it, and what is written up to its end"""


class ChatRenderer:
    """Implements `types.Renderer`: samples under one tokenizer and one template, each checked by the laws.

    `prefetch` encodes many examples at once; `encode_conversation` and `encode_text` then find them ready.
    """

    def __init__(self, tokenizer: Any, template: Template | None, stop_ids: Iterable[int] = ()) -> None:
        self.tokenizer = tokenizer
        self.template = template
        facts = template.facts if template is not None else Facts()
        own_stops = token_ids(facts.stop, tokenizer)
        written = ordinary_tokens_of(template, tokenizer) if template is not None else {}
        self.encoder = Encoder(tokenizer, written | token_ids(facts.tokens, tokenizer) | own_stops)
        self.stop_ids: set[int] = stop_ids_of(tokenizer) | set(stop_ids) | set(own_stops.values())
        """ids that end generation: the tokenizer's end token, those of the model's generation_config.json and those that
        the template's header names"""
        self.stop_target = next(iter(own_stops.values()), None) if facts.inner_stop == "target" else None
        """the target behind an answer that ends without a stop token because more follows"""
        self._ready: dict[Conversation | Text, Encoded | UserError] = {}
        self._split: dict[Conversation, tuple[Encoded, ...]] = {}

    def encode(self, example: Conversation | Text, index: int) -> list[Sample]:
        """The samples of an example: one; but one for each answer, each a group of its own, where the template writes an
        answer otherwise once it is history, so that each is trained as it is served. Raises UserError (BadRow).
        """
        parts = self.encoded_parts(example)
        return [sample_of(found, example.row, index, group) for group, found in enumerate(parts)]

    def encode_conversation(self, conversation: Conversation, index: int) -> Sample:
        """The sample of a conversation. Raises UserError (BadRow): not rendered, or a law is broken."""
        return sample_of(self.encoded(conversation), conversation.row, index)

    def encode_text(self, text: Text, index: int) -> Sample:
        """The sample of plain text: BOS where the tokenizer adds one, the text, EOS; all trained. Raises UserError
        (BadRow).
        """
        return sample_of(self.encoded(text), text.row, index)

    def encoded(self, example: Conversation | Text) -> Encoded:
        """An example in tokens, as one sample, with the evidence for the laws. Raises UserError (BadRow)."""
        if example not in self._ready:
            self.prefetch([example])
        found = self._ready[example]
        if isinstance(found, UserError):
            raise found
        return found

    def encoded_parts(self, example: Conversation | Text) -> tuple[Encoded, ...]:
        """An example in tokens, as the samples of `encode`. Raises UserError (BadRow)."""
        if example not in self._ready:
            self.prefetch([example])
        if isinstance(example, Conversation) and example in self._split:
            return self._split[example]
        return (self.encoded(example),)

    def prefetch(self, examples: Sequence[Conversation | Text]) -> None:
        """Encodes many examples at once; what was prefetched before is forgotten."""
        self._ready = self._encode(examples)
        parts = dict[Conversation, tuple[Conversation, ...]]()
        for example, found in list(self._ready.items()):
            if isinstance(found, LawBroken) and found.law in SPLITTABLE and isinstance(example, Conversation):
                try:
                    parts[example] = one_answer_each(example)
                except BadRow as error:
                    self._ready[example] = error
        ready = self._encode([part for some in parts.values() for part in some]) if any(parts.values()) else {}
        self._split = {}
        for example, some in parts.items():
            found_parts = [ready[part] for part in some]
            kept = tuple(found for found in found_parts if isinstance(found, Encoded))
            if kept and len(kept) == len(found_parts):
                self._split[example] = kept
            elif some:  # what is wrong with a part of it is wrong however it is trained
                self._ready[example] = next(found for found in found_parts if isinstance(found, UserError))

    def _encode(self, examples: Sequence[Conversation | Text]) -> dict[Conversation | Text, Encoded | UserError]:
        """Each example in tokens, or what is wrong with it."""
        conversations = [example for example in examples if isinstance(example, Conversation)]
        rendered = self._render(conversations)
        ready: dict[Conversation | Text, Encoded | UserError] = {}
        work: list[tuple[Conversation | Text, _Rendered, list[Piece]]] = []
        found_for: dict[Conversation | Text, _Rendered | UserError] = dict(zip(conversations, rendered, strict=True))
        found_for |= {example: self._text(example) for example in examples if isinstance(example, Text)}
        for example, found in found_for.items():
            if isinstance(found, UserError):
                ready[example] = found
            else:
                work.append((example, found, self._pieces(found)))
        ids = iter(self.encoder.encode([piece for _, _, some in work for piece in some]))
        joints = [self.encoder.joints(some) for _, _, some in work]
        differ = self.encoder.differ(joint for some in joints for joint in some)
        for (example, found, some), around in zip(work, joints, strict=True):
            other = any(differ[joint] for joint in around)
            ready[example] = self._judge(example, found, some, [next(ids) for _ in some], other)
        return ready

    def prompt_ids(self, messages: Sequence[Message], tools: str = "") -> list[int]:
        """What is served to get an answer: the messages and the generation prompt, encoded as in training. Raises
        UserError.
        """
        (found,) = self._render([Conversation(tuple(messages), "prompt", tools)], prompt=True)
        if isinstance(found, UserError):
            raise found
        return [index for ids in self.encoder.encode(self._pieces(found, prompt=True)) for index in ids]

    # ---- rendering

    def _render(self, conversations: Sequence[Conversation], prompt: bool = False) -> list[_Rendered | UserError]:
        """Renders conversations; with `prompt`, as they are served: the generation prompt at the end, unstable turns
        left whole.
        """
        if not conversations:
            return []
        template = self._template()
        raws = [tuple(self._part(message) for message in conversation.messages) for conversation in conversations]
        chains, plans = Chains(), dict[int, _Plan]()
        requests: dict[Request, int] = {}
        for number in sorted(range(len(raws)), key=lambda number: -len(raws[number])):
            conversation, raw = conversations[number], raws[number]
            tools, chain = conversation.tools, chains.hold(raw, conversation.tools)
            shown = tuple(self._part(message, apart=True) for message in self._parted(conversation.messages))
            apart = changed_tools(tools, self._cut_apart) if tools else ""
            plan = plans[number] = _Plan(chain, chain.want(len(raw), prompt))
            if template.marked or shown != raw or apart != tools:
                request = Request(shown, prompt, template.marked, apart)
                plan.whole = requests.setdefault(request, len(requests))
            if (probe := probing(raw)) != raw:
                plan.probe = requests.setdefault(Request(probe, prompt, tools=tools), len(requests))
            for index in answers_of(conversation):
                before = chain.want(index, True)
                plan.turns.append((before, before if template.marked else chain.want(index + 1, False)))
        texts = template.render(list(requests))
        begun = dict(zip(map(id, chains.all), chains.render(template), strict=True))
        return [
            self._assemble(conversation, plans[number], texts, begun[id(plans[number].chain)], prompt)
            for number, conversation in enumerate(conversations)
        ]

    def _template(self) -> Template:
        if self.template is None:
            raise UserError(
                "data.chat_template",
                "the model's tokenizer has no chat template (a base model has none)",
                "a template for conversations",
                "data.chat_template=FILE.jinja, or a name that `luthier template list` shows",
            )
        return self.template

    def _parted(self, messages: tuple[Message, ...]) -> tuple[Message, ...]:
        """The messages, with our private mark where one content begins a control token and the next one ends it: some
        templates write nothing between them.
        """
        out = list(messages)
        for (index, message), following in zip(enumerate(messages), messages[1:], strict=False):
            words = message.content.rstrip()
            if self.encoder.completes_control(words, following.content.lstrip()):
                cut = words + self._template().cut + message.content[len(words) :]
                out[index] = replace(message, content=cut)
        return tuple(out)

    def _part(self, message: Message, apart: bool = False) -> TemplateMessage:
        """A message as the template gets it; `apart`: with control tokens in its texts cut."""
        content = self._cut_apart(message.content) if apart else message.content
        if not has_extras(message):
            return message.role, content
        shown = content if content or not message.tool_calls else self._template().empty_content
        return message.role, shown, extras_of(message, self._cut_apart if apart else None)

    def _cut_apart(self, content: str) -> str:
        """The content with our private mark inside every control token that is written out in it."""
        places = self.encoder.places_inside_control(content)
        if not places:
            return content
        return self._template().cut.join(
            content[a:b] for a, b in zip([0, *places], [*places, len(content)], strict=True)
        )

    def _assemble(
        self,
        conversation: Conversation,
        plan: _Plan,
        texts: list[str | UserError],
        begun: dict[Place, Beginning | UserError],
        prompt: bool,
    ) -> _Rendered | UserError:
        """Finds the assistant's turns in the rendered text."""
        answers = answers_of(conversation)
        own = begun[plan.plain]
        whole = texts[plan.whole] if plan.whole is not None else str(own) if isinstance(own, Beginning) else own
        probe = texts[plan.probe] if plan.probe is not None else PROBE  # where it fails, it says nothing
        wanted = (whole, own, *(begun[place] for turn in plan.turns for place in turn))
        failed = next((one for one in wanted if isinstance(one, UserError)), None)
        if failed is not None:
            return BadRow(conversation.row, "chat template", failed.found, failed.expected, failed.fix)
        assert isinstance(whole, str)
        assert isinstance(own, Beginning)
        template, plain = self._template(), str(own)
        text, spans, cuts = template.unmark(whole)
        if text != plain:
            found = "the template writes another text where control tokens from the data are taken apart"
            return LawBroken(conversation.row, {MARKS_CHANGE_NOTHING: Broken(found, "the same text", ANOTHER_TEMPLATE)})
        if template.marked and len(spans) != len(answers):
            found = f"{len(spans)} parts marked by {{% generation %}} for {len(answers)} answers"
            return BadRow(conversation.row, "chat template", found, "one marked part for each answer")
        turns = []
        for number, index in enumerate(answers):
            message = conversation.messages[index]
            before, after = (_beside(plain, own, begun[place]) for place in plan.turns[number])
            if template.marked:
                start, limit = spans[number]
            elif not before.own and not after.own:
                start, limit = before.shared, after.shared
            elif prompt or not message.train:
                continue
            else:
                found = f"not prefix-stable: what it writes for messages 0 to {index} changes when more follow"
                fix = "data.chat_template=FILE.jinja: a copy with {% generation %} marks around the answers"
                broken = Broken(found, "a template that only appends", fix)
                return LawBroken(conversation.row, {TEMPLATE_ONLY_APPENDS: broken})
            turns.append(self._turn(index, message, text, (start, limit), before, cuts))
        drops_system = isinstance(probe, str) and PROBE not in probe
        return _Rendered(text, plain, tuple(turns), cuts, drops_system)

    def _turn(
        self, index: int, message: Message, text: str, limits: tuple[int, int], before: Beginning, cuts: list[int]
    ) -> Turn:
        """The turn within `limits`, ending after its stop token: the first control token behind the answer."""
        start, span = limits[0], text[slice(*limits)]
        words = message.content if message.content in span else message.content.strip()
        behind = span.find(words) + len(words) if words in span else 0
        stop = self.encoder.find_control(span, behind)
        if message.tool_calls or message.thinking:
            behind, stop = len(span.rstrip()), self._stop_of_template(span, start, cuts)
        marked = self.template is not None and self.template.marked
        end = stop.end() if stop else len(span) if marked or behind == 0 else behind
        return Turn(
            index,
            message,
            start,
            start + end,
            stop.group() if stop else "",
            span[end:] if marked else "",
            before,
            message.train,
        )

    def _stop_of_template(self, span: str, start: int, cuts: list[int]) -> re.Match[str] | None:
        """The first token in `span` (which begins at `start` of the text) that ends generation and is not from the data;
        where there is none, the last control token. Between calls and thoughts a template writes other control tokens.
        """
        found, at = None, 0
        while match := self.encoder.find_control(span, at):
            at = match.end()
            cut = bisect_right(cuts, start + match.start())
            if cut < len(cuts) and cuts[cut] < start + at:
                continue
            found = match
            if self.encoder.control[match.group()] in self.stop_ids:
                break
        return found

    def _text(self, text: Text) -> _Rendered | UserError:
        if self.encoder.eos_id is None:
            return BadRow(
                text.row,
                "text",
                "the tokenizer has no end token, so a text could not be ended",
                "a tokenizer with an eos_token",
            )
        return _Rendered(text.text, text.text, (), self.encoder.places_inside_control(text.text))

    # ---- encoding

    def _pieces(self, found: _Rendered, prompt: bool = False) -> list[Piece]:
        """The text in parts: cut at both ends of each turn and inside control tokens from the data.

        Training has nothing behind the last trained turn, where nothing can be learned.
        """
        trained = [turn for turn in found.turns if turn.trained]
        end = trained[-1].end if trained and not prompt else len(found.text)
        edges = sorted(
            {
                0,
                end,
                *(
                    edge
                    for edge in (*found.cuts, *(edge for turn in found.turns for edge in (turn.start, turn.end)))
                    if edge < end
                ),
            }
        )
        pieces: list[Piece] = []
        starts = [turn.start for turn in trained]
        for start, stop in pairwise(edges):
            after = self.encoder.control_at_end(pieces[-1].text) if pieces else ""
            turn = bisect_right(starts, start) - 1
            inside = not found.turns or (turn >= 0 and stop <= trained[turn].end)
            pieces.append(Piece(found.text[start:stop], after, inside))
        return pieces

    def _judge(
        self, example: Conversation | Text, found: _Rendered, pieces: list[Piece], parts: list[list[int]], differs: bool
    ) -> Encoded | LawBroken:
        """Puts the parts together and checks the laws."""
        encoder, is_text = self.encoder, isinstance(example, Text)
        ids: list[int] = []
        if is_text and encoder.adds_bos and encoder.bos_id is not None:
            ids = [encoder.bos_id]
        trained = [True] * len(ids)
        places, length = {0: len(ids)}, 0
        for piece, part in zip(pieces, parts, strict=True):
            ids += part
            trained += [piece.trained] * len(part)
            length += len(piece.text)
            places[length] = len(ids)
        written = [example.text] if isinstance(example, Text) else [one.content for one in example.messages]
        expected = sum(encoder.count_control(piece.text) for piece in pieces)
        expected -= sum(map(encoder.count_indivisible, written))
        if is_text and encoder.eos_id is not None:
            ids, trained, expected = [*ids, encoder.eos_id], [*trained, True], expected + 1 + places[0]
        trained[:1] = [False]
        evidence = Evidence(
            messages=() if isinstance(example, Text) else example.messages,
            text=found.text[:length],
            plain=found.plain,
            turns=found.turns,
            ids=ids,
            trained=trained,
            spans=[(places[turn.start], places[turn.end]) for turn in found.turns if turn.trained],
            control_expected=expected,
            control_ids=encoder.control_ids,
            control=encoder.control,
            stop_ids=frozenset(self.stop_ids),
            bos_id=encoder.bos_id,
            bos_wanted=not is_text and encoder.adds_bos and self._bos_is_missed,
            inner_stop=self.template.facts.inner_stop if self.template is not None else "",
            tools="" if isinstance(example, Text) else example.tools,
            drops_system=found.drops_system,
        )
        targets = self._stop_targets(evidence) if self.stop_target is not None else ()
        encoded = Encoded(ids, evidence.trained, differs, bool(found.cuts), evidence, targets)
        broken = check(evidence, example.row)
        if broken is not None:
            broken.encoded = encoded
        return broken or encoded

    @property
    def _bos_is_missed(self) -> bool:
        """Whether a template without BOS is more likely a slip: one from a file whose header does not say otherwise."""
        template = self._template()
        return template.from_file and template.facts.bos != "none"

    def _stop_targets(self, evidence: Evidence) -> tuple[tuple[int, int], ...]:
        """Behind each trained answer that ends without a stop token: its last position and the stop token's id."""
        assert self.stop_target is not None
        trained = [turn for turn in evidence.turns if turn.trained]
        spans = zip(trained, evidence.spans, strict=True)
        return tuple((end - 1, self.stop_target) for turn, (_, end) in spans if not turn.stop)


def _beside(plain: str, own: Beginning, begun: Beginning | UserError) -> Beginning:
    assert isinstance(begun, Beginning)
    return begun.beside(plain, own)


def sample_of(encoded: Encoded, row: str, index: int, group: int = 0) -> Sample:
    """Position i is trained to predict id i + 1 where that id is the assistant's; at the end of an answer inside the
    text some templates want the stop token, which does not stand there.
    """
    ids = np.asarray(encoded.ids, dtype=np.int64)
    targets = np.full(len(ids), NO_TARGET, dtype=np.int64)
    trained = np.asarray(encoded.trained[1:], dtype=bool)
    targets[:-1][trained] = ids[1:][trained]
    for position, stop in encoded.stop_targets:
        targets[position] = stop
    return Sample(ids, targets, row, index, group)
