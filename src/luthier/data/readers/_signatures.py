"""What the first bytes of a file tell: another kind of file than its name says, or another encoding."""

from __future__ import annotations

from pathlib import PurePath

from luthier.errors import UserError

RENAME, NO_DATA = "rename or unpack it", "name a file of rows: .jsonl, .json, .csv, .parquet or .txt"
SIGNATURES = {
    b"\x1f\x8b": ("packed by gzip: name it .gz", RENAME),
    b"\x28\xb5\x2f\xfd": ("packed by zstd: name it .zst", RENAME),
    b"BZh": ("packed by bzip2: name it .bz2", RENAME),
    b"\xfd7zXZ": ("packed by xz: name it .xz", RENAME),
    b"PK\x03\x04": ("a zip archive (or an office document)", RENAME),
    b"7z\xbc\xaf\x27\x1c": ("a 7z archive", RENAME),
    b"Rar!": ("a rar archive", RENAME),
    b"PAR1": ("Parquet: name it .parquet", RENAME),
    b"ARROW1": ("Arrow: name it .arrow", RENAME),
    b"%PDF-": ("a PDF document", "write its text to a .txt file"),
    b"\x89PNG": ("a picture", NO_DATA),
    b"\xff\xd8\xff": ("a picture", NO_DATA),
    b"GIF8": ("a picture", NO_DATA),
    b"SQLite format 3": ("a database of SQLite", "write its rows to a .csv file"),
    b"\x80\x04\x95": ("a pickle, which is a program and is not run", "write its rows to a .jsonl file"),
}
"""First bytes of files that are no text; what they are, and what to do."""
PICTURES = (".png", ".jpg", ".jpeg", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".svg", ".heic")
"""Endings of what is looked at."""

TAR, TAR_AT = b"ustar", 257
POINTER = b"version https://git-lfs.github.com/spec/"
HTML = (b"<!doctype html", b"<html")
HEAD_BYTES = 512

UNPACK = {
    ".zip": "unzip {name} -d {stem}",
    ".tar": "mkdir {stem} && tar -xf {name} -C {stem}",
    ".tgz": "mkdir {stem} && tar -xf {name} -C {stem}",
    ".7z": "7z x -o{stem} {name}",
    ".rar": "unrar x {name} {stem}/",
}
"""Endings of archives, and how one is unpacked."""


def unpacking(path: PurePath) -> str | None:
    """The line that unpacks a file, where its name says that it is an archive."""
    endings = [ending.lower() for ending in path.suffixes[-2:]]
    ending = next((one for one in reversed(endings) if one in UNPACK), None)
    if ending is None or (endings[-1] != ending and endings[-1] not in (".gz", ".bz2", ".xz", ".zst")):
        return None
    stem = path.name[: path.name.lower().rindex(ending)]
    return UNPACK[ending].format(name=path, stem=stem)


def refuse_another_kind(name: str, head: bytes, expected: str, marked_up: bool = False) -> None:
    """Args:
        head: the first HEAD_BYTES of the file, unpacked.
        marked_up: whether a page of HTML is as good as any other text here.

    Raises:
        UserError: the bytes are those of another kind of file than `expected`.
    """
    if head.startswith(POINTER):
        raise UserError(name, "this is a pointer of Git LFS, not the file", expected, f"git lfs pull --include {name}")
    if not marked_up and head.lstrip()[:20].lower().startswith(HTML):
        found = "this is a page of HTML (a hub's answer to a wrong address, perhaps)"
        raise UserError(
            name, found, expected, "fetch the file itself: its address has /resolve/ in the place of /blob/"
        )
    what, fix = next((known for signature, known in SIGNATURES.items() if head.startswith(signature)), ("", ""))
    if not what and head[TAR_AT : TAR_AT + len(TAR)] == TAR:
        what, fix = "a tar archive", RENAME
    if what:
        raise UserError(name, f"this is no text but {what}" if "text" in expected else f"this is {what}", expected, fix)


def refuse_another_encoding(name: str, file_name: str, head: bytes) -> None:
    """Raises UserError where a text is not in UTF-8 by its first bytes."""
    if head[:4] in (b"\xff\xfe\0\0", b"\0\0\xfe\xff") or b"\0\0\0" in head[:8]:
        encoding = "UTF-32"
    elif head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        encoding = "UTF-16"
    elif b"\0" in head[:2]:
        encoding = "UTF-16BE" if head[:1] == b"\0" else "UTF-16LE"
    else:
        return
    fix = f"iconv -f {encoding} -t UTF-8 {name} > utf8_{file_name}"
    raise UserError(name, f"the file is {encoding}", "UTF-8", fix)
