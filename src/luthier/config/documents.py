"""YAML 1.2 with places: every key and value knows its file and line."""

from __future__ import annotations

import stat
from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.representer import SafeRepresenter

from luthier.config import plain_yaml
from luthier.config.components import COMPONENTS
from luthier.config.plain_yaml import OF_A_PERSON, Limits
from luthier.errors import EnvironmentProblem, UserError, excerpt

MAIN_PARTS = {"model": "path", "data": "train", "train": "path", **{place[-1]: "kind" for place in COMPONENTS}}
"""What a bare value of a key stands for."""
WITH_KEYS = {*MAIN_PARTS, "eval", "training"}
MOST_NAMED = 8


class Document:
    """A tree of plain values and the line of each."""

    def __init__(
        self, tree: dict[str, Any], source: str, lines: dict[tuple[str | int, ...], int] | None = None
    ) -> None:
        self.tree = tree
        self.source = source
        self.lines = lines or {}
        self.from_command_line: set[tuple[str | int, ...]] = set()
        self.flags: dict[tuple[str | int, ...], str] = {}
        """keys of the command line that were given as another program takes them, and how they were typed: `--lora_rank`"""
        self.left_out: list[str] = []
        """a line for each section that the command line has replaced, where that leaves out keys of the file"""

    def line(self, path: Sequence[str | int]) -> int:
        """The line of a path in the tree, or of the nearest ancestor whose line is known; 0 where none is."""
        path = self._as_written(path)
        return next((self.lines[path[:end]] for end in range(len(path), -1, -1) if path[:end] in self.lines), 0)

    def order(self, path: Sequence[str | int]) -> tuple[bool, int]:
        """Sorts places as a person meets them: by the lines of the file, then the command line."""
        return self._is_from_command_line(path), self.line(path)

    def place(self, path: Sequence[str | int]) -> str:
        """`mine.yaml:7` for a path in the tree; the nearest known ancestor where the key itself is absent."""
        if self._is_from_command_line(path):
            return "command line"
        line = self.line(path)
        return f"{self.source}:{line}" if line else self.source

    def _is_from_command_line(self, path: Sequence[str | int]) -> bool:
        return any(tuple(path[:end]) in self.from_command_line for end in range(len(path) + 1))

    def _as_written(self, path: Sequence[str | int]) -> tuple[str | int, ...]:
        """The path of a full tree as it stands in this one, where shorthands leave out keys and indices: `data: [a, b]` has
        no key `train`, `train: {path: a}` no index.
        """
        node: Any = self.tree
        out: list[str | int] = []
        for part in path:
            if (part == "train" and isinstance(node, list)) or (isinstance(part, int) and isinstance(node, Mapping)):
                continue
            out.append(part)
            if isinstance(node, Mapping):
                node = node.get(part)
            else:
                node = node[part] if isinstance(node, list) and isinstance(part, int) and part < len(node) else None
        return tuple(out)

    def parse_value(self, text: str, override: str) -> Any:
        """The value of an override, by YAML's rules."""
        try:
            return plain_yaml.read(text, "command line")[0]
        except UserError as error:
            found = f"{excerpt(override)}: {error.found.replace('this is', 'a value that is')}"
            raise UserError("command line", found, error.expected, error.fix) from None

    def set(self, path: Sequence[str], value: Any) -> None:
        """Puts a value into the tree, turning a bare string or list on the way (`model: x`, `data: [a, b]`) into its map.

        A bare path, a file or a kind that is put to a map (`model=x` over `model: {path: y, dtype: float16}`, `r=8 tuning=lora`) sets
        that part of it alone, and the other keys stay. A map replaces the whole, and so does another kind, whose keys are others.
        """
        node = self.tree
        for depth, key in enumerate(path[:-1], 1):
            child = node.get(key)
            if key == "data" and isinstance(child, list):
                child = {"train": child}
                self.lines |= {
                    ("data", "train", *at[1:]): line for at, line in self.lines.items() if at[:1] == ("data",)
                }
            if key in MAIN_PARTS and isinstance(child, str):
                child = {MAIN_PARTS[key]: child}
            if child is not None and not isinstance(child, dict):
                parent = ".".join(path[:depth])
                raise UserError(
                    "command line",
                    f"{'.'.join(path)} reaches into {parent}, which is no map",
                    "a key whose parent is a map",
                    f"write {parent} as a whole",
                )
            child = child or {}
            node[key] = child
            node = child
        name, there = path[-1], node.get(path[-1])
        if isinstance(there, dict) and _is_main_part(path, value, there):
            self.set([*path, MAIN_PARTS[name]], value)
            return
        gone = [key for key in _keys_in(there) if key not in (MAIN_PARTS.get(name), *_keys_in(value))]
        if gone and value is not None:
            self._note_left_out(path, gone)
        node[name] = value
        self.from_command_line.add(tuple(path))

    def _note_left_out(self, path: Sequence[str], gone: list[str]) -> None:
        if path[-1] in WITH_KEYS and not self._is_from_command_line(path):
            named = ", ".join(gone[:MOST_NAMED]) + (f" and {len(gone) - MOST_NAMED} more" if gone[MOST_NAMED:] else "")
            dotted = ".".join(path)
            self.left_out.append(f"command line: {dotted} replaces that of {self.place(path)}, whose {named} is left out")


