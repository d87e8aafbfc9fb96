"""What pages claim was measured, and what is generated is current."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from docs import make_pages

from luthier.config.error_guide import ERRORS

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "luthier"


@pytest.mark.parametrize("name", ["config.md", "claims.md"])
def test_generated_pages_are_current(name: str) -> None:
    assert (ROOT / "docs" / name).read_text(encoding="utf-8") == make_pages.pages(ROOT)[name], "run: make docs"


CLAIM = re.compile(
    r"(?<![\w.])(\d[\d,.]*\d|\d)\s?"
    r"(%|×|(?:x|times|ms|s|seconds?|min|minutes?|hours?|[KMGT]i?B|tokens/s|tokens a second|tokens per second)\b)"
)


def claims_in(text: str) -> list[str]:
    """Figures with a unit in prose and tables; code is no claim."""
    text = re.sub(r"```.*?```|`[^`\n]*`|<!--.*?-->|\]\([^)]*\)", " ", text, flags=re.DOTALL)
    return [" ".join(match.group(1, 2)) for match in CLAIM.finditer(text)]


def test_claims_are_found_where_people_make_them() -> None:
    text = "Takes 15 minutes on 2 cores, 98.5 % exact, 1,200 tokens/s, 3x faster, < 0.5 s; `0.1 s`\n```\n7 %\n```"
    assert claims_in(text) == ["15 minutes", "98.5 %", "1,200 tokens/s", "3 x", "0.5 s"]


def test_the_readme_claims_nothing_that_was_not_measured() -> None:
    readme = ROOT / "README.md"
    proven = {
        " ".join(match.group(1, 2))
        for match in CLAIM.finditer((ROOT / "docs" / "claims.md").read_text(encoding="utf-8"))
    }
    wrong = [claim for claim in claims_in(readme.read_text(encoding="utf-8")) if claim not in proven]
    assert not wrong, f"README.md says {wrong}, which is not in docs/claims.md"


def test_explained_errors_are_those_that_luthier_prints() -> None:
    source = "\n".join(
        path.read_text(encoding="utf-8") for path in SOURCE.rglob("*.py") if path.name != "error_guide.py"
    )
    assert not [error.says for error in ERRORS.values() if error.says not in source]
