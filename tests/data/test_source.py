"""Reading files: what Python's readers get wrong, and faults with file and line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.config import DataFile
from luthier.data.source import json_array_rows, jsonl_rows, sources
from luthier.errors import UserError
from luthier.formats._shared import BadRow
from luthier.types import Row
from tests.helpers.properties import examples

GOOD = {"text": "a\u2028b\x85c 你好"}


def read(path: Path | str, **more: Any) -> list[Row | BadRow]:
    return [row for source in sources(DataFile(path=str(path), **more), "data.train") for row in source.rows()]


def write(path: Path, data: bytes | str) -> Path:
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def places(rows: list[Row | BadRow]) -> list[str]:
    return [row.place if isinstance(row, Row) else row.where.strip() for row in rows]


def test_jsonl_is_cut_at_line_feeds_only(tmp_path: Path) -> None:
    line = json.dumps(GOOD, ensure_ascii=False)
    path = write(tmp_path / "a.jsonl", f"\ufeff{line}\r\n\n{line}\n")
    rows = read(path)
    assert [row.values for row in rows if isinstance(row, Row)] == [GOOD, GOOD]
    assert places(rows) == [f"{path}:1", f"{path}:3"]


def test_an_array_an_object_and_lines_are_told_apart(tmp_path: Path) -> None:
    pretty = json.dumps([GOOD, GOOD], indent=2)
    path = write(tmp_path / "a.json", pretty)
    assert places(read(path)) == [f"{path}:2 (record 1)", f"{path}:5 (record 2)"]
    assert len(read(write(tmp_path / "array.jsonl", json.dumps([GOOD] * 3)))) == 3
    assert len(read(write(tmp_path / "object.json", json.dumps(GOOD, indent=1)))) == 1
    assert len(read(write(tmp_path / "lines.json", "\n".join([json.dumps(GOOD)] * 4)))) == 4
    assert read(write(tmp_path / "none.json", "[]")) == []


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"text": "a"', "broken JSON"),
        ('{"text": "a"} {"text": "b"}', "Extra data"),
        ('{"text": "a",}', "broken JSON"),
        ("// comment", "broken JSON"),
        ('{"text": NaN}', "NaN"),
        ('{"text": -Infinity}', "-Infinity"),
        ('{"text": "a", "text": "b"}', "'text' stands in it twice"),
        ('{"a": {"b": 1, "b": 2}}', "'b' stands in it twice"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a": ' + "9" * 5000 + "}", "broken JSON"),
        ('"only text"', "a map in braces"),
        ("3", "a map in braces"),
    ],
)
def test_a_bad_line_is_a_bad_row_and_the_others_are_read(tmp_path: Path, line: str, words: str) -> None:
    good = json.dumps(GOOD)
    path = write(tmp_path / "a.jsonl", "\n".join([good] * 6 + [line, good]))
    rows = read(path)
    assert len(rows) == 8
    bad = rows[6]
    assert isinstance(bad, BadRow)
    assert bad.where == f"{path}:7"
    assert words in str(bad)
    assert bad.raw == line
    assert len(str(bad)) < 300


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ('[\n{"a": 1},\n{"a": 2\n}\n{"a": 3}]', 5, "comma or ] is missing"),
        ('[\n{"a": 1},\n{"a" 2}]', 3, "Expecting ':'"),
        ('[\n{"a": 1},\n', 3, "ends inside the array"),
        ('[\n{"a": 1}\n', 3, "ends inside the array"),
        ('[{"a": 1},\n]', 2, "a comma before ]"),
        ('[{"a": 1}]\n\n[]', 3, "more text after the array"),
    ],
)
def test_a_broken_array_is_an_error_with_its_line(tmp_path: Path, text: str, line: int, words: str) -> None:
    path = write(tmp_path / "a.json", text)
    with pytest.raises(UserError) as caught:
        read(path)
    assert caught.value.where == f"{path}:{line}"
    assert words in caught.value.found


def test_csv(tmp_path: Path) -> None:
    long = "x" * 200_000  # beyond the csv module's own limit
    path = write(tmp_path / "a.csv", f'prompt,completion\n"a\nb",c\n\nonly one\n"d, e",{long}\n')
    rows = read(path)
    assert places(rows) == [f"{path}:2", f"{path}:5", f"{path}:6"]
    assert isinstance(rows[0], Row)
    assert rows[0].values == {"prompt": "a\nb", "completion": "c"}
    assert isinstance(rows[1], BadRow)
    assert "1 fields" in rows[1].found
    assert isinstance(rows[2], Row)
    assert rows[2].values["completion"] == long
    with pytest.raises(UserError, match="each once"):
        read(write(tmp_path / "twice.csv", "a,a\n1,2\n"))
    tabs = read(write(tmp_path / "a.tsv", "prompt\tcompletion\na\tb\n"))
    assert isinstance(tabs[0], Row)
    assert tabs[0].values == {"prompt": "a", "completion": "b"}


def test_parquet(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"messages": [[{"role": "user", "content": "a"}]] * 3}), path)
    rows = read(path)
    assert places(rows) == [f"{path}:{number}" for number in (1, 2, 3)]
    assert isinstance(rows[0], Row)
    assert rows[0].values == {"messages": [{"role": "user", "content": "a"}]}
    data = path.read_bytes()
    for cut in (b"", data[:-9], b"PAR1 no parquet"):
        with pytest.raises(UserError, match="Parquet"):
            read(write(tmp_path / "b.parquet", cut))


def test_a_data_set_in_the_layout_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "set").mkdir()
    write(tmp_path / "set" / "train.jsonl", json.dumps({"text": "a"}) + "\n")
    rows = read(f"hf:{tmp_path / 'set'}")
    assert [row.values for row in rows if isinstance(row, Row)] == [{"text": "a"}]
    with pytest.raises(UserError, match="split"):
        read(f"hf:{tmp_path / 'set'}", split="nothing")
    with pytest.raises(UserError, match="no such data set"):
        read(f"hf:{tmp_path / 'nowhere'}")


def test_a_subset_of_a_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "set").mkdir()
    card = ["---", "configs:"]
    for name in ("one", "two"):
        write(tmp_path / "set" / f"{name}.jsonl", json.dumps({"text": name}) + "\n")
        card += [f"- config_name: {name}", f"  data_files: {name}.jsonl"]
    write(tmp_path / "set" / "README.md", "\n".join([*card, "---", ""]))
    for name in ("one", "two"):
        rows = read(f"hf:{tmp_path / 'set'}", subset=name)
        assert [row.values for row in rows if isinstance(row, Row)] == [{"text": name}]
    with pytest.raises(UserError, match="subset"):
        read(f"hf:{tmp_path / 'set'}", subset="three")


def test_faults_of_paths_and_encodings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "train.jsonl", "{}")
    for path, words in (
        ("trian.jsonl", 'did you mean "train.jsonl"'),
        ("nowhere/a.jsonl", "no such file"),
        ("org/name", "hf:org/name"),
        ("*.csv", "no file matches"),
        (".", "a folder"),
        ("/dev/null", "no ordinary file"),
    ):
        with pytest.raises(UserError, match=words.replace("?", r"\?")):
            read(path)
    write(tmp_path / "a.docx", "x")
    with pytest.raises(UserError, match=r"\.docx is not known"):
        read("a.docx")
    for data, words in (
        ("{}".encode("utf-16"), "UTF-16"),
        (b'{"text": "a"}\n{"text": "\xe4"}', "a.jsonl:2"),
        (b" \n", "empty"),
        (b"", "empty"),
    ):
        write(tmp_path / "a.jsonl", data)
        with pytest.raises(UserError, match=words):
            read("a.jsonl")
    write(tmp_path / "b1.jsonl", '{"a": 1}')
    write(tmp_path / "b2.jsonl", '{"a": 2}')
    assert places(read("b*.jsonl")) == ["b1.jsonl:1", "b2.jsonl:1"]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=5,
)
RECORDS = st.lists(st.dictionaries(st.text(max_size=5), VALUES, max_size=3), max_size=6)


@examples(200)
@given(RECORDS, st.booleans(), st.sampled_from((None, 1)))
def test_every_record_that_is_written_is_read(
    records: list[dict[str, Any]], ascii_only: bool, indent: int | None
) -> None:
    array = json.dumps(records, ensure_ascii=ascii_only, indent=indent)
    assert [row.values for row in json_array_rows(array, "a") if isinstance(row, Row)] == records
    lines = "\n".join(json.dumps(record, ensure_ascii=ascii_only) for record in records)
    assert [row.values for row in jsonl_rows(lines, "a") if isinstance(row, Row)] == records


@examples(300)
@given(st.text(alphabet='{}[],:"\\ \nau019tn', max_size=30))
def test_no_text_brings_the_readers_down(text: str) -> None:
    assert all(isinstance(row, (Row, BadRow)) for row in jsonl_rows(text, "a"))
    try:
        list(json_array_rows("[" + text, "a"))
    except UserError as error:
        assert error.where.startswith("a:")  # noqa: PT017
