"""`dataset_info.json` of LLaMA-Factory: every key of it, its traps, and the rows that come of the demonstration files."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from luthier import config
from luthier.config import DataFile
from luthier.data.recognise import format_of, parts_of, row_parser_of
from luthier.data.registry import from_registry, read_registry
from luthier.errors import BadRow, UserError
from luthier.types import Conversation, Example, Feedback, Message, Preference, Prompt, Row, Text

SFT = (Conversation, Text)
DEMO = Path(__file__).parents[2].parent / "shared" / "data"
GOLDEN = Path(__file__).parent / "golden_registry.json"
needs_demo = pytest.mark.skipif(not DEMO.is_dir(), reason=f"the demonstration files are not in {DEMO}")


def entry(folder: Path, values: dict[str, Any], takes: tuple[type, ...] = SFT, **file: Any) -> DataFile:
    (folder / "dataset_info.json").write_text(json.dumps({"mine": values}))
    return from_registry(str(folder), DataFile(path="mine", **file), takes, "data.train[0]")


def examples(folder: Path, values: dict[str, Any], row: dict[str, Any], takes: tuple[type, ...] = SFT) -> Any:
    """What an entry makes of one row."""
    (folder / "rows.json").write_text(json.dumps([row]))
    (folder / "dataset_info.json").write_text(json.dumps({"mine": {"file_name": "rows.json", **values}}))
    run = config.load(None, ["model=m", f"data={{registry: {folder}, train: mine}}", "output_dir=o"])
    (part,) = parts_of(run, takes)
    parser, rows = row_parser_of(part.source, part.source.rows(), "data.train")
    (found,) = rows
    assert parser is not None
    assert isinstance(found, Row)
    return parser.parse(found)


def contents(example: Any) -> list[str]:
    return [f"{message.role}: {message.content}" for message in example.messages]


def refused(folder: Path, values: dict[str, Any], takes: tuple[type, ...] = SFT) -> str:
    with pytest.raises(UserError) as caught:
        entry(folder, values, takes)
    assert f"{folder / 'dataset_info.json'}: mine" in caught.value.where
    return str(caught.value)


ALPACA = {"instruction": "a", "input": "b", "output": "c", "system": "s", "history": [["d", "e"]]}
SHARED = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]


def test_without_columns_the_usual_names_are_read_and_no_others(tmp_path: Path) -> None:
    assert contents(examples(tmp_path, {}, ALPACA)) == ["user: a\nb", "assistant: c"]
    chat = examples(
        tmp_path, {"formatting": "sharegpt"}, {"conversations": SHARED, "system": "s", "tools": '[{"name": "f"}]'}
    )
    assert contents(chat) == ["user: a", "assistant: b"]
    assert chat.tools == ""


def test_with_columns_an_unlisted_one_is_not_read(tmp_path: Path) -> None:
    """The trap: `query` is `input` by default, but not where `columns` is given."""
    columns = {"prompt": "instruction", "response": "output"}
    assert contents(examples(tmp_path, {"columns": columns}, ALPACA)) == ["user: a", "assistant: c"]
    all_columns = {**columns, "query": "input", "system": "system", "history": "history"}
    found = examples(tmp_path, {"columns": all_columns}, ALPACA)
    assert contents(found) == ["system: s", "user: d", "assistant: e", "user: a\nb", "assistant: c"]
    alone = {"query": "input", "response": "output"}
    assert contents(examples(tmp_path, {"columns": alone}, ALPACA)) == ["user: b", "assistant: c"]


def test_with_tags_an_unlisted_one_does_not_occur(tmp_path: Path) -> None:
    tags = {"role_tag": "from", "content_tag": "value", "user_tag": "human", "assistant_tag": "gpt"}
    values = {"formatting": "sharegpt", "tags": tags}
    assert contents(examples(tmp_path, values, {"conversations": SHARED})) == ["user: a", "assistant: b"]
    with pytest.raises(BadRow, match="observation"):
        examples(tmp_path, values, {"conversations": [*SHARED, {"from": "observation", "value": "c"}, SHARED[1]]})
    del tags["role_tag"]
    assert "tags lists no role_tag" in refused(
        tmp_path, {"file_name": "a.json", "formatting": "sharegpt", "tags": tags}
    )


def test_a_leading_system_message_goes_before_the_column(tmp_path: Path) -> None:
    values = {"formatting": "sharegpt", "columns": {"messages": "conversations", "system": "system"}}
    assert contents(examples(tmp_path, values, {"conversations": SHARED, "system": "s"}))[0] == "system: s"
    own = [{"from": "system", "value": "own"}, *SHARED]
    assert contents(examples(tmp_path, values, {"conversations": own, "system": "s"}))[0] == "system: own"


def test_openai_has_names_of_its_own_and_puts_no_sentence_into_system_texts(tmp_path: Path) -> None:
    turns = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]},
        {"role": "tool", "content": "1"},
        {"role": "tool", "content": "2"},
        {"role": "assistant", "content": "b"},
    ]
    columns = {"messages": "messages"}
    found = examples(tmp_path, {"formatting": "openai", "columns": columns}, {"messages": turns})
    assert contents(found) == ["system: s", "user: a", "assistant: ", "tool: 1", "tool: 2", "assistant: b"]
    assert found.messages[2].tool_calls[0].name == "f"


def test_ranking_makes_pairs(tmp_path: Path) -> None:
    columns = {"prompt": "q", "query": "i", "history": "h", "system": "s", "chosen": "good", "rejected": "bad"}
    row = {"q": "a", "i": "b", "h": [["c", "d"]], "s": "e", "good": "x", "bad": "y"}
    found = examples(tmp_path, {"ranking": True, "columns": columns}, row, (Preference,))
    assert [message.content for message in found.prompt] == ["e", "c", "d", "a\nb"]
    assert (found.chosen[0].content, found.rejected[0].content) == ("x", "y")
    chat = {"formatting": "sharegpt", "columns": {"messages": "conversations", "chosen": "c", "rejected": "r"}}
    row = {"conversations": SHARED[:1], "c": SHARED[1], "r": {"from": "gpt", "value": "z"}}
    pair = examples(tmp_path, {"ranking": True, **chat}, row, (Preference,))
    assert (pair.chosen[0].content, pair.rejected[0].content) == ("b", "z")
    assert "no columns.chosen" in refused(tmp_path, {"file_name": "a.json", "ranking": True})
    assert "ranking is 'yes'" in refused(tmp_path, {"file_name": "a.json", "ranking": "yes"})


def test_kto_tag_makes_feedback(tmp_path: Path) -> None:
    columns = {"prompt": "prompt", "response": "completion", "kto_tag": "label"}
    row = {"prompt": "a", "completion": "b", "label": False}
    found = examples(tmp_path, {"columns": columns}, row, (Feedback,))
    assert (contents(found), found.good) == (["user: a", "assistant: b"], False)
    chat = {"formatting": "sharegpt", "columns": {"messages": "completion", "kto_tag": "label"}}
    found = examples(tmp_path, chat, {"prompt": "other", "completion": SHARED, "label": True}, (Feedback,))
    assert (contents(found), found.good) == (["user: a", "assistant: b"], True)
    with pytest.raises(BadRow, match="label"):
        examples(tmp_path, {"columns": columns}, {**row, "label": "maybe"}, (Feedback,))


def test_without_a_response_the_objective_says_what_a_prompt_is(tmp_path: Path) -> None:
    columns = {"prompt": "body"}
    assert examples(tmp_path, {"columns": columns}, {"body": "a"}).text == "a"
    assert contents(examples(tmp_path, {"columns": columns}, {"body": "a"}, (Prompt,))) == ["user: a"]
    assert examples(tmp_path, {}, ALPACA, (Text,)).text == "a"


def test_where_the_rows_are(tmp_path: Path) -> None:
    both = {"hf_hub_url": "org/a", "ms_hub_url": "org/b", "file_name": "c.json", "file_sha1": "0"}
    assert entry(tmp_path, both).path == "hf:org/a"
    assert entry(tmp_path, {"ms_hub_url": "org/b", "file_name": "c.json"}).path == "ms:org/b"
    assert entry(tmp_path, {"file_name": "c.json"}).path == str(tmp_path / "c.json")
    parts = {"split": "validation", "subset": "en", "folder": "data", "num_samples": 7}
    found = entry(tmp_path, {"hf_hub_url": "org/a", **parts})
    assert (found.split, found.subset, found.data_dir, found.num_samples) == ("validation", "en", "data", 7)
    assert entry(tmp_path, {"hf_hub_url": "org/a"}).split == "train"
    own = entry(tmp_path, {"hf_hub_url": "org/a", **parts}, split="test", num_samples=3)
    assert (own.split, own.num_samples) == ("test", 3)
    assert entry(tmp_path, {"file_name": "c.json"}, format=format_of("text")).format == format_of("text")


def test_a_folder_of_files(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    for number in (1, 2):
        (tmp_path / "parts" / f"{number}.jsonl").write_text(json.dumps({"instruction": "a", "output": str(number)}))
    (tmp_path / "dataset_info.json").write_text(json.dumps({"mine": {"file_name": "parts"}}))
    registry = tmp_path / "dataset_info.json"
    run = config.load(None, ["model=m", f"data={{registry: {registry}, train: [mine]}}", "output_dir=o"])
    assert [Path(part.source.name).name for part in parts_of(run, SFT)] == ["1.jsonl", "2.jsonl"]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "nowhere"),
        ({"file_name": "a.json", "colums": {}}, 'did you mean "columns"'),
        ({"file_name": "a.json", "columns": {"promt": "a"}}, 'did you mean "prompt"'),
        ({"file_name": "a.json", "columns": {"prompt": 3}}, "columns is"),
        ({"file_name": "a.json", "tags": {"role": "a"}}, "tags.role is no key"),
        ({"file_name": "a.json", "formatting": "chatml"}, "formatting is 'chatml'"),
        ({"file_name": 3}, "file_name is 3"),
        ({"file_name": "a.json", "num_samples": 0}, "num_samples is 0"),
        ({"file_name": "a.json", "columns": {"response": "a"}}, "columns lists no prompt"),
        ({"file_name": "a.json", "columns": {"prompt": "a", "images": "b"}}, "columns.images"),
        ({"script_url": "here"}, "a program, which is not run"),
        ({"cloud_file_name": "s3://a"}, "cloud store"),
        ({"om_hub_url": "a/b"}, "openMind"),
    ],
)
def test_a_wrong_entry_is_named(tmp_path: Path, values: dict[str, Any], words: str) -> None:
    assert words in refused(tmp_path, values)


def test_a_wrong_registry_is_named(tmp_path: Path) -> None:
    path = tmp_path / "dataset_info.json"
    for text, words in (
        (None, "no such file"),
        ("{\n{", r"dataset_info\.json:2: broken JSON"),
        ('{"a": {}, "a": {}}', "stands in it twice"),
        ("[]", "no map of entries"),
        ('{"a": 3}', "no map of entries"),
        (json.dumps({"alpaca_en": {"file_name": "a.json"}}), 'did you mean "alpaca_en"'),
        (
            json.dumps(
                {name: {"file_name": "a.json"} for name in ("code", "alpaca_en", "an_alpaca_em_of_old", "alpaca_ex")}
            ),
            r'did you mean "alpaca_ex" or "alpaca_en" or "an_alpaca_em_of_old"\?',
        ),
        (json.dumps({"chats": {"file_name": "a.json"}}), "one of chats\nfix: add it to"),
    ):
        if text is not None:
            path.write_text(text)
        with pytest.raises(UserError, match=words):
            from_registry(str(path), DataFile(path="alpaca_em"), SFT, "data.train[0]")


# ---- the demonstration files, which are not part of this project: only hashes of what they become are


def digest(example: Example) -> str:
    """A hash of an example, whatever its row's place is called."""
    values = {key: value for key, value in asdict(example).items() if key != "row"}
    return hashlib.sha256(json.dumps([type(example).__name__, values], ensure_ascii=False).encode()).hexdigest()[:16]


