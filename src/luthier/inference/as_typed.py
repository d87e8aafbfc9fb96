"""Errors of data and templates in the words of a command that has no configuration: the option that was typed, not a key."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from luthier import component, config
from luthier.config.documents import Document
from luthier.data.files import is_of_hub, sources
from luthier.errors import UserError, excerpt
from luthier.models.sources.resolve import is_run, refuse_missing, result_of
from luthier.runs.run_folder import ADAPTER, CHECKPOINTS, MODEL

TEMPLATE = "--chat-template"
FILE = re.compile(r"data\.train(\[\d+\])?(\.path)?")
GGUF = "GGUF is read (model=FILE.gguf) and not written yet; convert_hf_to_gguf.py of llama.cpp makes one of a merged folder"
RUNS = "a run's folder, RUN/checkpoints/step-000100"
OF_MODELS = ("config.json", "adapter_config.json")
SHOWN_RUNS = 5
KEYS = ((FILE, ""), (re.compile(r"data\.chat_template"), TEMPLATE))


def check_names(
    command: str,
    targets: Sequence[str],
    option: str = "",
    file: str | None = None,
    *,
    models: bool = False,
    others: Sequence[str] = (),
) -> None:
    """What can be told of a command before torch is imported.

    Args:
        command: as typed: `luthier chat`.
        file: what `option` names; None where nothing is.
        models: whether it takes any model beside runs, checkpoints and adapters.
        others: words that belong to the line as well.

    Raises:
        UserError: a target is neither here nor of a hub, or no model, or there is no such file.
    """
    words = [*others, *((option, file) if file is not None else ())]
    for target in targets:
        _refuse_missing(command, target, models)
        _refuse_what_holds_models(target, partial(_line, command, targets, words, target))
    if file is None:
        return
    try:
        if not is_of_hub(data := config.data_file(file)):
            list(sources(data, "data.train.path"))
    except UserError as error:
        raise named_by(option, error) from None


def _line(command: str, targets: Sequence[str], words: Sequence[str], wrong: str, other: str) -> str:
    """What was typed, with another target in the place of a wrong one."""
    return shlex.join([*command.split(), *(other if target == wrong else target for target in targets), *words])


def _refuse_missing(command: str, target: str, models: bool) -> None:
    try:
        refuse_missing(target)
    except UserError as error:
        raise _of_command(command, error, models) from None


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


def check_after(run: Path, asks: bool) -> None:
    """What can be told of `luthier data --after RUN` before torch is imported.

    Args:
        asks: whether the run's model is asked; else its record is enough.

    Raises:
        UserError: there is no such run, or it has no result that could be asked.
    """
    _refuse_missing("luthier data --after", str(run), models=False)
    if not is_run(run):
        raise UserError(f"--after {run}", "this is no run", "the folder of a run", "luthier runs lists those there are")
    try:
        if asks:
            result_of(run)
    except UserError as error:
        record = shlex.join(["luthier", "data", "--after", str(run), "--suspects", "0"])
        fix = f"{error.fix}; or {record}, which asks no model"
        raise UserError(error.where, error.found, error.expected, fix) from None


def _refuse_what_holds_models(target: str, line: Callable[[str], str]) -> None:
    """Raises UserError for what is no model and leads to one: a configuration, a folder of runs, one of checkpoints, a run
    without a result.

    Args:
        line: the command with another target.
    """
    path = Path(target).expanduser()
    if path.is_file() and path.suffix in (".yaml", ".yml"):
        raise _a_configuration(target, line)
    if not path.is_dir():
        return
    if path.name == CHECKPOINTS and is_run(path.parent):
        result_of(path.parent)
        steps = sorted(each.name for each in path.glob("step-*"))
        found = f"this is the folder of the checkpoints; there are: {', '.join(steps) or 'none'}"
        newest = path / steps[-1] if steps else path.parent
        raise UserError(target, found, "one of these, or the run", line(str(newest)))
    if path.parent.name == CHECKPOINTS and is_run(path.parent.parent):
        result_of(path.parent.parent)
        return
    if result_of(path) is not None or any((path / name).is_file() for name in OF_MODELS):
        return
    if runs := sorted(each.parent for each in path.glob("*/manifest.json") if is_run(each.parent)):
        more = f" and {len(runs) - SHOWN_RUNS} more" if len(runs) > SHOWN_RUNS else ""
        names = ", ".join(run.name for run in runs[:SHOWN_RUNS]) + more
        whole = [run for run in runs if (run / ADAPTER).is_dir() or (run / MODEL).is_dir()]
        raise UserError(
            target, f"this folder holds runs and is none itself: {names}", "one of them", line(str((whole or runs)[-1]))
        )


def _a_configuration(target: str, line: Callable[[str], str]) -> UserError:
    """What is said of a YAML file in the place of what it makes."""
    try:
        made = config.load(Path(target)).output_dir
    except UserError:
        return UserError(
            target, "this is a configuration", "the run that it makes", f"luthier train {shlex.quote(target)}"
        )
    there = is_run(Path(made).expanduser())
    found = f"this is a configuration, whose run {'is' if there else 'will be'} {made}"
    fix = line(made) if there else f"luthier train {shlex.quote(target)}, then {line(made)}"
    return UserError(target, found, "the run that it makes", fix)


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
        fix = re.sub(rf"(')?({key.pattern})=", lambda found: f"{name or option} {found[1] or ''}", fix)  # noqa: B023
        fix = key.sub(name or option, fix)
    if "data.on_system" in fix:
        fix = f"leave the system text out, or {TEMPLATE} NAME of one that holds it (luthier template list)"
    return UserError(where.replace("data.on_system", "the chat template"), error.found, error.expected, fix)
