"""A chat template and the process that renders it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import secrets
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.errors import UserError
from luthier.types import Message

CLOCK = "2026-01-01T00:00:00"
"""What `strftime_now` says: a template that writes today's date would make the same run differ from day to day."""

MEMORY_BYTES = 1 << 30
BATCH_LIMIT_S = 20.0
START_LIMIT_S = 30.0
SANDBOX = Path(__file__).with_name("sandbox.py")
MARK_TAG = re.compile(r"\{%([-+]?)(\s*)(end)?generation(\s*)([-+]?)%\}")
FIX = "data.chat_template=FILE.jinja names another template"


@dataclass(frozen=True, slots=True)
class Request:
    """One rendering: messages as (role, content), and whether the assistant's header is put at the end."""

    messages: tuple[tuple[str, str], ...]
    add_generation_prompt: bool = False
    marked: bool = False
    """whether the text carries the marks of what the assistant says"""


class Template:
    """A chat template: its source, where it is from, and rendering.

    `source` is what the tokenizer or file holds; `saved_source` the same without generation marks, which other programs
    do not know, and what is saved with a model. `begin`, `end` and `cut` are private marks that no data can hold.
    """

    def __init__(
        self,
        source: str,
        origin: str,
        special_tokens: Mapping[str, str],
        *,
        from_file: bool = False,
        clock: str = CLOCK,
    ) -> None:
        self.source = source
        self.origin = origin
        self.from_file = from_file
        self.special_tokens = dict(special_tokens)
        self.clock = clock
        self.marked = MARK_TAG.search(source) is not None
        self.saved_source = MARK_TAG.sub(_as_plain_block, source)
        nonce = secrets.token_hex(8)
        self.begin, self.end, self.cut = (f"\U0010fffd{nonce}{kind}" for kind in "bec")
        self.marks = re.compile(f"\U0010fffd{nonce}([bec])")
        self._process: subprocess.Popen[str] | None = None

    @classmethod
    def choose(cls, tokenizer: Any, spec: str = "auto") -> Template:
        """The tokenizer's own template (`auto`; of several, the one named `default`), or that of a Jinja file.

        Raises:
            UserError: the tokenizer has none, or the file cannot be read.
        """
        special = {key: str(value) for key, value in tokenizer.special_tokens_map.items() if isinstance(value, str)}
        if spec != "auto":
            path = Path(spec)
            try:
                return cls(path.read_text(encoding="utf-8"), spec, special, from_file=True)
            except (OSError, UnicodeDecodeError) as error:
                raise UserError(
                    f"data.chat_template: {spec}",
                    f"cannot be read: {getattr(error, 'strerror', None) or error}",
                    "auto, or a Jinja file in UTF-8",
                ) from None
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
            raise UserError(
                "data.chat_template",
                "the model's tokenizer has no chat template (a base model has none)",
                "a template",
                "data.chat_template=FILE.jinja, or format: text for data without roles",
            )
        return cls(source, "the tokenizer", special)

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
        process = self._started()
        lines = [
            {
                "messages": [{"role": role, "content": content} for role, content in request.messages],
                "add_generation_prompt": request.add_generation_prompt,
                "template": "marked" if request.marked else "plain",
            }
            for request in requests
        ]
        answers = self._ask(process, lines, BATCH_LIMIT_S)
        return [item["text"] if "text" in item else self._failed(item["error"]) for item in answers]

    def render_one(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> str:
        """The text of one conversation. Raises UserError as the template does."""
        (text,) = self.render(
            [Request(tuple((message.role, message.content) for message in messages), add_generation_prompt)]
        )
        if isinstance(text, UserError):
            raise text
        return text

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
        if self._process is not None:
            _end(self._process)
            self._process = None

    def __enter__(self) -> Template:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _started(self) -> subprocess.Popen[str]:
        if self._process is not None:
            return self._process
        # -P: the script's own folder stays out of the import path. Its own session: ctrl-c reaches the parent only.
        process = subprocess.Popen(
            [sys.executable, "-P", str(SANDBOX)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            start_new_session=True,
        )
        self._process = process
        weakref.finalize(self, _end, process)
        setup = {
            "sources": {"marked": self.source, "plain": self.saved_source},
            "clock": self.clock,
            "special_tokens": self.special_tokens,
            "begin": self.begin,
            "end": self.end,
            "memory_bytes": MEMORY_BYTES,
        }
        answer = self._ask(process, setup, START_LIMIT_S)
        if "error" in answer:
            self.close()
            raise UserError(
                f"{self.origin}:{answer['line']}"
                if self.from_file
                else f"chat template of {self.origin}, line {answer['line']}",
                f"no Jinja template: {answer['error']}",
                "a chat template",
                FIX,
            )
        return process

    def _ask(self, process: subprocess.Popen[str], value: Any, limit_s: float) -> Any:
        """Sends one line and waits for one."""
        if process.stdin is None or process.stdout is None:
            raise RuntimeError("the template's process was started without pipes")
        late = threading.Event()

        def stop() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(limit_s, stop)
        timer.start()
        try:
            process.stdin.write(json.dumps(value) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            timer.cancel()
        if not line.endswith("\n"):
            self.close()
            found = f"it did not finish within {limit_s:g} s" if late.is_set() else "its process ended (out of memory?)"
            raise self._failed(found)
        return json.loads(line)

    def _failed(self, reason: str) -> UserError:
        return UserError(
            f"chat template of {self.origin}" if not self.from_file else self.origin,
            reason,
            "a template that renders these messages",
            FIX,
        )


def _as_plain_block(match: re.Match[str]) -> str:
    """A block that does nothing in the place of a mark: what it does to white space around it stays."""
    left, before, is_end, after, right = match.groups()
    return f"{{%{left}{before}{'endif' if is_end else 'if true'}{after}{right}%}}"


def _end(process: subprocess.Popen[str]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
    try:
        process.wait(timeout=2)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
