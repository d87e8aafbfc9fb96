"""Readers: every record that is written is read, from any place on, in pieces of any size, without holding the file."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import tempfile
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.ipc
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.config import DataFile
from luthier.data import readers
from luthier.data.files import Source, sources
from luthier.data.readers import Limits, _bytes, _limits, json_array
from luthier.data.readers._bytes import File
from luthier.errors import BadRow, UserError
from luthier.system import strict_json
from luthier.types import Row
from tests.helpers.properties import examples


def read(path: Path | str, start: int = 0, **limits: int) -> list[Row | BadRow]:
    found = [replace(source, limits=Limits(**limits)) for source in sources(DataFile(path=str(path)), "data.train")]
    return [row for source in found for row in source.rows(start)]


def values(rows: list[Row | BadRow]) -> list[Any]:
    return [row.values for row in rows if isinstance(row, Row)]


def records(text: str, name: str, start: int = 0) -> list[Row | BadRow]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_text(text, encoding="utf-8", newline="")
        return list(readers.records(File(path, "a"), start))


def packed_by_zstd(data: bytes) -> bytes:
    return bytes(pyarrow.compress(data, codec="zstd", asbytes=True))


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": packed_by_zstd,
}

ROWS = [{"instruction": f"request {number}", "output": "a\u2028b é " * (1 + number % 3)} for number in range(3000)]


def as_csv(rows: list[dict[str, str]]) -> str:
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def as_lines(rows: list[dict[str, str]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


TEXTS = {
    ".jsonl": as_lines(ROWS),
    ".json": json.dumps(ROWS, indent=1),
    ".csv": as_csv(ROWS),
    ".tsv": as_csv(ROWS).replace(",", "\t"),
}


def write_arrow(path: Path, *, stream: bool) -> None:
    table = pyarrow.Table.from_pylist(ROWS)
    new = pyarrow.ipc.new_stream if stream else pyarrow.ipc.new_file
    with new(str(path), table.schema) as writer:
        for batch in table.to_batches(max_chunksize=700):
            writer.write_batch(batch)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same rows in every kind of file."""
    folder = tmp_path_factory.mktemp("kinds")
    for ending, text in TEXTS.items():
        (folder / f"a{ending}").write_text(text, encoding="utf-8", newline="")
        for packed, pack in PACKERS.items():
            (folder / f"a{ending}{packed}").write_bytes(pack(text.encode()))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), folder / "a.parquet", row_group_size=700)
    write_arrow(folder / "file.arrow", stream=False)
    write_arrow(folder / "stream.arrow", stream=True)
    return folder


NAMES = [f"a{ending}{packed}" for ending in TEXTS for packed in ("", *PACKERS)]
NAMES += ["a.parquet", "file.arrow", "stream.arrow"]


@pytest.mark.parametrize("name", NAMES)
def test_all_kinds_of_file_hold_the_same_rows(folder: Path, name: str) -> None:
    (source,) = sources(DataFile(path=str(folder / name)), "data.train")
    whole = list(source.rows())
    assert values(whole) == ROWS
    assert source.count() == len(ROWS)
    for start in (0, 1, 699, 700, 1024, 2999, 3000, 4000):
        again = list(source.rows(start))
        assert [row.id for row in again if isinstance(row, Row)] == [
            row.id for row in whole[start:] if isinstance(row, Row)
        ]
        assert values(again) == ROWS[start:]


