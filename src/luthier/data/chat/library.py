"""The chat templates that come with luthier: `templates/*.jinja`, one file each, with a header that says what they are.

A header is the comment at the beginning of a template: `key: value` lines, further lines of a value indented. It stays in
the template when that is saved with a model, so whoever opens the model knows the same of it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

from luthier.component import nearest
from luthier.errors import UserError

FOLDER = Path(__file__).parents[2] / "templates"
HEADER = re.compile(r"\{#-?\s*(name:.*?)-?#\}", re.DOTALL)
NAMED_TOKENS = ("bos_token", "eos_token")
"""Words of a header that stand for the tokenizer's own token."""

InnerStop = Literal["", "yes", "no", "target"]
Bos = Literal["", "first", "every-turn", "none", "unless-added"]
SystemTurn = Literal["", "own", "folded", "refused"]
Thinking = Literal["", "no", "kept", "stripped"]
YesOrNo = Literal["", "yes", "no"]
CHOICES = {"default": YesOrNo, "inner_stop": InnerStop, "bos": Bos, "system": SystemTurn, "tools": YesOrNo}
CHOICES |= {"thinking": Thinking}
"""The values that a key of a header can have; "" stands for a header without it."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What the header of a template says; empty where there is none."""

    name: str = ""
    version: str = ""
    default: bool = False
    """whether the name without a version means this one"""
    source: str = ""
    """where the format is from"""
    tokens: tuple[str, ...] = ()
    """control tokens that it writes; `bos_token` and `eos_token` are the tokenizer's"""
    stop: tuple[str, ...] = ()
    """tokens that end an answer"""
    inner_stop: InnerStop = ""
    """whether answers before the last one carry the stop token; `target`: it is what comes after them, but not in the text"""
    bos: Bos = ""
    """`none`: as it should be; `unless-added`: none, so a tokenizer that begins every text with one is refused"""
    system: SystemTurn = ""
    tools: bool = False
    thinking: Thinking = ""
    """whether thoughts are shown; `stripped`: not those before the last request"""

    @property
    def full_name(self) -> str:
        return f"{self.name}@{self.version}" if self.version else self.name


@dataclass(frozen=True, slots=True)
class Shipped:
    """One template of the library."""

    facts: Facts
    path: Path

    @property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")


def facts_of(source: str) -> Facts:
    """The header of a template.

    Raises:
        ValueError: a key is unknown, or has a value that it cannot have.
    """
    match = HEADER.match(source)
    if match is None:
        return Facts()
    values: dict[str, str] = {}
    key = ""
    for line in match[1].strip().splitlines():
        if line[:1].isspace():
            values[key] += " " + line.strip()
            continue
        key, colon, value = line.partition(":")
        if not colon or key in values or key not in Facts.__slots__:
            raise ValueError(f"the header of the template has the line {line!r}")
        values[key] = value.strip()
    for name, choices in CHOICES.items():
        if values.get(name, "") not in get_args(choices):
            raise ValueError(f"the header of the template has {name}: {values[name]}")
    parsed: dict[str, Any] = dict(values)
    parsed |= {name: tuple(values.get(name, "").split()) for name in ("tokens", "stop")}
    parsed |= {name: values.get(name) == "yes" for name in ("default", "tools")}
    return Facts(**parsed)


def with_system_folded(source: str) -> str:
    """A template whose header, if it has one, says that the system text goes into the first request."""
    match = HEADER.match(source)
    if match is None:
        return source
    return re.sub(r"^system: \w+$", "system: folded", match[0], flags=re.MULTILINE) + source[match.end() :]


@cache
def library() -> dict[str, Shipped]:
    """All templates by their full name."""
    shipped = (Shipped(facts_of(path.read_text(encoding="utf-8")), path) for path in sorted(FOLDER.glob("*.jinja")))
    return {one.facts.full_name: one for one in shipped}


def names() -> list[str]:
    """Every name that can be asked for: full names, and the names alone that stand for a default version."""
    return sorted({*library(), *(one.facts.name for one in library().values())})


