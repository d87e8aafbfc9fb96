"""Bad files that are packed, columnar or delimited: the part of the table of bad data files that needs their libraries."""

from __future__ import annotations

import bz2
import gzip
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.ipc
import pyarrow.parquet

from tests.data.bad_files import GOOD, LINES, MEND, Case, Write, line_of, raw, refused


def packed(ending: str, pack: Callable[[bytes], bytes]) -> Case:
    rows = "".join(line_of(row) + "\n" for row in GOOD * 50).encode()
    name = f"train.jsonl{ending}"
    return refused(raw(pack(rows)[:-20], name), name, "damaged or cut off", f"-t {name}")


def zstd(data: bytes) -> bytes:
    return bytes(pyarrow.compress(data, codec="zstd", asbytes=True))


def parquet(change: Callable[[bytearray], None], **options: Any) -> Write:
    def write(folder: Path) -> list[str]:
        path = folder / "train.parquet"
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(GOOD), path, compression="none", **options)
        data = bytearray(path.read_bytes())
        change(data)
        path.write_bytes(data)
        return ["data=train.parquet"]

    return write


def bad_footer(data: bytearray) -> None:
    data[-30:-12] = b"\xff" * 18


def bad_page(data: bytearray) -> None:
    data[data.index(b"Say 7")] ^= 1


def no_row_groups(folder: Path) -> list[str]:
    schema = pyarrow.schema([("instruction", pyarrow.string()), ("output", pyarrow.string())])
    pyarrow.parquet.ParquetWriter(folder / "train.parquet", schema).close()
    return ["data=train.parquet"]


def drift(folder: Path) -> list[str]:
    tables = (GOOD[:6], [{"instruction": row["instruction"], "output": 3} for row in GOOD[6:]])
    for number, rows in enumerate(tables):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / f"shard-{number}.parquet")
    return ["data=shard-*.parquet"]


def cut_arrow(folder: Path) -> list[str]:
    table = pyarrow.Table.from_pylist(GOOD)
    with pyarrow.ipc.new_stream(str(folder / "train.arrow"), table.schema) as writer:
        writer.write_table(table)
    data = (folder / "train.arrow").read_bytes()
    (folder / "train.arrow").write_bytes(data[: len(data) // 2])
    return ["data=train.arrow"]


COMPRESSED = {
    "gz cut": packed(".gz", gzip.compress),
    "zst cut": packed(".zst", zstd),
    "bz2 cut": packed(".bz2", bz2.compress),
    "xz cut": packed(".xz", lzma.compress),
    "wrong magic": refused(
        raw(LINES.encode(), "train.jsonl.gz"), "train.jsonl.gz", "damaged", "gzip -t train.jsonl.gz"
    ),
    "bomb": refused(
        raw(gzip.compress(b" " * (40 << 20)), "train.jsonl.gz"),
        "train.jsonl.gz",
        "unpacks to more than",
        "data.max_unpacked_bytes=",
        about="40 MB, with the bound lowered to 1 MB",
    ),
    "parquet with a bad footer": refused(parquet(bad_footer), "train.parquet", "no readable Parquet", "write it again"),
    "parquet with a bad page": refused(
        parquet(bad_page, write_page_checksum=True), "train.parquet", "no readable Parquet", "write it again"
    ),
    "parquet without row groups": refused(no_row_groups, "train.parquet", "there are no rows in it", "put rows in it"),
    "shards with other schemas": refused(drift, "shard-1.parquet:1", "output", "a number", MEND),
    "arrow cut": refused(cut_arrow, "train.arrow", "no readable Arrow", "write it again"),
    "csv with broken quotes": refused(
        raw(b'instruction,output\na,"b"c\nd,e\n', "train.csv"), "train.csv:2", "broken CSV", MEND
    ),
    "csv with ragged lines": refused(
        raw(b"instruction,output\na,b\nc,d,e\n", "train.csv"), "train.csv:3", "3 fields", MEND
    ),
    "csv with tabs": refused(
        raw(b"instruction\toutput\na\tb\n", "train.csv"), "train.csv:1", "tabs", "name the file .tsv"
    ),
}
