"""`--row`: one way to name a row, wherever it is asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from luthier.data.row_names import RowName
from luthier.errors import UserError


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
        ("3", "a b (c).json:9 (record 3)", True),
        ("9", "a b (c).json:9 (record 3)", False),
        ("a b (c).json:9 (record 3)", "a b (c).json:3", True),
        ("C:\\data\\t.jsonl:4", "C:\\data\\t.jsonl:4", True),
    ],
)
def test_a_name_means_a_row(asked: str, name: str, means: bool) -> None:
    assert RowName.read(asked).means(name) is means


def test_an_absolute_path_means_the_same_file() -> None:
    assert RowName.read(f"{Path('train.jsonl').absolute()}:2").means("train.jsonl:2")
    assert RowName.read("train.jsonl:2").means(f"{Path('train.jsonl').absolute()}:2")


@pytest.mark.parametrize("asked", ["", "train.jsonl", "train.jsonl:", "x:y", "-1", "3 "])
def test_what_names_no_row(asked: str) -> None:
    with pytest.raises(UserError, match="in a JSON array the record's number"):
        RowName.read(asked)
