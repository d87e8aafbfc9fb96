"""A chat template and the process that renders it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from luthier.data.chat.default_system import without_default_system
from luthier.data.chat.library import (
    HEADER,
    Facts,
    facts_of,
    find,
    is_name,
    missing_tokens,
    of_any_model,
    refuse_missing_tokens,
    with_system_folded,
)
from luthier.data.chat.sandboxed import NoAnswer, Sandbox
from luthier.data.chat.tools import extras_of, has_extras
from luthier.errors import UserError
from luthier.types import Message, ToolCall

CLOCK = "2026-01-01T00:00:00"
"""What `strftime_now` says: a template that writes today's date would make the same run differ from day to day."""
DATE = re.compile(r"""strftime_now\(\s*(?:'([^'\\]*)'|"([^"\\]*)")\s*\)""")
DATE_DEFINED = re.compile(r"strftime_now\s+is\s+(not\s+)?defined")

MEMORY_BYTES = 1 << 30
BATCH_CHARACTERS = 1 << 22
"""Of the messages that are rendered in one go: bounds time and memory of the process, whatever the rows are like."""
MESSAGE_CHARACTERS = 64
"""A message is as much work as so many characters."""
BATCH_LIMIT_S = 20.0
START_LIMIT_S = 30.0
MARK_TAG = re.compile(r"\{%([-+]?)(\s*)(end)?generation(\s*)([-+]?)%\}")
FIX = "data.chat_template=FILE.jinja, or a name that `luthier template list` shows, is another template"

FOLD = (
    "{% if messages[0].role == 'system' %}"
    "{% if messages | length < 2 or messages[1].role != 'user' %}"
    "{{ raise_exception('there is no request into which the system text could be put') }}{% endif %}"
    "{% set messages = [{'role': 'user', 'content': messages[0].content + '\\n\\n' + messages[1].content}]"
    " + messages[2:] %}{% endif %}"
)
"""Puts the system text at the beginning of the first request, before the template proper sees the messages."""

THINKING = "{%% if enable_thinking is not defined %%}{%% set enable_thinking = %s %%}{%% endif %%}"
"""What was chosen for training is what holds where a server says nothing else."""

TemplateMessage = tuple[str, str] | tuple[str, str | None, str]
"""A message for a template: role, content, and what it has beside them, as JSON."""


def as_template_message(message: Message) -> TemplateMessage:
    """A message as a template gets it."""
    return (
        (message.role, message.content, extras_of(message)) if has_extras(message) else (message.role, message.content)
    )


PROBE = "A text that stands in no data."


def probing(messages: tuple[TemplateMessage, ...]) -> tuple[TemplateMessage, ...]:
    """Messages of the same shape with PROBE for the system text, to see whether a template shows it; where there is none,
    the same messages.
    """
    if messages[0][0] != "system":
        return messages
    others = (
        (part[0], part[1] and "a") if len(part) == 2 else (part[0], part[1] and "a", part[2]) for part in messages[1:]
    )
    return ("system", PROBE), *others


@dataclass(frozen=True, slots=True)
class Request:
    """One rendering: the messages, and whether the assistant's header is put at the end."""

    messages: tuple[TemplateMessage, ...]
    add_generation_prompt: bool = False
    marked: bool = False
    """whether the text carries the marks of what the assistant says"""
    tools: str = ""
    """a JSON list of schemas; "" for none"""

    @property
    def work(self) -> int:
        """Characters of the messages, and MESSAGE_CHARACTERS more for each."""
        sizes = (MESSAGE_CHARACTERS + sum(len(text or "") for text in part) for part in self.messages)
        return len(self.tools) + sum(sizes)

    def as_line(self) -> dict[str, Any]:
        """What the process that renders is told."""
        line = as_line(self.messages, self.tools)
        kind = "marked" if self.marked else "plain"
        return {**line, "add_generation_prompt": self.add_generation_prompt, "template": kind}


