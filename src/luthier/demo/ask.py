"""`luthier init --ask TEXT --writer RUN`: the tuned model writes the configuration, luthier's parser checks it."""

from __future__ import annotations

from luthier.config import build
from luthier.config.documents import parse_yaml
from luthier.demo.judge import strip_fences
from luthier.errors import UserError

LONGEST = 200
"""Most tokens of what is written: long names and paths have room, and an answer that is cut off is no configuration."""


def ask(writer_run: str, request: str) -> str:
    """The YAML that a run of the demo writes for a request; it loads.

    Args:
        writer_run: the folder of a run that learned to write configurations (`luthier demo` makes one).
        request: what is wanted, in plain English.

    Raises:
        UserError: there is no such run, the request is empty, or what was written is no configuration (it is shown).
    """
    if not request.strip():
        raise UserError(
            "--ask",
            "an empty request",
            "what you want, in plain English",
            'luthier init --ask "tune MODEL on FILE with LoRA" --writer RUN',
        )
    from luthier.demo.flow import generations  # only now: it loads torch
    from luthier.inference.opened import open_model

    (answer,) = generations(open_model(writer_run), [" ".join(request.split())], LONGEST)
    written = strip_fences(answer.text)
    problem = "" if answer.stopped else f"it had not ended after {LONGEST} tokens"
    try:
        build(parse_yaml(written, f"what {writer_run} wrote"))
    except UserError as error:
        problem = str(error)
    if problem:
        raise UserError(
            "--ask",
            f"the model wrote no valid configuration:\n{written}\n{problem}",
            "a request that names a model and a file",
            "say it in other words, or luthier init FILE --model NAME",
        )
    return written + "\n"