def is_name(spec: str) -> bool:
    """Whether a value of `chat_template` is meant as a name, not as a file: it has neither a folder nor an ending.

    A file of the same name as a template is `./NAME`.
    """
    return spec in names() or not (Path(spec).exists() or "/" in spec or "\\" in spec or spec.endswith(ENDINGS))


ENDINGS = (".jinja", ".jinja2", ".j2", ".txt", ".json")


def find(name: str, line: str = "data.chat_template={}") -> Shipped:
    """The template of a name: `chatml`, `alpaca@stanford`.

    Raises:
        UserError: there is none; names the nearest.
    """
    found = library().get(name) or next(
        (one for one in library().values() if one.facts.name == name and one.facts.default), None
    )
    if found is None:
        near = nearest(name, names(), 1)
        raise UserError(
            f"data.chat_template: {name}",
            "there is no template of this name, and no such file",
            "auto, a Jinja file, or one of "
            + ", ".join(one for one in names() if "@" not in one)
            + ", or a version of one",
            line.format(near[0]) if near else "luthier template list",
        )
    return found


def of_model_type(model_type: str) -> list[Facts]:
    """The templates that bear the name of a `model_type` of config.json, the likeliest first: of its own number, else of the newest
    that is not newer (`gemma2` is served by `gemma`); usual versions before others. None for a name that no template has.
    """
    stem, number = _stem_and_number(model_type)
    found = [one.facts for one in library().values() if stem and _stem_and_number(one.facts.name)[0] == stem]

    def rank(facts: Facts) -> tuple[bool, float, bool]:
        own = _stem_and_number(facts.name)[1]
        return number > 0 and int(own) > number, -own, not facts.default

    return sorted(found, key=rank)


def of_any_model(has: Callable[[Facts], bool]) -> list[str]:
    """The names of what serves a model of no family that is known: ChatML, or what writes no tokens of its own.

    Args:
        has: whether the tokenizer has the tokens of a template.
    """
    usual = ("chatml", *(one.facts.name for one in library().values() if {*one.facts.tokens} <= {*NAMED_TOKENS}))
    return [name for name in dict.fromkeys(usual) if has(find(name).facts)]


def _stem_and_number(name: str) -> tuple[str, float]:
    """`qwen2_moe` -> (`qwen`, 2); `llama3.1` -> (`llama`, 3.1); no number is 0."""
    match = re.match(r"([a-z]+)(\d+(?:\.\d+)?)?", name.lower())
    return (match[1], float(match[2] or 0)) if match else ("", 0.0)


def missing_tokens(facts: Facts, tokenizer: Any) -> list[str]:
    """The tokens that a template writes and a tokenizer does not have as one token."""
    missing = []
    for token in dict.fromkeys((*facts.tokens, *facts.stop)):
        if token in NAMED_TOKENS:
            if getattr(tokenizer, token) is None:
                missing.append(token)
            continue
        index = tokenizer.convert_tokens_to_ids(token)
        if index is None or (index == tokenizer.unk_token_id and token != tokenizer.unk_token):
            missing.append(token)
    return missing


def refuse_missing_tokens(facts: Facts, tokenizer: Any) -> None:
    """Raises UserError where the tokenizer lacks tokens of the template; names the templates whose tokens it has."""
    missing = missing_tokens(facts, tokenizer)
    if not missing:
        return
    fitting = [name for name, one in library().items() if not missing_tokens(one.facts, tokenizer)]
    raise UserError(
        f"data.chat_template: {facts.full_name}",
        f"it writes {' '.join(missing)}, which the model's tokenizer does not have",
        "a template whose tokens it has" + (": " + ", ".join(fitting) if fitting else ""),
        "data.chat_template=auto" if tokenizer.chat_template else "",
    )


def token_ids(tokens: tuple[str, ...], tokenizer: Any) -> dict[str, int]:
    """Text of each token of a header that the tokenizer has: its id."""
    texts = [getattr(tokenizer, token) if token in NAMED_TOKENS else token for token in tokens]
    found = {str(text): tokenizer.convert_tokens_to_ids(text) for text in texts if text is not None}
    return {text: index for text, index in found.items() if index is not None and index != tokenizer.unk_token_id}
