"""What of this machine the user trusts: whose files are gone on from (one's own, and those of the machine's administrator), and
where links of a model may lead.
"""

from __future__ import annotations

import os
import pwd
from pathlib import Path

from luthier.errors import UserError

TRUSTED = "LUTHIER_TRUST_OWNER"
"""A variable with the names (or numbers) of users whose checkpoints are taken too, with commas between."""
STORES = "LUTHIER_TRUST_LINKS"
"""A variable with the folders into which links of a model may lead, with colons between."""


def trusted_stores() -> list[Path]:
    return [Path(part).expanduser().resolve() for part in os.environ.get(STORES, "").split(os.pathsep) if part]


def refuse_foreign(path: Path) -> None:
    """Refuses what another user of the machine owns: it would decide what the model becomes. Root is refused nothing: in a
    container files are of the machine's users, and a server of files may have root's own be of nobody.

    Raises:
        UserError: names the owner, and how to trust it.
        OSError: it cannot be looked at.
    """
    owner = path.stat().st_uid
    name = _name(owner)
    trusted = {part.strip() for part in os.environ.get(TRUSTED, "").split(",")}
    if os.geteuid() == 0 or owner in (os.geteuid(), 0) or trusted & {name, str(owner)}:
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