def parsed(name: str) -> list[Example]:
    run = config.load(None, ["model=m", f"data={{registry: {DEMO}, train: {name}}}", "output_dir=o"])
    (part,) = parts_of(run, SFT)
    parser, rows = row_parser_of(part.source, part.source.rows(), "data.train")
    assert parser is not None
    found = [row for row in rows if isinstance(row, Row)]
    return [parser.parse(row) for row in found]


def summary(found: list[Example]) -> dict[str, Any]:
    hashes = [digest(example) for example in found]
    whole = hashlib.sha256("\n".join(hashes).encode()).hexdigest()
    return {"type": type(found[0]).__name__, "rows": len(found), "first": hashes[:5], "last": hashes[-2:], "all": whole}


@needs_demo
def test_the_demonstration_files_become_golden_examples() -> None:
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    entries = read_registry(DEMO / "dataset_info.json")
    there = [name for name, values in entries.items() if (DEMO / values.get("file_name", "none")).is_file()]
    assert sorted(golden) == sorted(there)
    for name in there:
        assert summary(parsed(name)) == golden[name], name


@needs_demo
def test_every_entry_of_the_registry_is_read_or_refused_for_what_it_holds() -> None:
    entries = read_registry(DEMO / "dataset_info.json")
    refusals: list[str] = []
    for name, values in entries.items():
        takes = (Preference,) if values.get("ranking") else SFT
        try:
            from_registry(str(DEMO), DataFile(path=name), takes, "data.train[0]")
        except UserError as error:
            refusals.append(error.found)
    assert len(entries) == 104
    assert Counter(refusals) == {
        "columns.images": 10,
        "columns.audios": 2,
        "columns.videos": 1,
        "there is no columns.chosen": 2,
    }


