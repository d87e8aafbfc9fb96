"""Errors of data and templates in the words of a command that has no configuration: the option that was typed, not a key."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from luthier import component, config
from luthier.config.documents import Document
from luthier.data.files import is_of_hub, sources
from luthier.errors import UserError, excerpt
from luthier.models.sources.resolve import refuse_missing

TEMPLATE = "--chat-template"
FILE = re.compile(r"data\.train(\[\d+\])?(\.path)?")
GGUF = "GGUF is read (model=FILE.gguf) and not written yet; convert_hf_to_gguf.py of llama.cpp makes one of a merged folder"
RUNS = "a run's folder, RUN/checkpoints/step-000100"
KEYS = ((FILE, ""), (re.compile(r"data\.chat_template"), TEMPLATE))


def check_names(
    command: str, targets: Sequence[str], option: str = "", file: str | None = None, *, models: bool = False
) -> None:
    """What can be told of a command before torch is imported.

    Args:
        command: as typed: `luthier chat`.
        file: what `option` names; None where nothing is.
        models: whether it takes any model beside runs, checkpoints and adapters.

    Raises:
        UserError: a target is neither here nor of a hub, or there is no such file.
    """
    for target in targets:
        try:
            refuse_missing(target)
        except UserError as error:
            raise _of_command(command, error, models) from None
    if file is None:
        return
    try:
        if not is_of_hub(data := config.data_file(file)):
            list(sources(data, "data.train.path"))
    except UserError as error:
        raise named_by(option, error) from None


def _of_command(command: str, error: UserError, models: bool) -> UserError:
    """An error of a path that is not there, with what the command takes in the place of a key."""
    expected = (
        f"{RUNS}, an adapter's folder, or a model: {error.expected}" if models else f"{RUNS}, or an adapter's folder"
    )
    if not error.expected.startswith("a folder, "):  # it was nearly right: what was meant is said
        expected = error.expected
    fix = error.fix.replace("model=", f"{command} ")
    if "did you mean" not in fix and not (models and "hf:" in fix):
        fix = "luthier runs lists the runs that there are"
        fix += f"; {error.fix.removeprefix('model=')}" if models else ""
    return UserError(error.where if models else error.where.removeprefix("model "), error.found, expected, fix)


def check_export(target: str, to: str, output: Path) -> None:
    """What can be told of an export before torch is imported.

    Raises:
        UserError: there is no such kind, or the folder is in use.
    """
    kinds = component.listing("export")
    if ":" not in to and to not in kinds:
        says = GGUF if to.lower() == "gguf" else "there is no such kind"
        fix = f"luthier export {shlex.quote(target)} --to merged --output {shlex.quote(str(output))}"
        raise UserError(f"--to {excerpt(to)}", says, "one of " + ", ".join(kinds), fix)
    refuse_used(output)


def refuse_used(folder: Path) -> None:
    """Raises UserError where something lies already that an export would be written over."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(
            str(folder),
            "exists and is not empty; nothing is overwritten",
            "a new or empty folder",
            f"--output {folder}-2",
        )


def config_of_model(target: str, overrides: Sequence[str]) -> tuple[config.RunConfig, bool]:
    """(the configuration of a model and of keys that say how it is held, whether they say how it is tuned). Raises UserError."""
    document = Document({"model": {"path": target}, "data": "not read", "output_dir": "not written"}, target)
    wrong = [word for word in overrides if "=" not in word]
    if wrong:
        raise UserError(
            "command line", f"{wrong[0]!r} is not key=value", "", f"luthier inspect {target} quantization=nf4"
        )
    checked = config.assemble(document, overrides, config.Typed(command="luthier inspect"))
    return checked, "tuning" in document.tree


def named_by(option: str, error: UserError) -> UserError:
    """The error with `option` in the place of the key that stands for the file, and options of commands in the place of others."""
    where, fix = error.where, error.fix
    for key, name in KEYS:
        where = key.sub(name or option, where)
        fix = key.sub(name or option, re.sub(rf"({key.pattern})=", rf"{name or option} ", fix))
    if "data.on_system" in fix:
        fix = f"leave the system text out, or {TEMPLATE} NAME of one that holds it (luthier template list)"
    return UserError(where.replace("data.on_system", "the chat template"), error.found, error.expected, fix)
