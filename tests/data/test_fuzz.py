"""Every reader of data, the registry and chat templates, with damaged files: see `fuzzed.py`."""

from __future__ import annotations

import bz2
import gzip
import io
import itertools
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.ipc
import pyarrow.parquet
import pytest

from luthier.config import DataFile
from luthier.data.chat.check import shapes
from luthier.data.chat.renderer import ChatRenderer
from luthier.data.chat.template import Template
from luthier.data.files import sources
from luthier.data.recognise import row_parser_of
from luthier.data.registry import from_registry
from luthier.errors import BadRow
from luthier.types import Conversation, Row, Text
from tests.data.fuzzed import fuzz
from tests.data.hostile_columnar import shared
from tests.helpers import tokenizers
from tests.helpers.tokenizers import CHATML, INST, MARKED, TURNS

pytestmark = pytest.mark.prove

ROWS: list[dict[str, Any]] = [{"instruction": f"Say {n}", "output": f"number {n} \u2028 é 你"} for n in range(9)]
TALK = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "tools": None}] * 3
LINES = [("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)).encode() for rows in (ROWS, TALK)]
ARRAYS = [json.dumps(rows, indent=1).encode() for rows in (ROWS, TALK)] + [b'{\n"text": "a"\n}']
CSV = [b'instruction,output\n"a ""b"", c\nd",e\nf,g\n', b"text\r\na\r\n\r\nb\r\n", b"text,b\rc,d\r"]
TEXTS = ["a line\n\nanother \u2028 one\n你好\n".encode(), b"\xef\xbb\xbfa\n"]
TABLES = [
    pyarrow.Table.from_pylist(ROWS),
    pyarrow.Table.from_pylist([{"messages": row["messages"], "n": 1.5, "m": {"a": [1, None]}} for row in TALK]),
    pyarrow.table({"text": shared(9, 50), "v": pyarrow.array(["x" * 20] * 9, pyarrow.string_view())}),
]
TEXT_COLUMNS = (["instruction", "output"], ["messages.list.element.role", "messages.list.element.content"])


def parquet(table: Any, **options: Any) -> bytes:
    sink = io.BytesIO()
    pyarrow.parquet.write_table(table, sink, **options)
    return sink.getvalue()


def arrow(table: Any, make: Callable[..., Any], **options: Any) -> bytes:
    sink = io.BytesIO()
    with make(sink, table.schema, options=pyarrow.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table)
    return sink.getvalue()


PARQUET = [
    parquet(table, **options)
    for table in TABLES[:2]
    for options in (
        {},
        {"compression": "zstd", "use_dictionary": False},
        {"row_group_size": 2, "data_page_version": "2.0"},
    )
]
PARQUET += [
    parquet(table, use_dictionary=False, column_encoding=dict.fromkeys(columns, "DELTA_BYTE_ARRAY"), **options)
    for table, columns in zip(TABLES[:2], TEXT_COLUMNS, strict=True)
    for options in ({"data_page_version": "2.0"}, {"compression": "none"})
]
ARROW = [
    arrow(table, make, **options)
    for table in TABLES
    for make in (pyarrow.ipc.new_stream, pyarrow.ipc.new_file)
    for options in ({}, {"compression": "zstd"})
]
SEEDS = {
    ".jsonl": LINES,
    ".json": [*ARRAYS, *LINES],
    ".csv": CSV,
    ".tsv": [text.replace(b",", b"\t") for text in CSV],
    ".txt": TEXTS,
    ".parquet": PARQUET,
    ".arrow": ARROW,
    ".jsonl.gz": [gzip.compress(text) for text in LINES],
    ".json.bz2": [bz2.compress(text) for text in ARRAYS],
    ".csv.xz": [lzma.compress(text) for text in CSV],
    ".txt.zst": [bytes(pyarrow.compress(text * 50, codec="zstd", asbytes=True)) for text in TEXTS],
}


def read(path: Path) -> None:
    """As a run reads: the format by the first rows, then all of them, and again from the middle."""
    (source,) = sources(DataFile(path=str(path)), "data.train")
    parser, rows = row_parser_of(source, source.rows(), "data.train")
    count = 0
    for row in rows:
        count += 1
        try:
            if parser is not None and isinstance(row, Row):
                parser.parse(row)
        except BadRow:
            pass
    assert sum(1 for _ in itertools.islice(source.rows(count // 2), count + 1)) == count - count // 2
    assert source.count() == count


@pytest.mark.parametrize("ending", SEEDS)
def test_a_reader(ending: str, tmp_path: Path) -> None:
    assert fuzz(read, tmp_path / f"a{ending}", SEEDS[ending], ending) > 20


ENTRIES = {
    "mine": {
        "file_name": "a.json",
        "formatting": "sharegpt",
        "ranking": True,
        "num_samples": 5,
        "columns": {"messages": "conversations", "chosen": "a", "rejected": "b", "tools": "t"},
        "tags": {"role_tag": "from", "content_tag": "value", "user_tag": "human"},
    },
    "b": {"hf_hub_url": "org/name", "subset": "s", "split": "train", "folder": "f", "columns": {"prompt": "q"}},
}


def test_a_registry(tmp_path: Path) -> None:
    def use(path: Path) -> None:
        for name in ENTRIES:
            file = from_registry(str(path), DataFile(path=name), (Conversation, Text), "data.train[0]")
            if not file.path.startswith(("hf:", "ms:")) and Path(file.path).exists():
                sources(file, "data.train[0]")

    seeds = [json.dumps(ENTRIES, indent=1).encode(), json.dumps(ENTRIES).encode()]
    assert fuzz(use, tmp_path / "dataset_info.json", seeds, "registry") > 20


def test_a_chat_template(tmp_path: Path) -> None:
    tokenizer, asked = tokenizers.chatml(), list(shapes().values())

    def use(path: Path) -> None:
        with Template.choose(tokenizer, str(path)) as template:
            renderer = ChatRenderer(tokenizer, template)
            renderer.prefetch(asked)

    seeds = [text.encode() for text in (CHATML, MARKED, INST, TURNS)]
    assert fuzz(use, tmp_path / "a.jinja", seeds, "template") > 3