def as_line(messages: Sequence[TemplateMessage], tools: str) -> dict[str, Any]:
    """Messages and tools as the process that renders is told of them."""
    line: dict[str, Any] = {
        "messages": [
            {"role": part[0], "content": part[1], **({"extras": part[2]} if len(part) == 3 else {})}
            for part in messages
        ],
        "template": "plain",
    }
    if any(len(part) == 3 for part in messages):
        line["extras"] = True
    if tools:
        line["tools"] = tools
    return line


class Template:
    """A chat template: its source, where it is from, and rendering.

    `source` is what the tokenizer or file holds; `saved_source` is what is saved with a model: the same without generation
    marks, which other programs do not know, and with the date of training where it asks for today's.
    `added_lines`: how many of its lines the file does not have. `begin`, `end` and `cut` are private marks that no data can
    hold.
    """

    def __init__(
        self,
        source: str,
        origin: str,
        special_tokens: Mapping[str, str],
        *,
        from_file: bool = False,
        clock: str = CLOCK,
        facts: Facts | None = None,
        added_lines: int = 0,
    ) -> None:
        self.source = source
        self.facts = facts if facts is not None else Facts()
        self.origin = origin
        self.added_lines = added_lines
        self.from_file = from_file
        self.special_tokens = dict(special_tokens)
        self.clock = clock
        self.marked = MARK_TAG.search(source) is not None
        self.saved_source = _with_the_date(MARK_TAG.sub(_as_plain_block, source), clock)
        nonce = secrets.token_hex(8)
        self.begin, self.end, self.cut = (f"\U0010fffd{nonce}{kind}" for kind in "bec")
        self.marks = re.compile(f"\U0010fffd{nonce}([bec])")
        self._sandbox: Sandbox | None = None

    @classmethod
    def choose(
        cls,
        tokenizer: Any,
        spec: str = "auto",
        on_system: Literal["template", "fold"] = "template",
        enable_thinking: bool | None = None,
    ) -> Template:
        """The tokenizer's own template (`auto`; of several, the one named `default`), one that comes with luthier, or
        that of a Jinja file.

        Args:
            on_system: `fold` puts a system text into the first request.
            enable_thinking: the template's variable of this name; None leaves it to the template.

        Raises:
            UserError: there is no such template, it cannot be read, or it does not fit the tokenizer or the options.
        """
        special = {key: str(value) for key, value in tokenizer.special_tokens_map.items() if isinstance(value, str)}
        if spec == "auto":
            source, origin, facts = _own(tokenizer), "the tokenizer", Facts()
            with contextlib.suppress(ValueError):  # another program's comment
                facts = facts_of(source)
        else:
            origin = spec
            source, facts = read_template(spec)
        if on_system == "fold":
            source = with_system_folded(source)
            facts = replace(facts, system="folded") if facts.system else facts
        before = source
        source = without_default_system(source)
        refuse_missing_tokens(facts, tokenizer)
        prelude = FOLD if on_system == "fold" else ""
        if enable_thinking is not None:
            if "enable_thinking" not in source:
                raise UserError(
                    "data.enable_thinking",
                    f"the chat template of {origin} does not know it",
                    "a template that thinks on demand",
                    "leave data.enable_thinking out",
                )
            prelude += THINKING % str(enable_thinking).lower()
        whole = _behind_header(source, prelude)
        added = whole.count("\n") - before.count("\n")
        return cls(whole, origin, special, from_file=spec != "auto", facts=facts, added_lines=added)

    @property
    def fingerprint(self) -> str:
        """A hash of everything that decides what is rendered."""
        return hashlib.sha256(
            json.dumps([self.source, self.clock, self.special_tokens], sort_keys=True).encode()
        ).hexdigest()

    def render(self, requests: Sequence[Request]) -> list[str | UserError]:
        """The text of each request, or the error in its place.

        Raises:
            UserError: the template is no Jinja, or needs too much time; nothing can be rendered.
        """
        answers = self.answers((request.as_line(), request.work) for request in requests)
        return [item["text"] if "text" in item else self.failed(item["error"]) for item in answers]

    def answers(self, lines: Iterable[tuple[dict[str, Any], int]]) -> list[Any]:
        """What the process that renders answers to lines, of each of which it is said how much work it is. Raises UserError as
        `render`.
        """
        answers: list[Any] = []
        for some in _by_work(lines):
            answers += self._ask(self._started(), some, BATCH_LIMIT_S)
        return answers

    def render_one(self, messages: Sequence[Message], *, add_generation_prompt: bool = False, tools: str = "") -> str:
        """The text of one conversation. Raises UserError as the template does."""
        (text,) = self.render(
            [Request(tuple(as_template_message(message) for message in messages), add_generation_prompt, tools=tools)]
        )
        if isinstance(text, UserError):
            raise text
        return text

    @cached_property
    def empty_content(self) -> str | None:
        """The content of a message that calls tools and says nothing: "", or None where only then the call is shown.
        Templates differ in which of them they look for.
        """
        call = extras_of(Message("assistant", "", tool_calls=(ToolCall("probing", "{}"),)))
        requests = [Request((("user", "a"), ("assistant", content, call))) for content in ("", None)]
        empty, none = (text if isinstance(text, str) else "" for text in self.render(requests))
        return None if "probing" not in empty and "probing" in none and "None" not in none else ""

    def unmark(self, text: str) -> tuple[str, list[tuple[int, int]], list[int]]:
        """A marked text without its marks, the spans between begin and end, and the places of the cuts (character
        offsets).
        """
        pieces, spans, cuts, opened, length = [], [], [], [0], 0
        for index, piece in enumerate(self.marks.split(text)):
            if index % 2 == 0:
                pieces.append(piece)
                length += len(piece)
            elif piece == "c":
                cuts.append(length)
            elif piece == "b":
                opened.append(length)
            else:
                spans.append((opened.pop(), length))
        return "".join(pieces), spans, cuts

    def close(self) -> None:
        """Ends the process, if one runs. A later render starts it again."""
        if self._sandbox is not None:
            self._sandbox.close()
            self._sandbox = None

    def __enter__(self) -> Template:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _started(self) -> Sandbox:
        if self._sandbox is not None and not self._sandbox.has_ended:
            return self._sandbox
        self._sandbox = Sandbox(self.origin)
        setup = {
            "sources": {"marked": self.source, "plain": self.saved_source},
            "clock": self.clock,
            "special_tokens": self.special_tokens,
            "begin": self.begin,
            "end": self.end,
            "memory_bytes": MEMORY_BYTES,
        }
        answer = self._ask(self._sandbox, setup, START_LIMIT_S)
        if "error" in answer:
            self.close()
            line = answer["line"] - self.added_lines
            raise UserError(
                f"{self.origin}:{line}" if self.from_file else f"chat template of {self.origin}, line {line}",
                f"no Jinja template: {answer['error']}",
                "a chat template",
                FIX,
            )
        return self._sandbox

    def _ask(self, sandbox: Sandbox, value: Any, limit_s: float) -> Any:
        try:
            return sandbox.ask(value, limit_s)
        except NoAnswer as error:
            raise self.failed(str(error)) from None

    def failed(self, reason: str) -> UserError:
        """The error of messages that are not rendered."""
        fold = "data.on_system=fold puts the system text into the first request; " if "system" in reason.lower() else ""
        return UserError(
            f"chat template of {self.origin}" if not self.from_file else self.origin,
            reason,
            "a template that renders these messages",
            fold + FIX,
        )


