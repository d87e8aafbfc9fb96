"""Errors of data and templates in the words of a command that has no configuration: the option that was typed, not a key."""

from __future__ import annotations

import re
from collections.abc import Sequence

from luthier import config
from luthier.config.documents import Document
from luthier.data.files import is_of_hub, sources
from luthier.errors import UserError
from luthier.models.sources.resolve import refuse_missing

TEMPLATE = "--chat-template"
FILE = re.compile(r"data\.train(\[\d+\])?(\.path)?")
KEYS = ((FILE, ""), (re.compile(r"data\.chat_template"), TEMPLATE))


def check_names(targets: Sequence[str], option: str = "", file: str | None = None) -> None:
    """What can be told of a command before torch is imported.

    Args:
        file: what `option` names; None where nothing is.

    Raises:
        UserError: a target is neither here nor of a hub, or there is no such file.
    """
    for target in targets:
        refuse_missing(target)
    if file is None:
        return
    try:
        if not is_of_hub(data := config.data_file(file)):
            list(sources(data, "data.train.path"))
    except UserError as error:
        raise named_by(option, error) from None


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