def plainly(row: dict[str, Any]) -> list[tuple[str, str]]:
    """(role, text) of a row's messages, by the shortest reading of the registry's rules; a call is the JSON of its text."""
    if "instruction" in row:
        asked = "\n".join(text for text in (row["instruction"], row["input"]) if text)
        return [("user", asked), ("assistant", row["output"])]
    names = {"human": "user", "gpt": "assistant", "observation": "tool", "function_call": "assistant"}
    turns = row.get("conversations") or row["messages"]
    turns = turns + [row[key] for key in ("chosen", "rejected") if key in row]
    pairs = [(turn.get("from") or turn["role"], turn.get("value") or turn["content"]) for turn in turns]
    return [(names.get(role, role), text) for role, text in pairs]


@needs_demo
@pytest.mark.parametrize(
    "name", ["alpaca_en_demo", "alpaca_zh_demo", "glaive_toolcall_en_demo", "dpo_en_demo", "kto_en_demo"]
)
def test_the_golden_examples_are_what_the_files_say(name: str) -> None:
    written = json.loads((DEMO / f"{name}.json").read_text(encoding="utf-8"))
    for row, example in zip(written, parsed(name), strict=True):
        messages = (
            example.messages if not isinstance(example, Preference) else [*example.prompt, *sum(example.answers, ())]
        )
        found = [(message.role, message.content or called(message)) for message in messages]
        wanted = plainly(row)
        assert [role for role, _ in found] == [role for role, _ in wanted]
        for (_, ours), (_, theirs) in zip(found, wanted, strict=True):
            assert ours == theirs or json.loads(ours) == json.loads(theirs)
        if isinstance(example, Conversation):
            offered = [tool["function"] for tool in json.loads(example.tools or "[]")]
            assert offered == json.loads(row.get("tools", "[]"))
        if isinstance(example, Feedback):
            assert example.good is row["label"]


