"""Where a page goes that a command was told to write with `--html`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from luthier.errors import UserError
from luthier.system.faults import faults_told
from luthier.system.files import refuse_odd, write_file

MARK = '<meta name="generator" content="luthier data">'
"""By this a page is known again."""


def check_place(path: Path, inputs: Iterable[Path], force: bool) -> None:
    """A page is written over a page of luthier's alone; with `force` over another file, but never over an input.

    Raises:
        UserError: there is something else.
    """
    refuse_odd(path)
    if not path.is_file():
        return
    with path.open("rb") as file:
        is_ours = MARK.encode() in file.read(500)
    if is_ours:
        return
    if any(path.resolve().is_relative_to(other.resolve()) for other in inputs if other.exists()):
        raise UserError(
            f"--html {path}",
            "this file is read by the command",
            "a new file",
            f"--html {path.with_name(f'{path.stem}-report.html')}",
        )
    if not force:
        found = "there is a file of this name, which luthier has not written"
        raise UserError(
            f"--html {path}",
            found,
            "a new file",
            f"--html {path.with_name(f'{path.stem}-2.html')}, or --force to write over it",
        )


def write_page(path: Path, text: str) -> None:
    """Writes a page that has the mark; ask `check_place` first.

    Raises:
        EnvironmentProblem: the file cannot be written.
    """
    with faults_told(f"--html {path}", "a file in a folder that is there, with room"):
        write_file(path, text.encode("utf-8", errors="replace"))
