"""YAML is bounded while it is read: no text, however it is made, takes long, takes much, or ends in anything but our errors."""

from __future__ import annotations

import time
import tracemalloc
from pathlib import Path

import pytest

from luthier import config
from luthier.config import plain_yaml
from luthier.config.documents import parse_yaml
from luthier.errors import UserError

N = plain_yaml.OF_A_PERSON.characters - 1_000

TOO_MUCH: dict[str, str] = {
    "keys": "".join(f"k{i}: {i}\n" for i in range(36_000)),
    "characters": "a: " + "b" * (N + 2_000),
    "lists in lists": "[" * N,
    "maps in maps": "{" * N,
    "lists in a line": "- " * (N // 2),
    "keys that are keys": "? " * (N // 2),
    "values of values": ": " * (N // 2),
    "lists of maps": "[{" * (N // 2),
    "indented": "".join(" " * i + "a:\n" for i in range(900)),
    "items": "[" + "a," * (N // 2),
    "aliases": "a: &a x\nb: [" + "*a," * (N // 3) + "]",
    "text behind aliases": 'a: &a "' + "x" * 400_000 + '"\nb: [' + "*a," * 10_000 + "]",
    "aliases of aliases": "a0: &a0 [x]\n"
    + "".join(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30)),
    "an alias of itself": "a: &a [*a]",
    "merged": "a: &a {x: 1}\nb:\n" + "  <<: *a\n" * (N // 10),
    "merged again": "a0: &a0 {x: 1}\n"
    + "".join(f"a{i}: &a{i} {{<<: [{','.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 30)),
    "a wide map merged often": "a: &a\n"
    + "".join(f"  k{i}: {i}\n" for i in range(4_500))
    + f"b: {{<<: [{'*a,' * 9_000}]}}\n",
    "merged into itself": "a: &a\n  <<: *a\n",
    "digits": "a: " + "9" * N,
    "hexadecimal": "a: 0x" + "f" * N,
    "decimals": "a: 1." + "9" * N,
}
TAGS = {
    kind: f"a: {tag}\n"
    for kind, tag in {
        "omap": "!!omap [a: 1]",
        "set": "!!set {a}",
        "binary": "!!binary aGVsbG8=",
        "python": "!!python/object/apply:os.system [ls]",
        "text": "!!str 3",
        "own": "!mine {a: 1}",
        "none": "! x",
        "long": "!" * 2_000,
    }.items()
}
NO_YAML: dict[str, str] = {
    "NUL": "model: a\x00b",
    "escape": "model: a\nb: \x1b[2J",
    "surrogate": "model: \udcff",
    "tabs": "model: a\n\tdata: b",
    "two documents": "a: 1\n---\na: 2",
    "no such anchor": "a: *b",
    "old YAML": "%YAML 1.1\n---\na: yes",
    "twice": "model: a\ntraining: {max_steps: 1,\n max_steps: 2}",
    "number as key": "1: a",
    "list as key": "? [a, b]\n: c",
    "merge of a list": "<<: [1]",
    "nothing": "",
    "comments": "# x\n" * 1_000,
    "byte order marks": "\ufeff" * 1_000,
    "list on top": "- a\n- b",
    "text on top": "?:-" * 1_000,
}


@pytest.mark.parametrize("name", [*TOO_MUCH, *TAGS, *NO_YAML])
def test_what_is_no_configuration_is_refused_soon_and_in_few_words(name: str) -> None:
    text = {**TOO_MUCH, **TAGS, **NO_YAML}[name]
    tracemalloc.start()
    began = time.monotonic()
    with pytest.raises(UserError) as caught:
        parse_yaml(text, "mine.yaml")
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert time.monotonic() - began < 20
    assert most < 200 << 20
    assert str(caught.value).startswith("mine.yaml")
    assert len(str(caught.value)) < 500
    if name in TAGS:
        assert "mine.yaml:1: a tag" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (NO_YAML["escape"], "mine.yaml:2: this is no YAML: the character U+001B"),
        (NO_YAML["twice"], "mine.yaml:3: the key 'max_steps' stands here a second time"),
        (NO_YAML["old YAML"], "mine.yaml:2: YAML 1.1\nexpected: YAML 1.2"),
        (NO_YAML["list as key"], "the key 'a list or a map' is no string"),
        (TOO_MUCH["keys"], "mine.yaml:10000: more than 20,000 values"),
        (TOO_MUCH["indented"], "mine.yaml:51: more than 50 levels"),
        (TOO_MUCH["digits"], f"a number of {N:,} characters"),
    ],
)
def test_a_refusal_says_where_and_what(text: str, part: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_yaml(text, "mine.yaml")
    assert part in str(caught.value)


def test_what_stands_in_the_text_is_what_is_read() -> None:
    text = """\
ints: [1, -2, +3, 0, 007, 0o17, 0x1F, 0b101, 1_000, -0x10]
floats: [1.5, 1e-5, -2E3, .5, 1_0.5, .inf, -.Inf]
texts: [no, yes, on, y, 2001-99-99, 2001-12-14, 1:30, -_, "1", 'true', 1.2.3, =]  # a comment
others: [true, False, TRUE, null, ~]
empty:
"""
    assert parse_yaml(text, "mine.yaml").tree == {
        "ints": [1, -2, 3, 0, 7, 15, 31, 5, 1000, -16],
        "floats": [1.5, 1e-5, -2000.0, 0.5, 10.5, float("inf"), float("-inf")],
        "texts": ["no", "yes", "on", "y", "2001-99-99", "2001-12-14", "1:30", "-_", "1", "true", "1.2.3", "="],
        "others": [True, False, True, None, None],
        "empty": None,
    }


def test_merged_keys_stand_behind_those_that_are_written_and_lines_are_known() -> None:
    document = parse_yaml("a: &a {x: 1, y: 1}\nb: &b {y: 2, z: 2}\nc:\n  z: 3\n  <<: [*a, *b]\n", "mine.yaml")
    assert document.tree["c"] == {"z": 3, "x": 1, "y": 1}
    assert document.line(("c", "z")) == 4
    assert document.line(("b", "y")) == 2


def test_a_run_reads_what_it_wrote_of_many_files() -> None:
    text = "".join(f"k{i}: {i}\n" for i in range(15_000))
    assert len(parse_yaml(text, "config.yaml", plain_yaml.OF_A_RUN).tree) == 15_000


@pytest.mark.prove
def test_a_run_of_many_files_is_loaded_by_its_folder(tmp_path: Path) -> None:
    """The limits of a person are for what a person wrote: here it is a line, and the run writes every default of every file."""
    shards = [f"shard-{i:05}.jsonl" for i in range(1_300)]
    made = config.from_dict({"model": "org/name", "data": {"train": [{"path": name} for name in shards]}})
    (tmp_path / "config.yaml").write_text(made.resolved_yaml())
    with pytest.raises(UserError, match="more than 20,000 values"):
        config.load(tmp_path / "config.yaml")
    (tmp_path / "manifest.json").write_text("{}")
    assert config.load(tmp_path / "config.yaml") == made