def called(message: Message) -> str:
    (call,) = message.tool_calls
    return json.dumps({"name": call.name, "arguments": json.loads(call.arguments)})


@needs_demo
def test_the_same_rows_are_recognised_without_the_registry() -> None:
    for name, file in (
        ("alpaca_en_demo", "alpaca_en_demo.json"),
        ("alpaca_zh_demo", "alpaca_zh_demo.json"),
        ("glaive_toolcall_en_demo", "glaive_toolcall_en_demo.json"),
        ("dpo_en_demo", "dpo_en_demo.json"),
        ("kto_en_demo", "kto_en_demo.json"),
        ("wiki_demo", "wiki_demo.txt"),
    ):
        run = config.load(None, ["model=m", f"data={DEMO / file}", "output_dir=o"])
        (part,) = parts_of(run, SFT)
        parser, rows = row_parser_of(part.source, part.source.rows(), "data.train")
        assert parser is not None
        assert list(map(digest, map(parser.parse, rows))) == list(map(digest, parsed(name)))  # type: ignore[arg-type]


@needs_demo
def test_the_novel_of_a_tutorial() -> None:
    run = config.load(None, ["model=m", f"data={DEMO / 'huanhuan.json'}", "output_dir=o"])
    (part,) = parts_of(run, SFT)
    parser, rows = row_parser_of(part.source, part.source.rows(), "data.train")
    assert parser is not None
    assert parser.kind == "alpaca"
    assert sum(isinstance(parser.parse(row), Conversation) for row in rows if isinstance(row, Row)) == 3729
