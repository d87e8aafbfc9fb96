"""A choice of rows: a function of seed and file, and every row keeps its place."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from luthier import config
from luthier.data.recognise import parts_of, row_parser_of
from luthier.data.subset import draw, told
from luthier.types import Conversation, Row, Text


def write(path: Path, count: int) -> None:
    path.write_text("".join(json.dumps({"text": f"{path.stem} {number}"}) + "\n" for number in range(1, count + 1)))


def taken(*overrides: str, train: str = "a.jsonl", start: int = 0) -> list[str]:
    file = train if "{" in train else f"{{path: {train}}}"
    run = config.load(None, ["model=m", f"data.train=[{file}]", *overrides])
    parts = parts_of(run, (Conversation, Text))
    return [row.id for part in parts for row in part.source.rows(start) if isinstance(row, Row)]


@pytest.fixture(autouse=True)
def _files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.jsonl", 100)
    for part in (1, 2, 3):
        write(tmp_path / f"part-{part}.jsonl", 10)


def test_some_rows_are_drawn_by_the_seed() -> None:
    file = "{path: a.jsonl, num_samples: 30}"
    one = taken(train=file)
    assert len(set(one)) == 30
    assert one == sorted(one, key=lambda name: int(name.split(":")[1]))
    assert taken(train=file) == one
    assert taken("seed=1", train=file) != one
    assert taken("max_samples=10", train=file) == one[:10]


def test_more_rows_than_there_are_take_each_evenly() -> None:
    rows = Counter(taken(train="{path: a.jsonl, num_samples: 250}"))
    assert rows.total() == 250
    assert Counter(rows.values()) == {3: 50, 2: 50}


def test_the_first_rows() -> None:
    assert taken("max_samples=3") == ["a.jsonl:1", "a.jsonl:2", "a.jsonl:3"]
    assert len(taken("max_samples=300")) == 100


def test_files_of_one_entry_are_one_thing() -> None:
    whole = taken(train="part-*.jsonl")
    assert len(whole) == 30
    assert taken("max_samples=12", train="part-*.jsonl") == whole[:12]
    drawn = taken(train="{path: part-*.jsonl, num_samples: 12}")
    assert len(drawn) == 12
    assert set(drawn) < set(whole)
    assert len({name.split(":")[0] for name in drawn}) > 1


@pytest.mark.parametrize("file", ["{path: a.jsonl, num_samples: 30}", "{path: a.jsonl, num_samples: 250}"])
@pytest.mark.parametrize("most", [None, 17])
def test_a_later_start_gives_the_rest(file: str, most: int | None) -> None:
    overrides = [] if most is None else [f"max_samples={most}"]
    whole = taken(*overrides, train=file)
    for start in range(len(whole) + 2):
        assert taken(*overrides, train=file, start=start) == whole[start:]


def test_what_is_drawn_decides_the_fingerprint_and_is_said() -> None:
    seen = set()
    for override in ("num_samples: 30", "num_samples: 31", "num_samples: null"):
        for seed in (0, 1):
            run = config.load(None, ["model=m", f"data.train=[{{path: a.jsonl, {override}}}]", f"seed={seed}"])
            seen.add(parts_of(run, (Text,))[0].source.fingerprint())
    assert len(seen) == 5  # the seed decides nothing where all rows are taken
    assert told(100, 30, 0) == "30 of 100 rows, drawn by seed 0"
    assert told(100, 250, 0) == "250 rows of 100: each 2 times and one more of 50, drawn by seed 0"
    assert told(100, 200, 0) == "200 rows of 100: each 2 times"
    assert draw(5, 5, 0, "a").tolist() == [1] * 5


def test_a_system_text_for_conversations_without_one() -> None:
    rows = [
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "system": "own"},
    ]
    Path("chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = config.load(None, ["model=m", "data={train: chat.jsonl, system: be brief}"])
    (part,) = parts_of(run, (Conversation,))
    parser, found = row_parser_of(part.source, part.source.rows(), "data.train", run.data.system)
    assert parser is not None
    systems = [example.messages[0].content for row in found if isinstance(example := parser.parse(row), Conversation)]  # type: ignore[arg-type]
    assert systems == ["be brief", "own"]
