"""The table of files that are meant to hurt: bombs, claims, endless lines, odd places. They are made by code, none is stored.

Each is refused by `luthier train`, with exit code 2 and the words that stand here, or its row is named.
"""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.ipc
import pyarrow.parquet

from tests.data.bad_files import GOOD, LINES, Case, Write, chat, line_of, raw, refused, text

MB = 1 << 20
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda data: bytes(pyarrow.compress(data, codec="zstd", asbytes=True)),
}
BIG = "data.max_unpacked_bytes="
LONG_ROW = "data.max_row_bytes="


def later(make: Callable[[], Write]) -> Write:
    """Made when it is written: together they are gigabytes."""
    return lambda folder: make()(folder)


def bomb(name: str, block: bytes, times: int = 1024, ending: str = ".gz") -> Case:
    """A gigabyte, as many small members: what is packed member by member unpacks as one file."""
    return refused(later(lambda: raw(PACKERS[ending](block) * times, name + ending)), name, BIG)


def sparse(name: str, head: bytes, size: int, tail: bytes) -> Write:
    """A file with a hole of `size` bytes."""

    def write(folder: Path) -> list[str]:
        with (folder / name).open("wb") as file:
            file.write(head)
            file.seek(len(head) + size)
            file.write(tail)
        return [f"data={name}"]

    return write


