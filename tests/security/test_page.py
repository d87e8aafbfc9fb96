"""docs/security.md answers the whole list, and each answer names a test that is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| S(\d+) \| (.+) \| (.+) \|$", re.MULTILINE)
ROWS = {int(number): (holds, shown) for number, holds, shown in ROW.findall(PAGE)}
HERE = sorted(Path(__file__).parent.glob("test_s*.py"))


def names_in(file: Path) -> set[str]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


def test_every_rule_has_a_row() -> None:
    assert [int(number) for number, _, _ in ROW.findall(PAGE)] == list(range(1, 27))


@pytest.mark.parametrize("number", range(1, 27))
def test_every_row_names_tests_that_are_there(number: int) -> None:
    holds, shown = ROWS[number]
    assert len(holds) > 30
    parts = re.findall(r"((?:`\w+`(?:, )?)*)(?: in )?\[(tests/[\w/]+\.py)\]\(\.\./\2\)", shown)
    assert parts, "no test"
    for names, file in parts:
        there = names_in(ROOT / file)
        assert there, file
        assert set(re.findall(r"`(\w+)`", names)) <= there, file


def test_every_test_of_this_folder_is_of_a_rule_that_names_its_file() -> None:
    for file in HERE:
        numbers = {int(found[1]) for name in names_in(file) if (found := re.match(r"test_s(\d+)_", name))}
        assert numbers, file
        assert all(re.match(r"test_s\d+_", name) for name in names_in(file)), file
        for number in numbers:
            assert file.name in ROWS[number][1], f"S{number} does not name {file.name}"


def test_advisories_lead_to_rules() -> None:
    found = re.findall(r"^\| (?:CVE|GHSA)-.*\| ([S\d, ]+) \|$", PAGE, re.MULTILINE)
    assert len(found) >= 8
    assert {int(number) for line in found for number in re.findall(r"\d+", line)} <= ROWS.keys()