def _is_main_part(path: Sequence[str], value: Any, there: Mapping[str, Any]) -> bool:
    """Whether a value says nothing of the other keys of the map that it is put to."""
    part = MAIN_PARTS.get(path[-1])
    if part == "kind":
        return isinstance(value, str) and there.get("kind", value) == value
    return len(path) == 1 and part is not None and isinstance(value, (str, list))


def _keys_in(value: Any) -> list[str]:
    """The keys of a map, or of all maps of a list."""
    maps = value if isinstance(value, list) else [value]
    return list(dict.fromkeys(str(key) for one in maps if isinstance(one, Mapping) for key in one))


def read_yaml(path: Path, limits: Limits = OF_A_PERSON) -> Document:
    """Parses a file.

    Raises:
        UserError: not there, no plain file, not UTF-8, not YAML, a duplicate key, not a map at the top, or more than
            `limits` allow; with the line.
    """
    try:
        most = 4 * limits.characters
        about = path.stat()
        if not (stat.S_ISREG(about.st_mode) or stat.S_ISDIR(about.st_mode)):
            raise UserError(str(path), "this is a pipe or a device", "a YAML file")
        if about.st_size > most:
            raise UserError(str(path), f"{about.st_size:,} bytes", f"a configuration, at most {most:,} bytes")
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(
            str(path),
            "there is no such file",
            "a YAML configuration",
            "luthier init train.jsonl --model NAME writes one",
        ) from None
    except IsADirectoryError:
        raise UserError(str(path), "this is a folder", "a YAML file") from None
    except UnicodeDecodeError as error:
        raise UserError(str(path), f"byte {error.start} is not UTF-8", "a text file in UTF-8") from None
    except OSError as error:
        raise EnvironmentProblem(str(path), f"cannot be read: {error.strerror}", "a readable file") from None
    return parse_yaml(text, str(path), limits)


def parse_yaml(text: str, source: str, limits: Limits = OF_A_PERSON) -> Document:
    """Parses YAML text; `source` names it in errors. Raises UserError as `read_yaml`."""
    tree, lines = plain_yaml.read(text, source, limits)
    if tree is None:
        raise UserError(
            source,
            "the file is empty",
            "at least model and data",
            "luthier init train.jsonl --model NAME writes one",
        )
    if not isinstance(tree, dict):
        what = "a list" if isinstance(tree, list) else excerpt(tree)
        raise UserError(
            source, f"{what} at the top", "key: value lines", "luthier init FILE writes a configuration for data"
        )
    return Document(tree, source, lines)


class _Representer(SafeRepresenter):
    """Quotes text with a NEL (U+0085), which YAML 1.1 and so the reader fold to a space; in double quotes it is escaped."""

    def represent_str(self, data: str) -> Any:
        return self.represent_scalar("tag:yaml.org,2002:str", data, style='"' if "\x85" in data else None)


_Representer.add_representer(str, _Representer.represent_str)


def to_yaml(tree: Mapping[str, Any]) -> str:
    """YAML text of a plain tree, keys in their order; floats in the short form that reads back as floats."""
    return _written(tree, in_a_line=False)


def to_line(value: Mapping[str, Any] | Sequence[Any]) -> str:
    """A map or list in one line, `{kind: sft, weight: 0.7}`, as an override takes it."""
    return _written(value, in_a_line=True).strip()


def short_float(value: float) -> str:
    """A number as a person writes it: `1e-4`, `0.03`, `3`."""
    mantissa, exponent = f"{value:.14e}".split("e")
    return f"{value:.15g}" if value == 0 or abs(value) >= 1e-3 else f"{float(mantissa):g}e{int(exponent)}"


def _written(value: Any, in_a_line: bool) -> str:
    writer = YAML(typ="safe", pure=True)
    writer.Representer = _Representer
    writer.default_flow_style = in_a_line
    writer.brace_single_entry_mapping_in_flow_sequence = True
    writer.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    writer.width = 1_000_000 if in_a_line else 4096
    out = StringIO()
    writer.dump(value, out)
    return out.getvalue()