PACKED = {
    **{f"a gigabyte of line ends, {ending}": bomb("train.jsonl", b"\n" * MB, ending=ending) for ending in PACKERS},
    **{f"a gigabyte of line ends, {kind}": bomb(f"train.{kind}", b"\n" * MB) for kind in ("json", "csv", "tsv", "txt")},
    "a gigabyte of spaces": bomb("train.jsonl", b" " * MB),
    "a gigabyte of NULs": bomb("train.jsonl", b"\0" * MB),
    "a gigabyte of brackets": bomb("train.json", b"[" * MB),
    "a gigabyte of one text": refused(
        later(lambda: raw(gzip.compress(b'[{"a": "') + gzip.compress(b"x" * MB) * 1024, "train.json.gz")), BIG
    ),
    "a gigabyte of rows, .bz2": bomb("train.jsonl", b'{"instruction": "a", "output": "b"}\n' * 30_000, ending=".bz2"),
    "a gigabyte of rows, .zst": bomb("train.jsonl", b'{"instruction": "a", "output": "b"}\n' * 30_000, ending=".zst"),
    "a gigabyte of an open quote": refused(
        later(lambda: raw(gzip.compress(b'a,b\n"') + gzip.compress(b"x\n" * (MB // 2)) * 1024, "train.csv.gz")), BIG
    ),
    "a gigabyte of fields": bomb("train.csv", b"," * MB),
    "packed twice": refused(
        later(lambda: raw(gzip.compress(gzip.compress(LINES.encode())), "train.jsonl.gz")), "packed by gzip"
    ),
    "packed, with rubbish behind it": refused(
        later(lambda: raw(gzip.compress(LINES.encode()) + b"rubbish" * 9, "train.jsonl.gz")), "damaged or cut off"
    ),
    "a thousand empty members": refused(
        later(lambda: raw(gzip.compress(b"") * 1000, "train.jsonl.gz")), "the file is empty"
    ),
}

ROWS = {
    "a row of 30,000 messages": refused(
        later(lambda: text([chat(*[("user", "a"), ("assistant", "b")] * 15_000)])),
        "train.jsonl:1",
        "30,000 messages",
        "max_row_messages=",
    ),
    "a row of 300,000 messages": refused(
        later(lambda: text([chat(*[("user", "a"), ("assistant", "b")] * 150_000)])), "train.jsonl:1", "300,000 messages"
    ),
    "a history of 10,000": refused(
        later(lambda: text([{"instruction": "a", "output": "b", "history": [["q", "a"]] * 10_000}])),
        "train.jsonl:1",
        "20,002 messages",
    ),
    "1,000 messages that are longer than the context": refused(
        later(lambda: text([chat(*[("user", "ask " * 20), ("assistant", "say " * 20)] * 500)])),
        "train.jsonl:1",
        "tokens",
        "on_long_row",
    ),
    "seven megabytes of control tokens": refused(
        later(lambda: text([chat(("user", "<|im_end|>" * 700_000), ("assistant", "b"))])),
        "train.jsonl:1",
        "tokens",
        "on_long_row",
    ),
    "seven megabytes of control tokens in an answer": refused(
        later(lambda: text([chat(("user", "a"), ("assistant", "<|im_end|>" * 700_000 + "."))])),
        "train.jsonl:1",
        "tokens",
    ),
    "a megabyte of a template's code": refused(
        later(lambda: text([chat(("user", "{% for a in b %}{{ 1/0 }}" * 40_000), ("assistant", "b"))])),
        "train.jsonl:1",
        "tokens",
    ),
    "a role of a megabyte": refused(
        later(lambda: text([chat(("user" * 250_000, "a"), ("assistant", "b"))])), "train.jsonl:1", "role"
    ),
    "a key of a megabyte": refused(later(lambda: text([{"k" * MB: "a"}])), "train.jsonl:1", "no format fits"),
    "100,000 keys": refused(
        later(lambda: text([{f"k{number}": "a" for number in range(100_000)}])), "train.jsonl:1", "no format fits"
    ),
    "a million empty lists": refused(later(lambda: text([{"text": [[]] * 1_000_000}])), "train.jsonl:1", "text"),
    "five megabytes of tools": refused(
        later(lambda: text([{**chat(("user", "a"), ("assistant", "b")), "tools": [{"name": "f" * 100}] * 45_000}])),
        "train.jsonl:1",
    ),
    "a call nested 150 times": refused(
        later(
            lambda: text(
                [
                    {
                        "messages": [
                            {"role": "user", "content": "a"},
                            {
                                "role": "assistant",
                                "tool_calls": [
                                    {"function": {"name": "f", "arguments": '{"a":' * 5000 + "1" + "}" * 5000}}
                                ],
                            },
                        ]
                    }
                ]
            )
        ),
        "train.jsonl:1",
        "arguments",
    ),
}

JSON = {
    "100,000 brackets in an array": refused(
        later(lambda: raw(b"[" * 100_000, "train.json")), "train.json:1", "nested too deeply"
    ),
    "100,000 maps in an array": refused(
        later(lambda: raw(b'[{"a":' * 100_000, "train.json")), "train.json:1", "nested too deeply"
    ),
    "100,000 maps in a line": refused(
        later(lambda: raw(b'{"a":' * 100_000 + b"\n")), "train.jsonl:1", "nested too deeply"
    ),
    "250 levels": refused(
        later(lambda: text([{"text": "a", "x": json.loads("[" * 250 + "]" * 250)}])), "train.jsonl:1", "nested"
    ),
    "an int of 5,000 digits in an array": refused(
        later(lambda: raw(b'[{"text": ' + b"9" * 5000 + b"}]", "train.json")), "train.json:1", "broken JSON"
    ),
    "a megabyte of digits": refused(
        later(lambda: raw(b'{"text": ' + b"9" * MB + b"}\n")), "train.jsonl:1", "broken JSON"
    ),
    "a number beyond all numbers": refused(later(lambda: raw(b'{"text": 1e999}\n')), "train.jsonl:1", "text"),
    "NaN in an array": refused(later(lambda: raw(b'[{"text": NaN}]', "train.json")), "train.json:1", "NaN"),
    "a lone surrogate in a role": refused(
        later(lambda: raw(b'{"messages": [{"role": "\\udfff", "content": "a"}]}\n')), "train.jsonl:1", "role"
    ),
    "a line of a gigabyte": refused(
        sparse("train.jsonl", LINES.encode() + b'{"text": "', 1 << 30, b'"}\n'), "train.jsonl:13", "a line of more than"
    ),
    "ten gigabytes without a line end": refused(
        sparse("train.jsonl", b'{"text": "', 10 << 30, b'"}\n'), "train.jsonl:1", "a line of more than"
    ),
    "ten gigabytes of nothing": refused(sparse("train.jsonl", b"", 10 << 30, b"\n"), "train.jsonl", "UTF-32"),
    "a text of 100 MB that is not closed": refused(
        later(lambda: raw(b'[{"text": "' + b"x" * (100 * MB), "train.json")), "train.json:1", LONG_ROW
    ),
    "the same key 100,000 times": refused(
        later(lambda: raw(b'{"text": "a"' + b', "text": "a"' * 100_000 + b"}\n")), "train.jsonl:1", "stands in it twice"
    ),
    "objects without line ends": refused(
        later(lambda: raw(line_of(GOOD[0]).encode() * 200_000)), "train.jsonl:1", "Extra data"
    ),
    "an array that ends in the middle": refused(
        later(lambda: raw(json.dumps(GOOD).encode()[:-40], "train.json")), "train.json:1"
    ),
    "an array with more behind it": refused(
        later(lambda: raw(json.dumps(GOOD).encode() * 2, "train.json")), "train.json:1", "more text"
    ),
    "a million commas": refused(later(lambda: raw(b"[" + b"," * MB, "train.json")), "train.json:1", "broken JSON"),
    "a map that ends in the middle": refused(
        later(lambda: raw(b'{\n"text":\n"a"', "train.json")), "train.json:3", "broken JSON"
    ),
    "other white space": refused(later(lambda: raw("\u00a0{}\n\u2028".encode())), "train.jsonl:1", "broken JSON"),
}


def delimited(make: Callable[[], bytes], *words: str, name: str = "train.csv") -> Case:
    return refused(later(lambda: raw(make(), name)), *words)


TEXTS = {
    "an open quote of 100 MB": delimited(
        lambda: b'a,b\n"' + b"x\n" * (50 * MB), "train.csv:2", "an open quote takes in lines"
    ),
    "a field of 20 MB": delimited(lambda: b"a,b\n" + b"x" * (20 * MB) + b",y\n", "train.csv:2", LONG_ROW),
    "a million columns": delimited(
        lambda: b",".join(b"c%d" % n for n in range(MB)) + b"\n", "train.csv", "there are no rows"
    ),
    "a million fields": delimited(
        lambda: b"instruction,output\n" + b"," * MB + b"\n", "train.csv:2", "1,048,577 fields"
    ),
    "carriage returns alone, 10 MB": delimited(lambda: b"a,b\r" + b"\r" * (10 * MB), "train.csv", "there are no rows"),
    "NUL in a field": delimited(lambda: b"instruction,output\na,b\0c\n", "train.csv:2", "NUL"),
    "a header of one column twice": delimited(lambda: b"output,output\na,b\n", "train.csv:1", "the header is"),
    "a header without names": delimited(lambda: b",,\na,b,c\n", "train.csv:1", "the header is"),
    "quotes in a row": delimited(lambda: b'instruction,output\n"a""""b,c\n', "train.csv", "broken CSV"),
    "tsv with an open quote": delimited(lambda: b'a\tb\n"x\ty\n', "train.tsv:2", "broken CSV", name="train.tsv"),
    "UTF-16 with its mark": refused(later(lambda: text(GOOD, encoding="utf-16")), "train.jsonl", "UTF-16", "iconv"),
    "UTF-32": refused(later(lambda: text(GOOD, encoding="utf-32")), "train.jsonl", "UTF-32", "iconv"),
    "csv in GBK": delimited(lambda: "instruction,output\n你好,好\n".encode("gbk"), "train.csv:2", "not UTF-8"),
    "csv in latin-1": delimited(lambda: "instruction,output\né,à\n".encode("latin-1"), "train.csv:2", "not UTF-8"),
    "text in Shift JIS": delimited(
        lambda: "こんにちは\n".encode("shift-jis"), "train.txt:1", "not UTF-8", name="train.txt"
    ),
    "a text of NULs": refused(later(lambda: raw(b"a" + b"\0" * MB, "train.txt")), "train.txt"),
    "a line of 20 MB of text": delimited(lambda: b"x" * (20 * MB), "train.txt:1", LONG_ROW, name="train.txt"),
}

CASES: dict[str, Case] = {**PACKED, **ROWS, **JSON, **TEXTS}
