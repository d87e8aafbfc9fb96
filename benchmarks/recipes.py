"""The recipes of examples/seeds/, each from training to the merged model, as tests/test_seed_recipes.py walks them.

    python -m benchmarks.recipes [RECIPE ...] [--model MODEL] [--record]

Each recipe trains a few steps, once in one go and once with a break and a resume; the result is asked a question, merged
and loaded again. By default the model is a random twin of the recipe's architecture with two layers; `--model` takes real
weights of that architecture (any source of `model.path`). `--record` keeps what was found in
benchmarks/results/recipes.json, of which `make docs` makes the table of recipes in docs/claims.md.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.records import RESULTS, checked_out
from tests.helpers.recipes import RECIPES, Walked, architecture_of, walk

LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes")


def summary(walked: Walked) -> dict[str, Any]:
    """What the table says of a recipe."""
    return {
        "steps": len(walked.steps),
        "resumed": "the same bits" if not walked.differences else f"differs: {', '.join(walked.differences)}",
        "merges": [
            {
                "base": merge.base,
                "dtype": merge.dtype,
                "difference": float(f"{merge.from_run:.2g}"),
                "from_trained": float(f"{merge.from_trained:.2g}"),
                "same_top_token": round(merge.same_top_token, 4),
                "reloads": merge.reloads,
            }
            for merge in walked.merges
        ],
    }


def weights(recipe: Path, model: str | None) -> str:
    """What a recipe was walked with, in words."""
    if model is None:
        return f"a random twin ({architecture_of(recipe)})"
    own = model in recipe.read_text(encoding="utf-8")
    return f"real weights: {model}" + ("" if own else f", a {architecture_of(recipe)} that is not the recipe's own")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", choices=[[], *(path.stem for path in RECIPES)], metavar="RECIPE")
    parser.add_argument("--model", help="real weights of the recipes' architecture; default: a random twin")
    parser.add_argument("--record", action="store_true")
    given = parser.parse_args()
    file = RESULTS / "recipes.json"
    kept: dict[str, dict[str, Any]] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    for recipe in RECIPES:
        if given.recipes and recipe.stem not in given.recipes:
            continue
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            found = summary(walk(recipe, Path(folder), given.model))
        print(f"{recipe.stem}: {found}, {time.perf_counter() - started:.0f} s", flush=True)
        kept.setdefault(recipe.stem, {})["real" if given.model else "twin"] = {
            "weights": weights(recipe, given.model),
            **found,
            "measured": datetime.date.today().isoformat(),
            "commit": checked_out(),
            "device": f"CPU, {platform.machine()}",
            "versions": {name: importlib.metadata.version(name) for name in LIBRARIES},
        }
    if given.record:
        file.write_text(json.dumps(dict(sorted(kept.items())), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
