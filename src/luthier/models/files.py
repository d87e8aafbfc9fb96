"""The files of a model's folder, by their names and by what they are: a name must not lead out of the folder, and what a server,
git or a copy left in the place of a file is no file.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from shlex import quote

from luthier.errors import UserError
from luthier.system.owners import STORES, trusted_stores

READ = (".safetensors", ".json", ".model", ".jinja", ".txt", ".tiktoken")
"""Ends of the names of files that are read, if they are there."""
_LFS_POINTER = b"version https://git-lfs"
_ANNEX_POINTER = "annex/objects/"
_HTML = (b"<!doctype html", b"<html")
_ODD = re.compile(r'[\x00-\x1f\x7f<>:"/\\|?*]')
"""What has a meaning in a path, here or on Windows."""
_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
"""Names that are devices on Windows, with any end."""
_MOST_CHARS = 255
_TEMPLATES = "additional_chat_templates"
"""The one folder of a model's folder whose files are read too."""
_HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
"""How the hub's cache names what it keeps: nobody's other files are called so."""


def is_plain(name: str) -> bool:
    """Whether a text is the name of a file in a folder, on any system, and leads nowhere else."""
    printable = name.isprintable() and not _ODD.search(name) and not _DEVICES.fullmatch(name)
    return printable and 0 < len(name) <= _MOST_CHARS and name[0] not in ". " and name[-1] not in ". "


def refuse_stub(file: Path, name: str) -> None:
    """An empty file, what git leaves where git-lfs or git-annex did not fetch the file, or a server's page instead of it."""
    size = file.stat().st_size
    if size == 0:
        raise UserError(name, f"{file} is empty", "a whole file", "download the model again")
    with file.open("rb") as opened:
        head = opened.read(512)
    if size < 1024 and head.startswith(_LFS_POINTER):
        raise UserError(
            name,
            f"{file} is a pointer of git-lfs, not the file itself",
            "the file that it points to",
            f"git -C {file.parent} lfs pull, or: luthier download hf:org/name",
        )
    if size < 1024 and _ANNEX_POINTER.encode() in head:
        raise _annexed(file)
    if head.lstrip().lower().startswith(_HTML):
        raise UserError(
            name,
            f"{file} is a page of HTML, as a server sends it where a file may not be had",
            "the file itself",
            "download the model again, logged in where it is gated",
        )


def refuse_odd_links(folder: Path) -> None:
    """Links whose files are not there, as a copied cache or an annex without its content has them; and links that lead out of
    the folder, with which somebody else's folder would have files of this machine read, and copied into what is made of it.

    Raises:
        UserError: names the link and where it leads.
    """
    inside = folder.resolve()
    templates = folder / _TEMPLATES
    listed = [*sorted(folder.iterdir()), *(sorted(templates.iterdir()) if templates.is_dir() else ())]
    for file in listed:
        if not file.is_symlink() or not (file.name.endswith(READ) or file == templates):
            continue
        target = str(file.readlink())
        if not file.exists():
            if _ANNEX_POINTER in target:
                raise _annexed(file)
            raise UserError(
                str(file),
                f"is a link to {target}, which is not there",
                "the file itself",
                "download the model again, or copy the folder with cp -rL",
            )
        real = file.resolve()
        if not any(map(real.is_relative_to, (inside, *trusted_stores()))) and not _is_kept_content(file):
            raise UserError(
                str(file),
                f"is a link out of its folder, to {target}",
                "the file itself, or a link into the cache of the hub",
                f"{STORES}={quote(str(real.parent))} before the same command, where you trust what lies there; or "
                f"cp -rL {quote(str(folder))} {quote(str(folder) + '-copy')}, and the copy as the model",
            )


def _is_kept_content(link: Path) -> bool:
    """Whether a link leads to where the hub's cache (`models--org--name/blobs/`) or git-annex keep what links stand for; that
    place may be a link itself, to a larger disk."""
    while link.is_symlink():
        link = Path(os.path.normpath(link.parent.resolve() / link.readlink()))
        blobs = link.parent.name == "blobs" and link.parent.parent.name.startswith("models--")
        if blobs and _HASH.fullmatch(link.name):
            return True
    return _ANNEX_POINTER in link.resolve().as_posix()


def _annexed(file: Path) -> UserError:
    return UserError(
        str(file),
        "stands for a file that git-annex did not fetch",
        "the file itself",
        f"git -C {file.parent} annex get {file.name}",
    )
