"""What several commands need."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from luthier.errors import UserError
from luthier.system.streams import show

COMMAND_LINE = "command line"
YAML = (".yaml", ".yml")
ANOTHER_PROGRAM = "{} starts another program; leave it out"


def split_config_and_overrides(
    arguments: Sequence[str], command: str = "luthier train"
) -> tuple[Path | None, list[str]]:
    """The configuration file, which stands first if there is one, and the `key=value` overrides.

    Raises:
        UserError: a word that is neither.
    """
    rest = list(arguments)
    path = None
    if rest and "=" not in rest[0]:
        _refuse_other_files(rest[0], rest[1:], command)
    if rest and is_config(rest[0]) and not is_script(rest[0]):
        path = Path(rest.pop(0))
    for word in rest:
        if is_script(word):
            others = [other for other in arguments if other != word]
            raise UserError(
                COMMAND_LINE, ANOTHER_PROGRAM.format(word), "", f"luthier train {shlex.join(others) or 'mine.yaml'}"
            )
        if "=" not in word:
            where = "one configuration file, before the overrides" if is_config(word) else "CONFIG.yaml, then key=value"
            raise UserError(
                COMMAND_LINE,
                f"{word!r} is neither a configuration file nor key=value",
                where,
                "luthier train mine.yaml learning_rate=1e-4",
            )
    return path, rest


def _refuse_other_files(word: str, others: list[str], command: str) -> None:
    """Raises UserError for data, and for the folder of a run, in the place of a configuration."""
    from luthier.data import readers

    path = Path(word)
    if (path / "config.yaml").is_file():
        config = shlex.join([*command.split(), str(path / "config.yaml"), *others])
        after = f", or luthier data --after {shlex.quote(word)}" if command == "luthier data" else " --resume"
        raise UserError(COMMAND_LINE, f"{word} is the folder of a run", "its configuration", config + after)
    if not path.is_file() or readers.ending_of(path) is None or _may_be_yaml(path):
        return
    given = [each for each in others if not each.startswith(("data=", "data.train="))]
    model = [] if any(each.startswith(("model=", "model.path=")) for each in given) else ["model=NAME"]
    keys = shlex.join([*command.split(), f"data={word}", *model, *given])
    fix = f"{keys}, or luthier init {shlex.quote(word)} --model NAME, which writes a configuration"
    raise UserError(COMMAND_LINE, f"{word} is data, no configuration", "a YAML file, or data=FILE", fix)


def _may_be_yaml(path: Path) -> bool:
    """Whether a file is one map of JSON, which is YAML as well."""
    with path.open("rb") as file:
        return path.suffix.lower() == ".json" and file.read(1_000).lstrip()[:1] != b"["


def split_flags(arguments: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """The words that no flag of another program takes, and its flags with their values: `--key value`, `--key=value`, `--key a b`
    (a list), and `--key` alone, which is true. A configuration file is no value.
    """
    rest, flags = list[str](), list[tuple[str, list[str]]]()
    for word in arguments:
        if word.startswith("--") and len(word) > 2:
            name, equals, value = word.partition("=")
            flags.append((name, [value] if equals else []))
        elif flags and not re.match(r"[A-Za-z_][\w.]*=", word) and not word.endswith(YAML):
            flags[-1][1].append(word)
        else:
            rest.append(word)
    return rest, [
        (name, "true" if not values else values[0] if len(values) == 1 else f"[{', '.join(values)}]")
        for name, values in flags
    ]


def is_script(word: str) -> bool:
    """Whether a word is what another program is started by: a file of Python."""
    return word.endswith(".py") and "=" not in word


def is_config(word: str) -> bool:
    """Whether a word of the command line names a YAML file."""
    return word.endswith(YAML) or Path(word).is_file()


def print_json(value: Any) -> None:
    """Prints for programs: indented JSON, text as it is, no colours."""
    show(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def tokenizer_of(model: str, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a model, from wherever `model.path` may point to. Raises as `resolve` does."""
    from luthier.models.reading import load_tokenizer
    from luthier.models.sources.resolve import resolve

    source = resolve(model, trust_remote_code=trust_remote_code)
    return load_tokenizer(source.adapter or source.folder, trust_remote_code)