def _by_work(lines: Iterable[tuple[dict[str, Any], int]]) -> Iterator[list[dict[str, Any]]]:
    """Lines in their order, about BATCH_CHARACTERS of work at a time."""
    some, size = list[dict[str, Any]](), 0
    for line, work in lines:
        some.append(line)
        size += work
        if size >= BATCH_CHARACTERS:
            yield some
            some, size = [], 0
    if some:
        yield some


def _with_the_date(source: str, clock: str) -> str:
    """The source with the date of `clock` wherever it asks for today's: it is served as it was trained, on any day."""
    now = datetime.fromisoformat(clock)
    dated = DATE.sub(lambda match: json.dumps(now.strftime(match[1] or match[2] or ""), ensure_ascii=False), source)
    return DATE_DEFINED.sub(lambda match: "false" if match[1] else "true", dated)


def read_template(spec: str, line: str = "data.chat_template={}") -> tuple[str, Facts]:
    """The text and header of a template that comes with luthier, or of a Jinja file.

    Args:
        line: what is to be typed with the name that was meant.

    Raises:
        UserError: there is no such template, or it cannot be read.
    """
    if is_name(spec):
        shipped = find(spec, line)
        return shipped.text, shipped.facts
    try:
        source = Path(spec).read_text(encoding="utf-8")
        _refuse_what_is_no_jinja(spec, source)
        return source, facts_of(source)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"data.chat_template: {spec}",
            f"cannot be read: {getattr(error, 'strerror', None) or error}",
            "auto, a name that `luthier template list` shows, or a Jinja file in UTF-8",
        ) from None
    except ValueError as error:
        raise UserError(spec, str(error), "the keys and values of the headers in luthier's templates") from None


