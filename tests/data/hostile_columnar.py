"""Parquet and Arrow files that claim what they do not hold, or hold one large thing a million times."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.ipc
import pyarrow.parquet

from tests.data.bad_files import Write, raw, refused
from tests.data.hostile_files import BIG, LONG_ROW, MB, later, sparse

UTF8_TABLE = pyarrow.StringArray.from_buffers(
    3, pyarrow.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0\3\0\0\0"), pyarrow.py_buffer(b"a\xffb")
)


def arrow(
    columns: dict[str, Any], *, is_file: bool = False, change: Callable[[bytes], bytes] = bytes, **options: Any
) -> Write:
    def write(folder: Path) -> list[str]:
        table = pyarrow.table(columns) if isinstance(columns, dict) else columns
        sink = io.BytesIO()
        new = pyarrow.ipc.new_file if is_file else pyarrow.ipc.new_stream
        with new(sink, table.schema, options=pyarrow.ipc.IpcWriteOptions(**options)) as writer:
            writer.write_table(table)
        (folder / "train.arrow").write_bytes(change(sink.getvalue()))
        return ["data=train.arrow"]

    return write


def parquet_of(columns: Any, *, change: Callable[[bytes], bytes] = bytes, **options: Any) -> Write:
    def write(folder: Path) -> list[str]:
        table = pyarrow.table(columns) if isinstance(columns, dict) else columns
        pyarrow.parquet.write_table(table, folder / "train.parquet", **options)
        (folder / "train.parquet").write_bytes(change((folder / "train.parquet").read_bytes()))
        return ["data=train.parquet"]

    return write


def beginnings(columns: Any, texts: list[str]) -> Write:
    """Texts that are stored by what they share with the one before, as Spark and parquet-java do."""
    how = dict.fromkeys(texts, "DELTA_BYTE_ARRAY")
    return parquet_of(columns, use_dictionary=False, column_encoding=how, data_page_version="2.0")


def in_place(old: bytes, new: bytes, times: int = -1) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        assert old in data
        return data.replace(old, new, times)

    return change


def shared(references: int, size: int = MB) -> Any:
    """One large text, and references to it."""
    indices = pyarrow.array([0] * references, pyarrow.int32())
    return pyarrow.DictionaryArray.from_arrays(indices, pyarrow.array(["x" * size]))


CASES = {
    "parquet: a cell of 300 MB": refused(
        later(lambda: parquet_of({"text": ["x" * (300 * MB)]}, compression="zstd")), BIG
    ),
    "parquet: a cell of 20 MB": refused(
        later(lambda: parquet_of({"text": ["a", "x" * (20 * MB)]}, compression="zstd")), "train.parquet:2", LONG_ROW
    ),
    "parquet: one text in 2,000 rows": refused(
        later(lambda: parquet_of({"text": ["x" * MB] * 2000}, dictionary_pagesize_limit=1 << 30)), "train.parquet", BIG
    ),
    "parquet: one text 2,000 times in a row": refused(
        later(lambda: parquet_of({"text": [["x" * MB] * 2000, ["b"]]}, dictionary_pagesize_limit=1 << 30)),
        "train.parquet",
        BIG,
    ),
    "parquet: 400 texts of which each is the one before": refused(
        later(lambda: beginnings({"text": ["x" * MB] * 400}, ["text"])), "train.parquet", BIG
    ),
    "parquet: 400 texts of a row of which each is the one before": refused(
        later(lambda: beginnings({"text": [["x" * MB] * 400, ["b"]]}, ["text.list.element"])), "train.parquet", BIG
    ),
    "parquet: a row of 100,000,000 times nothing": refused(
        later(lambda: parquet_of({"text": pyarrow.ListArray.from_arrays([0, 10**8], pyarrow.nulls(10**8))})),
        "train.parquet",
        BIG,
    ),
    "parquet: fewer than no rows": refused(
        later(lambda: parquet_of({"text": ["a"] * 12}, change=in_place(b"\x16\x18", b"\x16\x17"))),
        "train.parquet",
        "no readable Parquet",
    ),
    "parquet: other rows than its groups": refused(
        later(lambda: parquet_of({"text": ["a"] * 12}, change=in_place(b"\x16\x18", b"\x16\x1a", 1))),
        "train.parquet",
        "Parquet",
    ),
    "parquet: a text that is not UTF-8": refused(
        later(lambda: parquet_of({"text": UTF8_TABLE})), "train.parquet:2", "not UTF-8"
    ),
    "parquet: cut": refused(
        later(lambda: parquet_of({"text": ["a"] * 12}, change=lambda data: data[:-10])), "no readable Parquet"
    ),
    "parquet: its end twice": refused(
        later(lambda: parquet_of({"text": ["a"] * 12}, change=lambda data: data[-90:])), "Parquet"
    ),
    "parquet: only its mark": refused(later(lambda: raw(b"PAR1" * 3, "train.parquet")), "no readable Parquet"),
    "parquet: a footer of four gigabytes": refused(
        later(lambda: raw(b"PAR1" + b"\xff" * 8 + b"PAR1", "train.parquet")), "Parquet"
    ),
    "parquet: two columns of one name": refused(
        later(lambda: parquet_of(pyarrow.Table.from_arrays([pyarrow.array(["a"])] * 2, ["text", "text"]))), "each once"
    ),
    "parquet: texts as bytes": refused(later(lambda: parquet_of({"text": [b"a\xff"]})), "train.parquet:1", "text"),
    "parquet: a date": refused(
        later(lambda: parquet_of({"text": pyarrow.array([1 << 62], pyarrow.timestamp("us"))})), "train.parquet:1"
    ),
    "arrow: one text in 100,000 rows": refused(later(lambda: arrow({"text": shared(100_000)})), "train.arrow", BIG),
    "arrow file: one text in 100,000 rows": refused(
        later(lambda: arrow({"text": shared(100_000)}, is_file=True)), "train.arrow", BIG
    ),
    "arrow: a gigabyte of rows of nothing": refused(
        later(lambda: arrow({"text": pyarrow.nulls(1 << 30)})), "train.arrow", BIG
    ),
    "arrow: a buffer of 300 MB": refused(
        later(lambda: arrow({"text": ["x" * (300 * MB)]}, compression="zstd")), "train.arrow", "unpacks to", BIG
    ),
    "arrow: 1,000,000,000 times the same": refused(
        later(
            lambda: arrow(
                {
                    "text": pyarrow.RunEndEncodedArray.from_arrays(
                        pyarrow.array([10**9], pyarrow.int64()), pyarrow.array(["aaaa"])
                    )
                }
            )
        ),
        "train.arrow",
        BIG,
    ),
    "arrow: lists that share their values": refused(
        later(
            lambda: arrow(
                {
                    "text": pyarrow.ListViewArray.from_arrays(
                        pyarrow.array([0] * 1000, pyarrow.int32()),
                        pyarrow.array([100_000] * 1000, pyarrow.int32()),
                        pyarrow.array(["xxxx"] * 100_000),
                    )
                }
            )
        ),
        "train.arrow",
        BIG,
    ),
    "arrow: views of one text": refused(
        later(lambda: arrow({"text": pyarrow.array(["x" * (20 * MB)], pyarrow.string_view())})),
        "train.arrow:1",
        LONG_ROW,
    ),
    "arrow: a text that is not UTF-8": refused(
        later(lambda: arrow({"text": UTF8_TABLE})), "train.arrow:2", "not UTF-8"
    ),
    "arrow: a reference to nothing": refused(
        later(lambda: arrow({"text": shared(64, 10)}, change=in_place(b"\0" * 64, b"\xff\xff\0\0" * 16, 1))),
        "train.arrow",
    ),
    "arrow: offsets out of thin air": refused(
        later(
            lambda: arrow({"text": ["aaaa"] * 64}, change=in_place(b"\4\0\0\0\x08\0\0\0", b"\4\0\0\x70\x08\0\0\0", 1))
        ),
        "train.arrow",
    ),
    "arrow: a union": refused(
        later(
            lambda: arrow(
                {
                    "text": pyarrow.UnionArray.from_sparse(
                        pyarrow.array([0, 1], pyarrow.int8()), [pyarrow.array(["a", "b"]), pyarrow.array([1, 2])]
                    )
                }
            )
        ),
        "train.arrow",
        "a column of type",
    ),
    "arrow file: its end is cut": refused(
        later(lambda: arrow({"text": ["a"] * 12}, is_file=True, change=lambda data: data[:-30])), "no readable Arrow"
    ),
    "arrow: only its mark": refused(later(lambda: raw(b"ARROW1\0\0", "train.arrow")), "no readable Arrow"),
    "arrow: a message of two gigabytes": refused(
        later(lambda: raw(b"\xff\xff\xff\xff\xff\xff\xff\x7f", "train.arrow")), "Arrow"
    ),
    "arrow: zeros": refused(sparse("train.arrow", b"", MB, b"\0"), "train.arrow"),
}
