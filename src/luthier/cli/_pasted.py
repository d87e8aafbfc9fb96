"""Lines of other programs, as they are pasted: their flags and scripts are answered with the line of the command that works."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from luthier import config
from luthier.cli._shared import ANOTHER_PROGRAM, COMMAND_LINE, YAML, is_script, split_config_and_overrides, split_flags
from luthier.component import did_you_mean
from luthier.config.answers import Answer, as_word
from luthier.config.foreign_keys import answer, generic
from luthier.config.other_tools import OF_THE_ANSWER
from luthier.config.translation import is_key
from luthier.errors import UserError

MODELS = (
    "model_name_or_path",
    "model_name",
    "model_id",
    "pretrained_model_name_or_path",
    "base_model",
    "checkpoint_dir",
)
ADAPTERS = ("adapter_name_or_path", "lora_model_dir", "adapter_path", "peft_model", "lora_weights", "checkpoint")
ROWS = ("eval_dataset", "validation_file", "test_file", "dataset", "dataset_name", "train_file")
CALLED = {
    "--model": MODELS,
    "--chat-template": ("template",),
    "--system": ("default_system", "system_prompt"),
    "--data": ROWS,
    "--prompts": ROWS,
    "--limit": ("max_samples", "max_eval_samples"),
    "--output": ("output_dir", "export_dir", "save_dir", "out_dir"),
    "--dtype": ("torch_dtype",),
}
"""Our options, and what other programs call them; one with underscores in the place of hyphens is ours as well."""
OF_TRAINING = "it is a key of luthier train; leave it out"
NOTHING = "true"
"""The value of a flag that has none."""
PLACES = {"--output": "DIR"}
"""What stands for the value of an option that is needed and was not given."""


@dataclass
class _Line:
    """A command line in its parts."""

    own: list[str] = field(default_factory=list)
    """options of the command, with their values"""
    flags: list[tuple[str, str]] = field(default_factory=list)
    """other flags and their values, as `split_flags` has them"""
    words: list[str] = field(default_factory=list)
    script: str = ""
    """what would start another program: `deepspeed --num_gpus 8` and a script"""


def answered(command: str, parameters: Sequence[Any], arguments: Sequence[str]) -> UserError | None:
    """What a line is told that has options which the command does not take; None where nothing in it is of another program.

    Args:
        command: as typed: `luthier eval`.
        parameters: those of click.
    """
    options = {name: each for each in parameters for name in each.opts if name.startswith("-")}
    line = _parts(arguments, options)
    argument = next((each for each in parameters if each.param_type_name == "argument"), None)
    takes = str(argument.metavar or "") if argument is not None else ""
    keys = [_key(name) for name, _ in line.flags]
    rows = any(key in (*ROWS, "datasets") for key in keys) or any("=" in word for word in line.words)
    if "CONFIG.yaml" in takes and ("MODEL" not in takes or rows or any(word.endswith(YAML) for word in line.words)):
        return _of_a_configuration(command, line, list(options))
    if not line.script and not any(_is_known(key, options) for key in keys):
        return None
    return _OfOptions(command, line, options, takes).error(argument is not None and argument.required)


def _parts(arguments: Sequence[str], options: Mapping[str, Any]) -> _Line:
    line, rest, left = _Line(), list[str](), list(arguments)
    while left:
        word = left.pop(0)
        name, equals, _ = word.partition("=")
        if name in options:
            line.own.append(word)
            if left and not equals and not options[name].is_flag:
                line.own.append(left.pop(0))
        else:
            rest.append(word)
    begins = next((place for place, word in enumerate(rest, 1) if is_script(word)), 0)
    line.script = " ".join(rest[:begins])
    line.words, line.flags = split_flags(rest[begins:])
    return line


def _key(flag: str) -> str:
    return flag.lstrip("-").replace("-", "_")


def _is_known(key: str, options: Mapping[str, Any]) -> bool:
    called = {other for others in (*CALLED.values(), ADAPTERS) for other in others}
    return key in called or f"--{key.replace('_', '-')}" in options or is_key(key)


def _of_a_configuration(command: str, line: _Line, own: list[str]) -> UserError | None:
    """For a command that takes a configuration: all that is wrong with it, and the flags among it."""
    for name, _ in line.flags:
        if not is_key(_key(name)) and (near := did_you_mean(name, own)):
            return UserError(COMMAND_LINE, f"there is no option {name}", "one of " + ", ".join(own), near)
    wrong = [UserError(COMMAND_LINE, ANOTHER_PROGRAM.format(line.script))] if line.script else []
    try:
        path, overrides = split_config_and_overrides(line.words)
        config.load(path, overrides, config.Typed(line.flags, wrong, command, [*map(shlex.quote, line.own)]))
    except UserError as error:
        return error
    return None


class _OfOptions:
    """For a command that takes a model, a run or files: what each flag is here, and the whole line."""

    def __init__(self, command: str, line: _Line, options: Mapping[str, Any], takes: str) -> None:
        self._command, self._line, self._options, self._takes = command, line, options, takes
        self._given = {_key(name): config.parsed(value) for name, value in line.flags}
        self._written, self._overrides = list(line.own), list[str]()

    def error(self, needs_a_word: bool) -> UserError:
        called = ROWS if self._takes.startswith("DATA") else (*ADAPTERS, *MODELS)
        first = next((key for key in called if key in self._given), None) if self._takes else None
        says = [f"{COMMAND_LINE}: {ANOTHER_PROGRAM.format(self._line.script)}"] if self._line.script else []
        words = list(self._line.words)
        for name, value in self._line.flags:
            if _key(name) == first and not words:
                words = [value] * (value != NOTHING)
                said = "it is written without a flag"
            else:
                said = self._answer(_key(name), value)
            says.append(f"{COMMAND_LINE}: {name}: {said}")
        if needs_a_word and not words:
            words = [self._takes.partition("|")[0]]
        for name, place in PLACES.items():
            if name in self._options and self._options[name].required and name not in self._written:
                self._written += [name, place]
        fix = [self._command, *map(shlex.quote, words), *self._overrides, *map(shlex.quote, self._written)]
        return UserError("", "\n".join(says), "", " ".join(fix))

    def _answer(self, key: str, value: str) -> str:
        """What is said of another program's flag; what does the same here is put to the line."""
        called = [f"--{key.replace('_', '-')}", *(ours for ours, others in CALLED.items() if key in others)]
        ours = next((name for name in called if name in self._options), None)
        found = answer(key, self._given[key], self._given) or Answer()
        if ours is not None and self._options[ours].is_flag:
            self._written += [ours] * (self._given[key] is True)
            return f"write {ours}" if self._given[key] is True else "leave it out"
        if ours == "--chat-template":
            if not found.sets:
                return f"write --chat-template {found.says.partition(': ')[2]}"
            value = str(found.sets["data.chat_template"])
        if ours is not None:
            value = PLACES.get(ours, "VALUE") if value == NOTHING else value
            self._written += [ours, value]
            return f"write {ours} {shlex.quote(value)}"
        sets = {name: said for name, said in found.sets.items() if name.startswith(("model.", "tuning."))}
        words = [as_word(name, said) for name, said in sets.items() if name != "model.path"]
        if words and "KEY=VALUE" in self._takes:
            self._overrides += words
            return f"write {' '.join(words)}"
        if key in MODELS and self._takes:
            return "an adapter knows its base; leave it out"
        said = generic(key) or ""
        if said.startswith(OF_THE_ANSWER) or not is_key(key):
            return "there is no such option here; leave it out"
        return said if said.endswith("leave it out") else OF_TRAINING