def test_text_is_a_row_a_line(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeffone\r\n\n two \u2028 \n\x0bthree".encode())
    rows = read(tmp_path / "a.txt")
    assert values(rows) == [{"text": "one"}, {"text": " two \u2028 "}, {"text": "\x0bthree"}]
    assert [row.number for row in rows if isinstance(row, Row)] == [1, 3, 4]


def test_a_later_start_begins_at_a_mark(folder: Path) -> None:
    (source,) = sources(DataFile(path=str(folder / "a.jsonl")), "data.train")
    list(source.rows())
    marks = source._file().marks
    assert [mark.record for mark in marks] == [1024, 2048]
    data = (folder / "a.jsonl").read_bytes()
    for mark in marks:
        assert data[: mark.offset_bytes].count(b"\n") == mark.line == mark.record
    list(source.rows(1500))
    assert source._file().marks == marks


LINES = st.lists(
    st.sampled_from(('{"a": 1}', '{"a": "é\u2028"}', "", " \t", "{broken", '{"a": 1}{"b": 2}', "[1]", '{"a": "\r"}')),
    max_size=12,
)


@examples(200)
@given(LINES, st.integers(0, 13), st.booleans())
def test_any_start_gives_the_rest(texts: list[str], start: int, marked: bool) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(_bytes, "RECORDS_BETWEEN_MARKS", 3)
        path = Path(folder) / "a.jsonl"
        path.write_text("\ufeff{}\n" + "\n".join(texts), encoding="utf-8", newline="")
        file = File(path, "a")

        def told(first: int) -> list[tuple[str, str]]:
            found = readers.records(file, first)
            return [(row.place, str(row.values)) if isinstance(row, Row) else (row.where, row.found) for row in found]

        whole = told(0)
        assert len(whole) == 1 + sum(bool(text.strip(" \t")) for text in texts) == readers.count(file)
        if not marked:
            file.marks.clear()
        assert told(start) == whole[start:]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
RECORDS = st.lists(st.dictionaries(st.text(max_size=5), VALUES, max_size=3), min_size=1, max_size=6)


@pytest.mark.prove
@examples(150)
@given(RECORDS, st.booleans(), st.sampled_from((None, 1)), st.sampled_from((1, 2, 5, 17, 1 << 20)), st.integers(0, 7))
def test_every_record_that_is_written_is_read(
    written: list[dict[str, Any]], ascii_only: bool, indent: int | None, block: int, start: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_array, "BLOCK_BYTES", block)
        array = json.dumps(written, ensure_ascii=ascii_only, indent=indent)
        found = records(array, "a.json", start)
        assert values(found) == written[start:]
        for number, row in enumerate(found, start=start + 1):
            assert isinstance(row, Row)
            assert row.number == number
            if indent and row.values:
                assert array.split("\n")[(row.line or 0) - 1].lstrip() == "{"
        if indent and len(written) == 1 and written[0]:
            assert values(records(json.dumps(written[0], indent=1), "a.json")) == written
    lines = "\n".join(json.dumps(record, ensure_ascii=ascii_only) for record in written)
    assert values(records(lines, "a.jsonl")) == written
    assert values(records(lines, "a.json")) == written


@examples(300)
@given(st.text(alphabet='{}[],:"\\ \nau019tn', max_size=30), st.sampled_from((1, 3, 64)))
def test_no_text_brings_the_readers_down(text: str, block: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_array, "BLOCK_BYTES", block)
        for name, whole in (
            ("a.jsonl", '{"a": 1}\n' + text),
            ("a.json", "[" + text),
            ("a.json", text),
            ("a.csv", "a,b\n" + text),
        ):
            try:
                assert all(isinstance(row, (Row, BadRow)) for row in records(whole, name))
            except UserError as error:
                assert error.where.startswith("a")  # noqa: PT017


@examples(300)
@given(st.text(alphabet='{}[],:"\\ \nau019tn', max_size=30))
def test_pieces_give_the_same_as_the_whole(text: str) -> None:
    def told(block: int) -> list[str]:
        out: list[str] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(json_array, "BLOCK_BYTES", block)
            try:
                out += [repr(row) for row in records("[" + text, "a.json")]
            except UserError as error:
                out.append(str(error))
        return out

    assert told(1) == told(1 << 20)


@examples(300)
@given(st.lists(st.lists(st.text(alphabet='ab",\n\r é\u2028', max_size=6), min_size=2, max_size=2), max_size=6))
def test_every_csv_record_that_is_written_is_read(written: list[list[str]]) -> None:
    out = io.StringIO(newline="")
    csv.writer(out, quoting=csv.QUOTE_ALL).writerows([["a", "b"], *written])
    assert values(records(out.getvalue(), "a.csv")) == [{"a": a, "b": b} for a, b in written]


def test_csv_lines_may_end_with_a_carriage_return_alone() -> None:
    rows = records('a,b\r1,"x\r\ny"\r2,z', "a.csv")
    assert values(rows) == [{"a": "1", "b": "x\r\ny"}, {"a": "2", "b": "z"}]


@pytest.mark.parametrize("last", ["x,y", 'x,"y"', '"x",y'])
def test_an_open_quote_is_no_row_that_swallows_others(last: str) -> None:
    lines = ["a,b", "1,2", '3,"4', "5,6", "7,8", last]
    with pytest.raises(UserError, match=r"a:3: broken CSV: .*an open quote takes in lines 3 to 6"):
        records("\n".join(lines), "a.csv")
    rows = records("\n".join([*lines[:2], '3,"4"x', *lines[3:]]), "a.csv")
    assert [isinstance(row, BadRow) for row in rows] == [False, True, False, False, False]


def plain_faults(text: str) -> bool:
    """Whether a value has a key twice, told from all pairs."""
    twice = False

    def look(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal twice
        twice = twice or len({key for key, _ in pairs}) < len(pairs)
        return dict(pairs)

    json.loads(text, object_pairs_hook=look)
    return twice


PAIRS = st.recursive(
    st.sampled_from(("1", '"a:b"', '"\\u003a"', "null")),
    lambda inner: (
        st.lists(st.tuples(st.sampled_from(('"a"', '"b"', '"\\u0061"', '":"')), inner), max_size=3).map(
            lambda pairs: "{" + ",".join(f"{key}: {value}" for key, value in pairs) + "}"
        )
        | st.lists(inner, max_size=3).map(lambda items: "[" + ", ".join(items) + "]")
    ),
    max_leaves=8,
)


@examples(400)
@given(PAIRS)
def test_a_key_that_stands_twice_is_always_found(text: str) -> None:
    parser = strict_json.StrictJSON()
    value, end = parser.value_at(text)
    assert end == len(text)
    assert value == json.loads(text)
    assert bool(parser.faults) == plain_faults(text)


# ---- damage and bounds


@pytest.mark.parametrize("packed", PACKERS)
def test_a_packed_file_that_is_cut_or_none_is_named(tmp_path: Path, packed: str) -> None:
    whole = PACKERS[packed](TEXTS[".jsonl"].encode())
    path = tmp_path / f"a.jsonl{packed}"
    for data in (whole[:-5], whole[: len(whole) // 2], b"no such thing at all", whole[:40] + b"\xff" * 40 + whole[80:]):
        path.write_bytes(data)
        with pytest.raises(UserError) as caught:
            read(path)
        assert caught.value.where == str(path)
        assert "damaged or cut off" in caught.value.found
        assert f"-t {path}" in caught.value.fix
    path.write_bytes(whole + whole)  # several members are one file
    assert len(read(path)) == 2 * len(ROWS)


@pytest.mark.parametrize("packed", PACKERS)
def test_a_bomb_is_refused(tmp_path: Path, packed: str) -> None:
    path = tmp_path / f"a.jsonl{packed}"
    path.write_bytes(PACKERS[packed](b'{"text": "a"}\n' + b"\n" * (40 << 20)))
    with pytest.raises(
        UserError, match=r"unpacks to more than 1,048,576 bytes from .*\n.*\nfix: data\.max_unpacked_bytes="
    ):
        read(path, unpacked_bytes=1 << 20)
    assert len(read(path, unpacked_bytes=64 << 20)) == 1


def test_short_answers_under_one_long_text_are_no_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_limits, "FREE_BYTES", 1)
    system = "Be brief, and say where you know it from. " * 200
    path = tmp_path / "a.jsonl.gz"
    data = "".join(json.dumps({"system": system, "output": str(number)}) + "\n" for number in range(1000)).encode()
    path.write_bytes(gzip.compress(data * 3))
    assert 250 < len(data) * 3 / path.stat().st_size < 900
    assert len(read(path)) == 3000


def test_a_file_that_a_command_names_has_no_key_that_raises_its_limits(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": "x" * (17 << 20)}))
    (source,) = sources(DataFile(path=str(path)), "--row")
    (row,) = source.rows()
    assert isinstance(row, BadRow)
    assert row.fix == ""


def test_a_record_has_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    most = {"row_bytes": 5000}
    long, good = json.dumps({"text": "x" * 6000}), json.dumps({"text": "y" * 4000})
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join([good, long, good]))
    rows = read(path, **most)
    assert len(values(rows)) == 2
    assert isinstance(rows[1], BadRow)
    assert rows[1].where == f"{path}:2"
    assert rows[1].found == "a row of 6,013 bytes"
    assert "5,000 bytes" in rows[1].expected
    assert rows[1].fix == "data.max_row_bytes=6013 reads it"
    assert len(rows[1].raw or "") == 1000
    monkeypatch.setattr(json_array, "BLOCK_BYTES", 100)
    (tmp_path / "a.json").write_text(f"[{good},\n{long}]")
    with pytest.raises(UserError, match=r"a\.json:2: a record of more than"):
        read(tmp_path / "a.json", **most)
    (tmp_path / "a.csv").write_text(f"a,b\nx,{'y' * 6000}\n")
    with pytest.raises(UserError, match=r"a\.csv:2: a row of 6,003 bytes"):
        read(tmp_path / "a.csv", **most)
    (tmp_path / "b.csv").write_text('a,b\nx,"' + "y\n" * 3000)
    with pytest.raises(UserError, match=r"b\.csv:2: a record of more than 5,000 bytes; .* takes in lines 2 to"):
        read(tmp_path / "b.csv", **most)


def test_a_file_that_changes_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n' * 5000)
    for change in (lambda: path.write_text('{"text": "b"}\n'), path.unlink):
        (source,) = sources(DataFile(path=str(path)), "data.train")
        source.fingerprint()
        rows = source.rows()
        next(rows)
        change()
        with pytest.raises(UserError, match="while it was read"):
            list(rows)


def test_an_array_that_is_cut_because_it_is_written_says_so(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('[{"text": "a"}, {"text": "b"}]')
    (source,) = sources(DataFile(path=str(path)), "data.train")
    source.fingerprint()
    path.write_text('[{"text": "a"}, {"te')
    with pytest.raises(UserError, match="changed while it was read"):
        list(source.rows())


def test_nulls_inside_of_maps_of_columnar_files_are_absent_keys(tmp_path: Path) -> None:
    rows = [{"a": None, "tools": [{"name": "f", "x": 1}, {"name": "g", "y": 2}]}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert values(read(tmp_path / "a.parquet")) == rows


def test_damaged_columnar_files_are_named(tmp_path: Path, folder: Path) -> None:
    for name, kind in (("a.parquet", "Parquet"), ("file.arrow", "Arrow"), ("stream.arrow", "Arrow")):
        data = (folder / name).read_bytes()
        path = tmp_path / name
        for part in (b"", b"no such thing", data[: len(data) // 2], data[:100]):
            path.write_bytes(part)
            with pytest.raises(UserError, match=f"no readable {kind} file") as caught:
                read(path)
            assert caught.value.where == str(path)


def test_a_damaged_page_is_found_by_its_checksum(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path, write_page_checksum=True, compression="none")
    data = bytearray(path.read_bytes())
    at = data.index(b"request 7")
    data[at] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="no readable Parquet"):
        read(path)


def test_no_row_groups_are_no_rows(tmp_path: Path) -> None:
    schema = pyarrow.schema([("text", pyarrow.string())])
    pyarrow.parquet.ParquetWriter(tmp_path / "a.parquet", schema).close()
    assert read(tmp_path / "a.parquet") == []


def many(path: Path, count: int) -> Source:
    line = json.dumps({"instruction": "ask " * 20, "output": "answer " * 40})
    with path.open("w", encoding="utf-8") as file:
        if path.suffix == ".csv":
            file.write("instruction,output\n" + f"{'ask ' * 20},{'answer ' * 40}\n" * count)
        else:
            array = path.suffix == ".json"
            file.write("[" * array + ((line + (",\n" if array else "\n")) * (count - 1)) + line + "]" * array)
    return Source(str(path), DataFile(path=str(path)), path)


def peak_bytes(rows: Iterator[Any]) -> int:
    tracemalloc.start()
    for _ in rows:
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


@pytest.mark.prove
@pytest.mark.parametrize("ending", [".jsonl", ".json", ".csv"])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, ending: str) -> None:
    small, large = many(tmp_path / f"small{ending}", 8_000), many(tmp_path / f"large{ending}", 32_000)
    assert large.path is not None
    assert large.path.stat().st_size > 10 << 20
    assert peak_bytes(large.rows()) < peak_bytes(small.rows()) + (1 << 20)
