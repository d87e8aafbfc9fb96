"""Renders chat templates in a process of its own: templates are code from strangers, and Jinja's sandbox bounds neither
time nor memory.

Started as a file (not as a module of luthier), so that it imports nothing but jinja2 and starts fast. It speaks JSON
lines: the first line from its parent is the setup, each later one a list of requests; it answers each with a list of
`{"text"}` or `{"error"}`. It ends when its input does.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import resource
import sys
from collections.abc import Callable
from itertools import accumulate
from typing import Any

from jinja2 import Environment, Template, TemplateError, TemplateSyntaxError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

OUTPUT_CHARS = 1_000_000
OUTPUT_SHARE = 8
"""A render may have OUTPUT_CHARS characters, and OUTPUT_SHARE times those of its messages."""

TEMPLATE_FAULTS = (
    TemplateError,
    ArithmeticError,
    LookupError,
    TypeError,
    ValueError,
    AttributeError,
    RuntimeError,
    AssertionError,
    MemoryError,
)
"""What code in a template can raise (RecursionError is a RuntimeError)."""


class GenerationMarks(Extension):
    """`{% generation %}...{% endgeneration %}`: what stands between is what the assistant says. Written as marks into
    the text.
    """

    tags = {"generation"}  # noqa: RUF012 - jinja2's own attribute
    begin = ""
    end = ""

    def parse(self, parser: Parser) -> list[nodes.Node]:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return [self._data(self.begin, line), *body, self._data(self.end, line)]

    def _data(self, text: str, line: int) -> nodes.Node:
        return nodes.Output([nodes.TemplateData(text, lineno=line)], lineno=line)


class SafeNamespace(Namespace):
    """A namespace without names that start with an underscore, which lead to Python's internals."""

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise SecurityError(f"a template may not set {name!r}")
        super().__setitem__(name, value)


def environment(begin: str, end: str, clock: str) -> Environment:
    """The environment in which transformers renders chat templates, with a clock that stands still."""
    now = datetime.datetime.fromisoformat(clock)
    marks = type("Marks", (GenerationMarks,), {"begin": begin, "end": end})
    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[marks, loopcontrols])
    made.filters["tojson"] = _to_json
    made.globals.update(raise_exception=_raise, strftime_now=now.strftime, namespace=SafeNamespace)
    return made


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """Not Jinja's own filter, which escapes for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> None:
    raise TemplateError(message)


class Asked:
    """The messages and tools of a request, and how much of them there is."""

    def __init__(self, request: dict[str, Any]) -> None:
        messages = request["messages"]
        tools = request.get("tools", "")
        sizes = (len(message["content"] or "") + len(message.get("extras", "")) for message in messages)
        self.written = list(accumulate(sizes, initial=len(tools)))
        """characters of the first so many messages, and of the tools"""
        if request.get("extras"):
            messages = [message | json.loads(message.pop("extras", "{}")) for message in messages]
        self.messages = messages
        self.tools = json.loads(tools) if tools else None

    def render(self, template: Template, count: int, prompted: bool, special_tokens: dict[str, str]) -> dict[str, str]:
        """The text of the first `count` messages, or the error in its place."""
        limit = OUTPUT_CHARS + OUTPUT_SHARE * self.written[count]
        pieces, size = [], 0
        values = {
            "messages": self.messages[:count],
            "tools": self.tools,
            "documents": None,
            "add_generation_prompt": prompted,
        }
        try:
            for piece in template.generate(**values, **special_tokens):
                size += len(piece)
                if size > limit:
                    return {"error": f"it writes more than {limit:,} characters"}
                pieces.append(piece)
            text = "".join(pieces)
            text.encode()
            return {"text": text}
        except UnicodeEncodeError as error:
            return {"error": f"it writes half of a surrogate pair (\\u{ord(error.object[error.start]):04x})"}
        except MemoryError:
            return {"error": "it needs too much memory"}
        except TEMPLATE_FAULTS as error:
            return {"error": f"{type(error).__name__}: {str(error)[:300]}"}


def render(template: Template, request: dict[str, Any], special_tokens: dict[str, str]) -> dict[str, Any]:
    """The text of a request, or the error in its place. Where beginnings are asked for: the text of the whole, and of each of
    them how many characters of that it begins with, and what follows.
    """
    asked = Asked(request)
    wanted = request.get("beginnings")
    if wanted is None:
        return asked.render(template, len(asked.messages), request["add_generation_prompt"], special_tokens)
    whole = asked.render(template, len(asked.messages), False, special_tokens).get("text", "")
    answers, room = [], OUTPUT_CHARS + OUTPUT_SHARE * asked.written[-1]
    for count, prompted in wanted:
        found: dict[str, Any] = asked.render(template, count, prompted, special_tokens)
        if "text" in found:
            shared = common(whole, found["text"])
            own = found["text"][shared:]
            room -= len(own)
            found = {"shared": shared, "own": own} if room >= 0 else {"error": "it writes each answer's history anew"}
        answers.append(found)
    return {"whole": whole, "beginnings": answers}


def common(one: str, other: str) -> int:
    """With how many characters both begin."""
    if one.startswith(other):
        return len(other)
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def main() -> None:
    setup = json.loads(sys.stdin.readline())
    with contextlib.suppress(ValueError, OSError):  # some systems have no such limit; the parent's limit on time stays
        resource.setrlimit(resource.RLIMIT_AS, (setup["memory_bytes"], setup["memory_bytes"]))
    answer: Callable[[Any], None] = lambda value: print(json.dumps(value), flush=True)  # noqa: E731
    try:
        made = environment(setup["begin"], setup["end"], setup["clock"])
        templates = {name: made.from_string(source) for name, source in setup["sources"].items()}
    except TemplateSyntaxError as error:
        answer({"error": str(error.message)[:300], "line": error.lineno})
        return
    except TEMPLATE_FAULTS as error:
        answer({"error": f"{type(error).__name__}: {str(error)[:300]}", "line": 1})
        return
    answer({"ready": True})
    for line in sys.stdin:
        answer(
            [render(templates[request["template"]], request, setup["special_tokens"]) for request in json.loads(line)]
        )


if __name__ == "__main__":
    main()
