"""Whose files are gone on from: one's own, and those of the machine's administrator."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

from luthier.errors import UserError

TRUSTED = "LUTHIER_TRUST_OWNER"
"""A variable with the names (or numbers) of users whose checkpoints are taken too, with commas between."""


def refuse_foreign(path: Path) -> None:
    """Refuses what another user of the machine owns: it would decide what the model becomes.

    Raises:
        UserError: names the owner, and how to trust it.
        OSError: it cannot be looked at.
    """
    owner = path.stat().st_uid
    name = _name(owner)
    trusted = {part.strip() for part in os.environ.get(TRUSTED, "").split(",")}
    if owner in (os.geteuid(), 0) or trusted & {name, str(owner)}:
        return
    raise UserError(
        str(path),
        f"belongs to another user ({name}), who may have changed it",
        f"files of {_name(os.geteuid())}",
        f"{TRUSTED}={name} before the same command, where you trust them",
    )


def _name(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)
