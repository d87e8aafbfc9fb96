"""Where luthier keeps what it can make again: converted models, encoded data, proofs."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from pathlib import Path

from luthier.errors import EnvironmentProblem
from luthier.system.faults import faults_told
from luthier.system.files import whole_folder

CACHE_WITH_ROOM = (
    "a cache folder that may be written, with room",
    "free space, or LUTHIER_CACHE=/path/with/space luthier ...",
)
"""(expected, fix) of an error"""


def cache_dir() -> Path:
    """`$LUTHIER_CACHE`, or `luthier` in the user's cache folder. Private to the user (mode 0700).

    Raises:
        EnvironmentProblem: it cannot be made.
    """
    base = _chosen("LUTHIER_CACHE")
    if base is None:
        base = (_chosen("XDG_CACHE_HOME") or _expanded("~/.cache")) / "luthier"
    with cache_written(base):
        base.mkdir(parents=True, exist_ok=True, mode=0o700)
    return base


def _chosen(name: str) -> Path | None:
    """What the user has set a variable to; `~` is the home, and nothing at all is as if it were not set."""
    value = os.environ.get(name, "").strip()
    return _expanded(value) if value else None


def _expanded(path: str) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise EnvironmentProblem(
            path,
            "there is no home folder: HOME is not set",
            "a folder for the cache",
            "LUTHIER_CACHE=/path/with/space luthier ...",
        ) from None


def cache_written(place: Path) -> AbstractContextManager[None]:
    """Around what writes `place`, and nothing else, into the cache.

    Raises:
        EnvironmentProblem: no room, or no permission.
    """
    return faults_told(place, *CACHE_WITH_ROOM)


def cache_folder(target: Path) -> AbstractContextManager[Path]:
    """A folder of the cache that is whole or absent, as `whole_folder`; one that another process made meanwhile is kept."""
    expected, fix = CACHE_WITH_ROOM
    return whole_folder(target, existing="keep", expected=expected, fix=fix)
