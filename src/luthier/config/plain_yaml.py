"""YAML text to plain values, with limits that hold while it is read: before anything is built, and whatever it unpacks to.

`1e-5` is a number, `no` is a string, a duplicate key is an error. Maps, lists, text, numbers, true, false and null are all
that there is: tags make nothing.
"""

from __future__ import annotations

import warnings
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import CollectionEndEvent, CollectionStartEvent, DocumentStartEvent, NodeEvent
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.parser import Parser
from ruamel.yaml.reader import ReaderError

from luthier.errors import UserError, excerpt

Lines = dict[tuple[str | int, ...], int]
"""The line of each key and item, by its path."""


@dataclass(frozen=True)
class Limits:
    """What a document may hold, with what its aliases stand for."""

    values: int = 20_000
    characters: int = 500_000
    levels: int = 50


OF_A_PERSON = Limits()
OF_A_RUN = Limits(values=1_000_000, characters=20_000_000)
"""What luthier wrote from one that was within the limits: it has every default in it."""

NUMBER_CHARACTERS = 400
"""Of the longest number; the largest float in full has 309."""


class _Refused(YAMLError):
    """What YAML allows and a configuration does not."""

    def __init__(self, line: int, found: str, expected: str, fix: str = "") -> None:
        super().__init__(found)
        self.line, self.found, self.expected, self.fix = line, found, expected, fix


class _Bounded(Parser):
    """Stops at the event that is one too many, so a long text costs no more than a short one."""

    limits = OF_A_PERSON
    values = 0
    levels = 0

    def get_event(self) -> Any:
        event = super().get_event()
        if isinstance(event, NodeEvent):
            self.values += 1
            self.levels += isinstance(event, CollectionStartEvent)
            _bounded(self.limits, self.values, self.levels, event.start_mark.line + 1)
            if (tag := getattr(event, "ctag", None)) is not None:
                raise _Refused(
                    event.start_mark.line + 1,
                    f"a tag, {excerpt(str(tag))}",
                    "text, numbers, true or false, lists and maps, which need none",
                    "write the value without what begins with !",
                )
        elif isinstance(event, CollectionEndEvent):
            self.levels -= 1
        elif isinstance(event, DocumentStartEvent) and event.version not in (None, (1, 2)):
            written = ".".join(map(str, event.version))
            raise _Refused(event.start_mark.line + 1, f"YAML {written}", "YAML 1.2", f"leave %YAML {written} out")
        return event


def _bounded(limits: Limits, values: int, levels: int, line: int) -> None:
    if values > limits.values:
        raise _Refused(line, f"more than {limits.values:,} values (aliases count as what they stand for)", "fewer")
    if levels > limits.levels:
        raise _Refused(line, f"more than {limits.levels} levels, one in the other", "keys, and at most lists of maps")


def read(text: str, source: str, limits: Limits = OF_A_PERSON) -> tuple[Any, Lines]:
    """(the plain value of a YAML text, the lines of its parts).

    Args:
        source: names the text in errors.

    Raises:
        UserError: no YAML, a duplicate key, a tag, or more than `limits` allow; with the line.
    """
    if len(text) > limits.characters:
        raise UserError(source, f"{len(text):,} characters", f"a configuration, at most {limits.characters:,}")
    try:
        tree = _Tree(limits)
        return tree.value(_composed(text, limits), ()), tree.lines
    except _Refused as error:
        raise UserError(_at(source, error.line), error.found, error.expected, error.fix) from None
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        found = f"this is no YAML: the character U+{ord(text[error.position]):04X} may not stand in it"
        raise UserError(_at(source, line), found, "text without control characters") from None
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UserError(
            _at(source, line), f"this is no YAML: {_first_line(error)}", "key: value lines; spaces, no tabs"
        ) from None
    except (YAMLError, ValueError) as error:
        raise UserError(source, f"this is no YAML: {_first_line(error)}", "key: value lines") from None


