"""Parquet whose texts are stored by what they share with the one before, as Spark and parquet-java write it."""

from __future__ import annotations

import contextlib
import itertools
import random
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from luthier.data.readers import _beginnings, _footer
from luthier.errors import UserError
from luthier.types import Row
from tests.data.test_readers import read

NESTED = ["messages.list.element.role", "messages.list.element.content"]
WORDS = ("alpha ", "beta ", "", "eine Antwort ", "äöü ", "你好")


def table(rows: int) -> Any:
    draw = random.Random(0)

    def text() -> str | None:
        return None if draw.random() < 0.1 else "".join(draw.choice(WORDS) for _ in range(draw.randrange(20)))

    def message() -> dict[str, str | None]:
        return {"role": draw.choice(("user", "assistant")), "content": text()}

    texts = [text() for _ in range(rows)]
    turns = [None if draw.random() < 0.1 else [message() for _ in range(draw.randrange(5))] for _ in range(rows)]
    return pyarrow.table({"text": texts, "messages": turns})


def write(path: Path, rows: Any, columns: list[str], **options: Any) -> None:
    how = dict.fromkeys(columns, "DELTA_BYTE_ARRAY")
    pyarrow.parquet.write_table(rows, path, use_dictionary=False, column_encoding=how, **options)


def shared_by(values: list[str | None]) -> int:
    texts = [value.encode() for value in values if value is not None]
    found = 0
    for before, text in itertools.pairwise(texts):
        same = [one == other for one, other in zip(before, text, strict=False)]
        found += [*same, False].index(False)
    return found


@pytest.mark.parametrize("compression", ["none", "snappy", "gzip", "brotli", "zstd", "lz4"])
@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_the_beginnings_are_added_up(tmp_path: Path, compression: str, version: str) -> None:
    rows = table(400)
    options = {"compression": compression, "data_page_version": version}
    write(tmp_path / "a.parquet", rows, ["text", *NESTED], **options)
    _, (group,) = _footer.footer_of(tmp_path / "a.parquet")
    found = [_beginnings.shared_bytes(tmp_path / "a.parquet", one, 1 << 40) for one in group.columns]
    messages = [one for turns in rows["messages"].to_pylist() for one in turns or []]
    wanted = [rows["text"].to_pylist()]
    wanted += [[one[field.name] for one in messages] for field in rows.schema.field("messages").type.value_type]
    assert found == [shared_by(texts) + _beginnings.PAGE_BYTES for texts in wanted]


def test_conversations_that_spark_wrote_are_read(tmp_path: Path) -> None:
    """What each text could have of all others is far more than the file may unpack to."""
    turns = [{"role": "user", "content": f"question {n}"} for n in range(6)]
    rows = pyarrow.table({"messages": [turns] * 10_000})
    write(tmp_path / "a.parquet", rows, NESTED, data_page_version="2.0", compression="none")
    _, (group,) = _footer.footer_of(tmp_path / "a.parquet")
    assert max(one.values * one.unpacked_bytes for one in group.columns) > 1 << 32
    found = read(tmp_path / "a.parquet")
    assert [one.values for one in found if isinstance(one, Row)] == [{"messages": turns}] * 10_000


@pytest.mark.parametrize("nested", [False, True])
def test_a_large_text_that_all_others_repeat_is_counted_each_time(tmp_path: Path, nested: bool) -> None:
    texts = ["x" * (1 << 16)] * 200
    rows = pyarrow.table({"text": [texts] if nested else texts})
    write(tmp_path / "a.parquet", rows, ["text.list.element" if nested else "text"])
    with pytest.raises(UserError, match="it unpacks to 13,"):
        read(tmp_path / "a.parquet", unpacked_bytes=10 << 20)
    assert len(read(tmp_path / "a.parquet", unpacked_bytes=14 << 20)) == (1 if nested else 200)


def test_values_of_nothing_in_one_row_are_counted(tmp_path: Path) -> None:
    rows = pyarrow.table({"text": pyarrow.ListArray.from_arrays([0, 10**6], pyarrow.nulls(10**6))})
    pyarrow.parquet.write_table(rows, tmp_path / "a.parquet")
    with pytest.raises(UserError, match="it unpacks to 8,"):
        read(tmp_path / "a.parquet", unpacked_bytes=1 << 20)


@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_damaged_lengths_are_named(tmp_path: Path, version: str) -> None:
    """Bytes all over a small file, one at a time: it is read, or refused as what it is."""
    path = tmp_path / "a.parquet"
    write(path, table(3), NESTED, data_page_version=version, compression="none", write_statistics=False)
    whole = path.read_bytes()
    _, (group,) = _footer.footer_of(path)
    refused = []
    for at in range(4, max(one.start + one.packed_bytes for one in group.columns), 11):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        with contextlib.suppress(UserError):
            read(path)
            continue
        refused.append(at)
    assert len(refused) > 5


def test_a_group_with_fewer_rows_than_it_says_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    plain = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a", "b", "c"]}), path, row_group_size=2, **plain)
    data = path.read_bytes()
    for two, one in ((b"\x16\x04&\x08", b"\x16\x02&\x08"), (b"\x16\x02&N", b"\x16\x04&N")):
        assert data.count(two) == 1
        data = data.replace(two, one)
    path.write_bytes(data)
    with pytest.raises(UserError, match="row group 1 has 2 rows, and 1 can be read"):
        read(path)
