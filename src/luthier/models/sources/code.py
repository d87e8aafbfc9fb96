"""Python code that comes with a model, where a user trusts it (`--trust-remote-code`): what it is is shown, and of a hub it is taken
by its commit alone, for whoever can write to a branch could have other code run tomorrow.
"""

from __future__ import annotations

import re
from pathlib import Path

from luthier.errors import UserError
from luthier.models.folder import native_type
from luthier.system.files import sha256
from luthier.system.streams import Say

COMMIT = re.compile(r"[0-9a-f]{40}")


def admit(folder: Path, name: str, revision: str | None, commit: str | None, say: Say) -> None:
    """Shows the files of code in a folder with their hashes.

    Args:
        name: as in `ModelSource.name`.
        revision: as the user named it.
        commit: of a hub model, the one that the revision named.

    Raises:
        UserError: there is code of a hub, and the revision is none that stays what it is.
    """
    files = [] if native_type(folder) else sorted(path for path in folder.rglob("*.py") if path.is_file())
    if not files:
        return
    if commit is not None and (revision is None or not COMMIT.fullmatch(revision)):
        raise UserError(
            name,
            f"comes with code ({files[0].relative_to(folder)}), which is to be trusted at {revision or 'its main branch'}, "
            "whatever that will be tomorrow",
            "the commit whose code was read",
            f"{name}@{commit} in its place, after reading {folder}/*.py",
        )
    for file in files:
        say(f"{name}: its code may run: {file.relative_to(folder)}, sha256 {sha256(file)}")