def _composed(text: str, limits: Limits) -> Node | None:
    yaml = YAML(typ="safe", pure=True)
    yaml.Parser = type("_", (_Bounded,), {"limits": limits})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an anchor that is used twice is YAML
        node: Node | None = yaml.compose(text)
    return node


def _at(source: str, line: int) -> str:
    return source if source == "command line" else f"{source}:{line}"


def _first_line(error: Exception) -> str:
    return (getattr(error, "problem", None) or str(error)).strip().splitlines()[0][:120]


@dataclass
class _Tree:
    """Plain values of nodes; what stands behind an alias is counted each time."""

    limits: Limits
    lines: Lines = field(default_factory=dict)
    values: int = 0
    characters: int = 0

    def value(self, node: Node | None, path: tuple[str | int, ...]) -> Any:
        if node is None:
            return None
        line = node.start_mark.line + 1
        self.values += 1
        _bounded(self.limits, self.values, len(path), line)
        if isinstance(node, MappingNode):
            return {key: self.value(value, (*path, key)) for key, value in self._items(node, path).items()}
        if isinstance(node, SequenceNode):
            self.lines |= {(*path, index): item.start_mark.line + 1 for index, item in enumerate(node.value)}
            return [self.value(item, (*path, index)) for index, item in enumerate(node.value)]
        assert isinstance(node, ScalarNode)
        self.characters += len(node.value)
        if self.characters > self.limits.characters:
            raise _Refused(
                line, f"more than {self.limits.characters:,} characters, with what aliases stand for", "less"
            )
        return _scalar(node, line)

    def _items(self, node: MappingNode, path: tuple[str | int, ...], depth: int = 0) -> dict[str, Node]:
        """The values by their keys; what `<<` brings stands behind what is written."""
        _bounded(self.limits, self.values, depth, node.start_mark.line + 1)
        own: dict[str, Node] = {}
        merged: dict[str, Node] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if isinstance(key, ScalarNode) and _kind(key) == "merge":
                for part in value.value if isinstance(value, SequenceNode) else [value]:
                    if not isinstance(part, MappingNode):
                        raise _Refused(line, "<< with something else than a map", "<<: *NAME, where &NAME is a map")
                    self.values += 1 + len(part.value)  # each key is put in anew
                    for name, behind in self._items(part, path, depth + 1).items():
                        merged.setdefault(name, behind)
                continue
            name = _scalar(key, line) if isinstance(key, ScalarNode) else "a list or a map"
            if not isinstance(name, str) or not isinstance(key, ScalarNode):
                raise _Refused(line, f"the key {excerpt(name)} is no string", "names as keys")
            if name in own:
                raise _Refused(
                    line,
                    f"the key {excerpt(name)} stands here a second time",
                    "each key once",
                    "delete one of the two",
                )
            own[name] = value
            if not depth:
                self.lines[(*path, name)] = line
        return {**own, **{name: value for name, value in merged.items() if name not in own}}


def _kind(node: ScalarNode) -> str:
    return str(node.tag).rpartition(":")[2]


def _scalar(node: ScalarNode, line: int) -> Any:
    """What a plain word stands for by YAML 1.2's rules. A date is text: no key takes one."""
    text, kind = node.value, _kind(node)
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() == "true"
    if kind not in ("int", "float"):
        return text
    if len(text) > NUMBER_CHARACTERS:
        raise _Refused(line, f"a number of {len(text):,} characters", f"at most {NUMBER_CHARACTERS}")
    digits = text.replace("_", "").lower()
    with suppress(ValueError):  # ruamel takes "-_" for a number
        if kind == "int":
            sign, digits = (-1, digits[1:]) if digits.startswith("-") else (1, digits.removeprefix("+"))
            return sign * int(digits, {"0x": 16, "0o": 8, "0b": 2}.get(digits[:2], 10))
        return float(digits.replace(".inf", "inf").replace(".nan", "nan"))
    return text