def read_all(*specs: str) -> None:
    """Raises UserError, as `read_template`, where a name or a file among them cannot be used. `auto` is a model's."""
    for spec in specs:
        if spec != "auto":
            read_template(spec)


def _refuse_what_is_no_jinja(spec: str, source: str) -> None:
    """Any text is a Jinja template to Jinja: one that says the same whatever the messages are. Raises UserError."""
    is_json = True
    try:
        json.loads(source)
    except ValueError:
        is_json = False
    if is_json or not ("{{" in source or "{%" in source):
        raise UserError(
            f"data.chat_template: {spec}",
            "this is JSON, no chat template" if is_json else "this is no chat template: there is no Jinja in it",
            "a Jinja file that writes the messages: {% for message in messages %} ...",
            "luthier template show chatml > mine.jinja is one to begin with",
        )


def _own(tokenizer: Any) -> str:
    """The template that a tokenizer carries. Raises UserError where it has none."""
    source = tokenizer.chat_template
    if isinstance(source, Mapping):
        if "default" not in source:
            raise UserError(
                "data.chat_template",
                f"the tokenizer has templates named {', '.join(source)}, none named default",
                "one template",
                FIX,
            )
        source = source["default"]
    if not source:
        fitting = of_any_model(lambda facts: not missing_tokens(facts, tokenizer))
        raise UserError(
            "data.chat_template",
            "the model's tokenizer has no chat template (a base model has none)",
            "a template",
            " or ".join(f"data.chat_template={name}" for name in fitting[:1]) or FIX,
        )
    return str(source)


def _behind_header(source: str, prelude: str) -> str:
    """The template with statements put before it. The line break behind them is none of its text: a block's own line
    break is left out, as transformers sets Jinja.
    """
    if not prelude:
        return source
    header = HEADER.match(source)
    if header is None:
        return f"{prelude}\n{source}"
    body = source[header.end() :]
    body = body.lstrip() if header[0].endswith("-#}") else body.removeprefix("\n")
    return f"{header[0]}\n{prelude}\n{body}"


def _as_plain_block(match: re.Match[str]) -> str:
    """A block that does nothing in the place of a mark: what it does to white space around it stays."""
    left, before, is_end, after, right = match.groups()
    return f"{{%{left}{before}{'endif' if is_end else 'if true'}{after}{right}%}}"
