"""`--row`: one way to name a row, wherever it is asked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from luthier.config import DataFile
from luthier.data.files import sources
from luthier.data.row_names import RowName, option_of, row_called
from luthier.errors import UserError
from luthier.types import Row


@pytest.mark.parametrize(
    ("asked", "name", "means"),
    [
        ("17", "train.jsonl:17", True),
        ("17", "train.jsonl:117", False),
        ("train.jsonl:17", "data/train.jsonl:17", True),
        ("data/train.jsonl:17", "data/train.jsonl:17", True),
        ("./data/train.jsonl:17", "data/train.jsonl:17", True),
        ("other/train.jsonl:17", "data/train.jsonl:17", False),
        ("rain.jsonl:17", "train.jsonl:17", False),
        ("train.jsonl:17", "hf:org/train.jsonl:17", True),
        ("hf:org/chats:3", "hf:org/chats:3", True),
        ("3", "a b (c).json:9 (record 3)", False),
        ("9", "a b (c).json:9 (record 3)", True),
        ("a b (c).json:9", "a b (c).json:9 (record 3)", True),
        ("a b (c).json:9 (record 3)", "data/a b (c).json:9 (record 3)", True),
        ("#3", "a b (c).json:9 (record 3)", True),
        ("#9", "a b (c).json:9 (record 3)", False),
        ("(record 3)", "a b (c).json:9 (record 3)", True),
        ("a b (c).json:#3", "a b (c).json:9 (record 3)", True),
        ("a b (c).json#3", "a b (c).json:9 (record 3)", True),
        ("a b (c).json (record 3)", "a b (c).json:9 (record 3)", True),
        ("other.json:#3", "a b (c).json:9 (record 3)", False),
        ("#17", "train.jsonl:17", True),
        ("C:\\data\\t.jsonl:4", "C:\\data\\t.jsonl:4", True),
    ],
)
def test_a_name_means_a_row(asked: str, name: str, means: bool) -> None:
    assert RowName.read(asked).means(name) is means


def test_an_absolute_path_means_the_same_file() -> None:
    assert RowName.read(f"{Path('train.jsonl').absolute()}:2").means("train.jsonl:2")
    assert RowName.read("train.jsonl:2").means(f"{Path('train.jsonl').absolute()}:2")


@pytest.mark.parametrize("asked", ["", "train.jsonl", "train.jsonl:", "x:y", "-1", "3 ", "#", "#x", "(record )"])
def test_what_names_no_row(asked: str) -> None:
    with pytest.raises(UserError, match="#N for record N of a JSON array"):
        RowName.read(asked)


def called(asked: str, path: Path) -> tuple[str | None, str]:
    (source,) = sources(DataFile(path=str(path)), "data.train")
    row, before = row_called(RowName.read(asked), source.rows())
    return row.place if isinstance(row, Row) else row and row.row, before


def test_a_row_is_found_in_its_file_and_the_one_before_is_told(tmp_path: Path) -> None:
    array = tmp_path / "rows.json"
    array.write_text(json.dumps([{"text": "a"}, {"text": "b"}, 3, {"text": "c"}], indent=1))
    assert called("5", array) == (f"{array}:5 (record 2)", f"{array}:2 (record 1)")
    assert called("#3", array) == (f"{array}:8 (record 3)", f"{array}:5 (record 2)")
    assert called("6", array) == (None, f"{array}:5 (record 2)")
    assert called("#9", array) == (None, f"{array}:9 (record 4)")
    lines = tmp_path / "rows.jsonl"
    lines.write_text('{"text": "a"}\n\n{"text": "b"}\nbroken\n')
    assert called("3", lines) == (f"{lines}:3", f"{lines}:1")
    assert called("4", lines) == (f"{lines}:4", f"{lines}:3")
    assert called("2", lines) == (None, f"{lines}:1")


def test_of_records_on_one_line_one_has_to_be_said(tmp_path: Path) -> None:
    array = tmp_path / "rows.json"
    array.write_text('[{"text": "a"}, {"text": "b"}, {"text": "c"},\n{"text": "d"}]')
    with pytest.raises(UserError) as caught:
        called("1", array)
    assert caught.value.found == f"3 records begin at line 1 of {array}"
    assert caught.value.fix == f"--row '{array}:#1'"
    assert called("#2", array) == (f"{array}:1 (record 2)", f"{array}:1 (record 1)")


def test_where_all_records_stand_on_one_line_a_number_counts_them(tmp_path: Path) -> None:
    array = tmp_path / "rows.json"
    array.write_text(json.dumps([{"text": text} for text in "abcd"]))
    for number in (1, 3):
        assert called(str(number), array)[0] == f"{array}:1 (record {number})"
        assert called(f"rows.json:{number}", array)[0] == f"{array}:1 (record {number})"
        assert called(f"#{number}", array)[0] == f"{array}:1 (record {number})"
    assert called("5", array) == (None, f"{array}:1 (record 4)")
    array.write_text(json.dumps([{"text": "a"}]))
    assert called("1", array)[0] == f"{array}:1 (record 1)"


@pytest.mark.parametrize("name", ["train.jsonl:17", "a b.json:9 (record 3)", "it's.json:9 (record 3)"])
def test_what_an_error_proposes_is_read_again(name: str) -> None:
    import shlex

    option, text = shlex.split(option_of(RowName.read(name)))
    assert option == "--row"
    assert RowName.read(text).means(name)
