"""What lies under a data file's name and is none: devices, pipes, archives, pages, pointers; and registries that hurt."""

from __future__ import annotations

import gzip
import io
import os
import socket
import tarfile
import zipfile
from pathlib import Path

from tests.data.bad_files import LINES, Case, Write, raw, refused
from tests.data.hostile_files import MB, later, sparse

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n"
PAGE = b"<!DOCTYPE html>\n<html><head><title>404</title></head><body>Not found</body></html>\n"


def linked(target: str) -> Write:
    def write(folder: Path) -> list[str]:
        (folder / "train.jsonl").symlink_to(target)
        return ["data=train.jsonl"]

    return write


def listening(folder: Path) -> list[str]:
    server = socket.socket(socket.AF_UNIX)
    before = os.getcwd()
    os.chdir(folder)
    try:
        server.bind("train.jsonl")
    finally:
        os.chdir(before)
        server.close()
    return ["data=train.jsonl"]


def pipe_in_a_folder(folder: Path) -> list[str]:
    (folder / "rows").mkdir()
    os.mkfifo(folder / "rows" / "a.jsonl")
    return ["data=rows"]


def folder_named_as_a_file(folder: Path) -> list[str]:
    (folder / "train.jsonl").mkdir()
    return ["data=train.jsonl"]


def zipped() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("train.jsonl", LINES)
    return out.getvalue()


def tarred(mode: str) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:  # type: ignore[call-overload]
        member = tarfile.TarInfo("train.jsonl")
        member.size = len(LINES.encode())
        archive.addfile(member, io.BytesIO(LINES.encode()))
    return out.getvalue()


PLACES = {
    "an endless device": refused(linked("/dev/zero"), "train.jsonl", "no ordinary file"),
    "a device without bytes": refused(linked("/dev/null"), "train.jsonl", "no ordinary file"),
    "a folder named as a file": refused(folder_named_as_a_file, "train.jsonl", "no data files"),
    "a socket": refused(listening, "train.jsonl", "no ordinary file"),
    "a pipe in a folder": refused(pipe_in_a_folder, "a.jsonl", "no ordinary file"),
    **{
        f"a pointer of Git LFS, {kind}": refused(raw(POINTER, f"train.{kind}"), f"train.{kind}", "git lfs pull")
        for kind in ("jsonl", "json", "csv", "txt", "parquet", "arrow")
    },
    **{
        f"a page of HTML, {kind}": refused(raw(PAGE, f"train.{kind}"), f"train.{kind}", "a page of HTML")
        for kind in ("jsonl", "json", "csv", "parquet", "arrow")
    },
    "a page of HTML, gz": refused(
        later(lambda: raw(gzip.compress(PAGE), "train.jsonl.gz")), "train.jsonl.gz", "a page of HTML"
    ),
    "zip": refused(
        later(lambda: raw(zipped(), "rows.zip")), "rows.zip", "this is an archive", "unzip rows.zip -d rows"
    ),
    "tar": refused(later(lambda: raw(tarred("w"), "rows.tar")), "rows.tar", "tar -xf rows.tar -C rows"),
    "tar.gz": refused(later(lambda: raw(tarred("w:gz"), "rows.tar.gz")), "rows.tar.gz", "tar -xf rows.tar.gz -C rows"),
    "tgz": refused(later(lambda: raw(tarred("w:gz"), "rows.tgz")), "rows.tgz", "tar -xf rows.tgz"),
    "zip under another name": refused(later(lambda: raw(zipped())), "train.jsonl", "a zip archive"),
    "tar under another name": refused(later(lambda: raw(tarred("w"))), "train.jsonl", "a tar archive"),
    "tar under another name, packed": refused(
        later(lambda: raw(tarred("w:gz"), "train.jsonl.gz")), "train.jsonl.gz", "a tar archive"
    ),
    "a pickle": refused(later(lambda: raw(b"\x80\x04\x95\x10\0\0\0\0\0\0\0].")), "train.jsonl", "a pickle"),
    "parquet named jsonl": refused(later(lambda: raw(b"PAR1" + b"\0" * 99)), "train.jsonl", "name it .parquet"),
    "jsonl named parquet": refused(
        later(lambda: raw(LINES.encode(), "train.parquet")), "train.parquet", "no readable Parquet"
    ),
}


def registry(content: bytes, *words: str) -> Case:
    def write(folder: Path) -> list[str]:
        (folder / "dataset_info.json").write_bytes(content)
        return ["data={registry: dataset_info.json, train: mine}"]

    return refused(write, "dataset_info.json", *words)


def registry_pipe(folder: Path) -> list[str]:
    os.mkfifo(folder / "dataset_info.json")
    return ["data={registry: dataset_info.json, train: mine}"]


def registry_sparse(folder: Path) -> list[str]:
    sparse("dataset_info.json", b"{", 10 << 30, b"}")(folder)
    return ["data={registry: dataset_info.json, train: mine}"]


REGISTRIES = {
    "a registry of 100,000 brackets": registry(b"[" * 100_000, "nested too deeply"),
    "a registry with a number of 5,000 digits": registry(
        b'{"mine": {"num_samples": ' + b"9" * 5000 + b"}}", "broken JSON"
    ),
    "a registry that is a list": registry(b"[1, 2]", "no map of entries"),
    "a registry in UTF-16": registry('{"mine": {}}'.encode("utf-16"), "not UTF-8"),
    "a registry whose file has NUL in its name": registry(b'{"mine": {"file_name": "a\\u0000.json"}}'),
    "a registry whose file has a lone surrogate": registry(b'{"mine": {"file_name": "\\ud800.json"}}'),
    "a registry with a key of a megabyte": registry(b'{"mine": {"' + b"k" * MB + b'": 1}}', "is no key of a registry"),
    "a registry of ten gigabytes": refused(registry_sparse, "dataset_info.json"),
    "a registry that is a pipe": refused(registry_pipe, "dataset_info.json"),
}
