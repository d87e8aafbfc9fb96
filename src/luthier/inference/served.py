"""The proof that another engine reads what was trained: llama.cpp's server, given the exported tokenizer and template,
makes of conversations the very ids that luthier served them as.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.data.chat.renderer import ChatRenderer
from luthier.errors import EnvironmentProblem, UserError, excerpt
from luthier.models.gguf_tokenizer import NotExpressible, write_tokenizer
from luthier.system.secrets import without_secrets
from luthier.types import Message

Ids = list[int]
Messages = tuple[Message, ...]

PACKAGE = "xllamacpp"
ENGINE = "llama.cpp"
CHILD = Path(__file__).with_name("served_child.py")
LIMIT_S = 300.0
CONVERSATIONS = 200
ODD_CONVERSATIONS = 20
"""Of each kind of text that engines are known to read differently."""

SYSTEMS = (
    "You are a careful assistant.",
    "Answer in one sentence.",
    "Отвечай кратко.",
    "请用中文回答。",
    "Be kind 🙂.",
)
PARTS = (
    "What is the capital of France?",
    "   three spaces come first",
    " one space comes first",
    "Add 12345 and 67,890.12; then subtract 3.14159.",
    "On 2026-01-31 at 08:05 it was -7 °C, ½ of it.",
    "今天天气怎么样？我想去公园散步。",
    "東京は日本の首都です。カタカナも。",
    "안녕하세요, 반갑습니다!",
    "Столица России — Москва.",
    "مرحبا، كيف حالك؟",
    "नमस्ते दुनिया",
    "😀 🎉 👩‍👩‍👧 and text",
    "naïve café, Ünïcode, Ærøskøbing",
    "It's WE'LL he'd I'm you've DON'T",
    "def add(a, b):\n    return a + b  # sum\n",
    "one\n\ntwo\n\n\n\tthree\t\tfour",
    "a=b;c!=d && (e||f) -> {g: [h]} // i",
    "HTTPServer camelCase snake_case ALLCAPS x1y2z3",
    "https://example.org/path?q=1&r=%20#end",
    "... ??? !!! --- ___ *** ~~~",
    "supercalifragilisticexpialidocious antidisestablishmentarianism",
    "ends with a space ",
)
ANSWERS = (
    "Paris.",
    "It is 80,235.12, and then 80231.97841.",
    "好的，没问题。",
    "はい、そうです。",
    "Да, конечно.",
    "😀 Sure!",
    "def f(x):\n    return x\n\nIt doubles nothing.",
    "1. first\n2. second\n\n- third",
    "They're fine; we'll see.",
)


@dataclass(frozen=True)
class Compared:
    """What the comparison with an engine found."""

    engine: str
    """its name and that of its package, with the version"""
    conversations: int
    """compared, all of them equal; 0 where none was compared"""
    not_compared: str = ""
    """why not; "" where it was"""
    read_otherwise: dict[str, int] | None = None
    """of further conversations, ODD_CONVERSATIONS of each kind: how many the engine reads as other ids"""

    def as_text(self) -> str:
        """For the terminal."""
        if self.not_compared:
            return f"prompt ids were not compared with {self.engine}: {self.not_compared}"
        lines = [f"prompt ids equal for {self.conversations} conversations ({self.engine})"]
        lines += [
            f"  of {ODD_CONVERSATIONS} more that {kind}, {self.engine.split()[0]} reads {count} as other ids than luthier"
            for kind, count in (self.read_otherwise or {}).items()
            if count
        ]
        return "\n".join(lines)


def compare(folder: Path, renderer: ChatRenderer, system: str | None = None) -> Compared:
    """Compares what llama.cpp makes of an exported folder's tokenizer and template with the prompts of `renderer`.

    Args:
        folder: a transformers folder.
        renderer: of the run: what was trained.
        system: the text that the folder's template puts before conversations that have none.

    Raises:
        UserError: the ids of a conversation differ; names the first.
        EnvironmentProblem: the engine fails.
    """
    if importlib.util.find_spec(PACKAGE) is None:
        fix = f"{PACKAGE} is not installed; pip install 'luthier[llama-cpp]' and export again"
        return Compared(ENGINE, 0, not_compared=fix)
    engine = f"{ENGINE} in {PACKAGE} {importlib.metadata.version(PACKAGE)}"
    if renderer.template is None:
        return Compared(engine, 0, not_compared="there is no chat template")
    plain, odd = conversations(renderer)
    every = [*plain, *(messages for some in odd.values() for messages in some)]
    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary) / "tokenizer.gguf"
        try:
            write_tokenizer(_tokenizer(folder), file)
        except NotExpressible as error:
            return Compared(engine, 0, not_compared=f"the tokenizer cannot be written as GGUF: {error}")
        answers = iter(ask(file, every))
    for number, messages in enumerate(plain, start=1):
        ours, theirs = renderer.prompt_ids(_spoken(messages, system)), next(answers)
        if ours != theirs:
            raise _differs(renderer, engine, f"conversation {number} of {len(plain)}", messages, ours, theirs)
    others = {
        kind: sum(renderer.prompt_ids(_spoken(messages, system)) != next(answers) for messages in some)
        for kind, some in odd.items()
    }
    return Compared(engine, len(plain), read_otherwise=others)


def ask(file: Path, conversations: Sequence[Messages]) -> list[Ids | str]:
    """The ids that llama.cpp's server makes of each conversation's prompt, or its error. Raises EnvironmentProblem."""
    questions, answers = file.with_suffix(".questions.json"), file.with_suffix(".answers.json")
    chats = [[{"role": message.role, "content": message.content} for message in messages] for messages in conversations]
    questions.write_text(json.dumps(chats), encoding="utf-8")
    command = [sys.executable, "-P", str(CHILD), str(file), str(questions), str(answers)]
    try:
        done = subprocess.run(command, capture_output=True, check=False, timeout=LIMIT_S, env=without_secrets())
    except subprocess.TimeoutExpired:
        raise EnvironmentProblem(ENGINE, f"did not answer within {LIMIT_S:g} s", "an engine that answers") from None
    if done.returncode != 0 or not answers.is_file():
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise EnvironmentProblem(
            ENGINE,
            f"ended with status {done.returncode}: {excerpt(' '.join(last), 200)}",
            "an engine that reads the tokenizer's GGUF file",
            "--unproven exports without asking it",
        )
    found: list[Ids | str] = json.loads(answers.read_text(encoding="utf-8"))
    return found


def conversations(renderer: ChatRenderer) -> tuple[list[Messages], dict[str, list[Messages]]]:
    """CONVERSATIONS that every engine should read alike, and by kind those with text that engines are known to read
    otherwise; the same ones each time. With system texts where the template takes them.
    """
    takes_system = _takes_system(renderer)
    draw = random.Random(0)

    def made(*odd: str) -> Messages:
        parts = [*PARTS, *odd]
        messages = [Message("system", draw.choice(SYSTEMS))] if takes_system and draw.random() < 0.4 else []
        for _ in range(draw.randrange(4)):
            messages.append(Message("user", draw.choice(("", " ", "\n")).join(draw.choices(parts, k=2))))
            messages.append(Message("assistant", draw.choice(ANSWERS)))
        last = [*odd, *draw.choices(parts, k=draw.randint(1, 3))]
        return (*messages, Message("user", draw.choice(("", " ", "\n")).join(last)))

    kinds = {
        "spell out a control token": [word for word in renderer.encoder.control if word.strip()][:1],
        "hold accents as characters of their own": ["Cafe\u0301"],
    }
    return (
        [made() for _ in range(CONVERSATIONS)],
        {kind: [made(*odd) for _ in range(ODD_CONVERSATIONS)] for kind, odd in kinds.items() if odd},
    )


def _spoken(messages: Messages, system: str | None) -> Messages:
    return messages if not system or messages[0].role == "system" else (Message("system", system), *messages)


def _takes_system(renderer: ChatRenderer) -> bool:
    try:
        renderer.prompt_ids([Message("system", SYSTEMS[0]), Message("user", PARTS[0])])
    except UserError:
        return False
    return True


def _tokenizer(folder: Path) -> Any:
    from luthier.models.reading import load_tokenizer

    return load_tokenizer(folder, False)


def _differs(
    renderer: ChatRenderer, engine: str, name: str, messages: Messages, ours: Ids, theirs: Ids | str
) -> UserError:
    """The first difference, in tokens."""
    fix = "--unproven writes the folder all the same; luthier chat serves it as it was trained"
    prompt = excerpt(messages[-1].content, 60)
    if isinstance(theirs, str):
        return UserError(f"{name} ({prompt})", f"{engine} cannot render it: {theirs}", "the prompt as trained", fix)
    at = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))

    def shown(ids: Ids) -> str:
        return " ".join(f"{index}{renderer.tokenizer.decode([index])!r}" for index in ids[at : at + 4]) or "the end"

    return UserError(
        f"{name} ({prompt})",
        f"{engine} makes other ids of it, from token {at} on: {shown(theirs)}",
        f"as trained: {shown(ours)}",
        fix,
    )
