"""The pages of docs/ that are generated: `python docs/make_pages.py` writes them (`make docs`)."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from luthier.config import keys
from luthier.errors import UserError

RESULTS = Path("benchmarks") / "results"
RECIPES = "recipes.json"
"""In RESULTS: recipe -> `twin` and `real` -> what `python -m benchmarks.recipes` found, on random and on real weights."""
RESULT_KEYS = ("claim", "command", "figure", "unit", "measured", "device", "commit")


def pages(root: Path) -> dict[str, str]:
    """File name in docs/ and text of each generated page; `root` is the repository."""
    found = claims(results(root / RESULTS)) + recipes(root)
    return {"config.md": keys.markdown(), "claims.md": found}


def results(folder: Path) -> list[dict[str, Any]]:
    """The measured results in a folder: each JSON file holds one, or a list of them.

    Raises:
        UserError: a file is no JSON, or a result lacks a key.
    """
    found = []
    for path in sorted(folder.glob("*.json")):
        if path.name == RECIPES:
            continue
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(str(path), f"this is no JSON: {error}", "a result, or a list of results") from None
        for result in content if isinstance(content, list) else [content]:
            if missing := [key for key in RESULT_KEYS if key not in result]:
                raise UserError(
                    str(path), "a result without " + ", ".join(missing), "the keys " + ", ".join(RESULT_KEYS)
                )
            found.append(result)
    return found


def claims(measured: list[dict[str, Any]]) -> str:
    """docs/claims.md: every claim, the command that proves it, and what it last gave."""
    lines = [
        "# Claims",
        "",
        "Generated from `benchmarks/results/*.json` by `make docs`; do not edit.",
        "The README says nothing with a figure that is not here.",
        "",
        "| claim | command | last figure | measured | device | commit |",
        "|---|---|---|---|---|---|",
    ]
    for result in measured:
        figure = f"{result['figure']} {result['unit']}".strip()
        cells = (
            result["claim"],
            f"`{result['command']}`",
            figure,
            result["measured"],
            result["device"],
            result["commit"],
        )
        lines.append("| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def recipes(root: Path) -> str:
    """The part of docs/claims.md on examples/seeds: what each recipe was verified on, on random and on real weights."""
    file = root / RESULTS / RECIPES
    known: dict[str, dict[str, Any]] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    lines = [
        "",
        "## Recipes",
        "",
        "Each recipe of `examples/seeds` was trained for a few steps on a few short rows, in one go and once more with a break and a",
        "resume; then it was asked a question, merged and loaded again. `python -m benchmarks.recipes --record` does so, and",
        "`make test` on the twins. That shows that it runs from end to end and keeps its numbers. What a recipe makes of its own",
        "model at full length was not measured.",
        "",
        "| recipe | verified on | resumed run, against an unbroken one | merged into: largest difference from the run, by the largest logit"
        " | measured | device | versions | commit |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in sorted(path.stem for path in (root / "examples" / "seeds").glob("*.yaml")):
        found = [known[name][kind] for kind in ("twin", "real") if kind in known.get(name, {})]
        lines += [_recipe(name, row) for row in found] or [f"| {name} | not verified | | | | | | |"]
    return "\n".join(lines) + "\n"


def _recipe(name: str, found: dict[str, Any]) -> str:
    merges = (
        f"{merge['base']}: {merge['difference']:g}"
        + (f" ({merge['from_trained']:g} from the base as it was trained on)" if merge["base"] == "16bit" else "")
        for merge in found["merges"]
    )
    versions = ", ".join(f"{library} {version}" for library, version in found["versions"].items())
    cells = (found["weights"], found["resumed"], "; ".join(merges), found["measured"], found["device"], versions)
    return " | ".join([f"| {name}", *cells, f"{found['commit']} |"])


def write(root: Path) -> None:
    """Writes all generated pages of a repository."""
    for name, text in pages(root).items():
        path = root / "docs" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
