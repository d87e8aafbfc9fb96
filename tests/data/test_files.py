"""Reading files: what Python's readers get wrong, and faults with file and line."""

from __future__ import annotations

import gzip
import json
import pickle
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from luthier.config import DataFile
from luthier.data.files import sources
from luthier.errors import BadRow, EnvironmentProblem, UserError
from luthier.system import strict_json
from luthier.types import Row

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


def nested(lists: int) -> str:
    return '{"a": ' + "[" * lists + "1" + "]" * lists + "}"


def test_what_is_nested_as_deeply_as_allowed_is_a_row_that_a_worker_can_be_given(tmp_path: Path) -> None:
    (row,) = read(write(tmp_path / "a.jsonl", nested(strict_json.MOST_NESTED - 1)))
    assert pickle.loads(pickle.dumps(row)) == row  # noqa: S301


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
        (nested(strict_json.MOST_NESTED), "nested too deeply"),
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
    (tmp_path / "below" / "further").mkdir(parents=True)
    (tmp_path / "circle.jsonl").symlink_to("circle.jsonl")
    for path, words in (
        ("trian.jsonl", 'did you mean "train.jsonl"'),
        ("nowhere/a.jsonl", "no such file"),
        ("org/name", "hf:org/name"),
        ("*.csv", "no file matches"),
        ("below", "no data files lie in this folder"),
        ("circle.jsonl", "in a circle"),
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


def test_a_folder_is_all_its_files_of_one_kind(tmp_path: Path) -> None:
    for number in (2, 1):
        write(tmp_path / f"{number}.jsonl", f'{{"a": {number}}}')
    write(tmp_path / "3.jsonl.gz", gzip.compress(b'{"a": 3}'))
    write(tmp_path / "README.md", "about")
    write(tmp_path / ".hidden.csv", "a")
    assert [row.values["a"] for row in read(tmp_path) if isinstance(row, Row)] == [1, 2, 3]
    (first, *more) = sources(DataFile(path=str(tmp_path)), "data.train")
    assert first.note == "beside it in the folder and left out: 'README.md'"
    assert not any(source.note for source in more)
    write(tmp_path / "4.csv", "a\n4\n")
    with pytest.raises(UserError, match=r"files of several kinds lie in this folder: 4\.csv, 1\.jsonl"):
        read(tmp_path)


def test_keys_of_hubs_are_refused_for_files(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", "{}")
    for key in ("split", "subset", "revision", "data_dir"):
        with pytest.raises(UserError, match=f"{key}: main of a local file"):
            read(path, **{key: "main"})


@pytest.mark.parametrize(
    ("first", "words"), [(b"\x1f\x8b", "gzip"), (b"PAR1", "Parquet"), (b"PK\x03\x04", "zip archive")]
)
def test_a_file_with_another_content_than_its_name_says_so(tmp_path: Path, first: bytes, words: str) -> None:
    with pytest.raises(UserError, match=words):
        read(write(tmp_path / "a.jsonl", first + b"\x00" * 20))


def test_a_picture_is_told_as_one_and_not_to_be_renamed(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * 20)
    (tmp_path / "cat.PNG").write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * 20)
    for name in ("rows.jsonl", "cat.PNG"):
        with pytest.raises(UserError, match="a picture") as caught:
            read(tmp_path / name)
        assert "name" not in caught.value.fix.removeprefix("name a file of rows")
        assert "mv " not in caught.value.fix


def test_a_part_of_a_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    for name in ("one", "two"):
        (tmp_path / "set" / name).mkdir(parents=True)
        write(tmp_path / "set" / name / "train.jsonl", json.dumps({"text": name}) + "\n" + json.dumps({"text": "b"}))
    (source,) = sources(DataFile(path=f"hf:{tmp_path / 'set'}", data_dir="two"), "data.train")
    assert [row.values for row in source.rows() if isinstance(row, Row)] == [{"text": "two"}, {"text": "b"}]
    assert places(list(source.rows(1))) == [f"hf:{tmp_path / 'set'}:2"]
    assert source.count() == 2


def test_a_data_set_of_modelscope(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its package fetches the files; a stand-in for it does here, and records what it is asked for."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "fetched").mkdir()
    write(tmp_path / "fetched" / "train.jsonl", json.dumps({"text": "a"}) + "\n")
    asked: list[tuple[str, str]] = []

    class NotExistError(Exception): ...

    def dataset_snapshot_download(name: str, revision: str) -> str:
        asked.append((name, revision))
        if name == "org/none":
            raise NotExistError("no such data set")
        return str(tmp_path / "fetched")

    names = {name: type(name, (Exception,), {}) for name in ("FileDownloadError", "NotLoginException")}
    errors = SimpleNamespace(NotExistError=NotExistError, **names)
    for name, module in (
        ("modelscope", SimpleNamespace()),
        ("modelscope.hub", SimpleNamespace()),
        ("modelscope.hub.errors", errors),
        ("modelscope.hub.snapshot_download", SimpleNamespace(dataset_snapshot_download=dataset_snapshot_download)),
    ):
        monkeypatch.setitem(sys.modules, name, module)
    assert len(read("ms:org/name", revision="v1")) == len(read("ms:org/name")) == 1
    assert asked == [("org/name", "v1"), ("org/name", "master")]
    with pytest.raises(UserError, match="no such data set"):
        read("ms:org/none")
    monkeypatch.setitem(sys.modules, "modelscope.hub.errors", None)
    with pytest.raises(EnvironmentProblem, match="modelscope is not installed"):
        read("ms:org/name")


def test_keys_that_only_other_rows_have_are_absent_in_a_hubs_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "set").mkdir()
    rows = [{"tools": [{"name": "f", "x": 1}]}, {"tools": [{"name": "g", "y": 2}]}]
    write(tmp_path / "set" / "train.jsonl", "\n".join(map(json.dumps, rows)))
    assert [row.values for row in read(f"hf:{tmp_path / 'set'}") if isinstance(row, Row)] == rows
