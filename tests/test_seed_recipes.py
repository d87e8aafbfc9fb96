"""Each recipe of examples/seeds/ on a tiny random model of its own architecture, from training to the merged model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from docs import make_pages

from luthier.config import load
from tests.helpers.recipes import ARCHITECTURES, RECIPES, ROOT, STEPS, architecture_of, walk
from tests.helpers.tiny_models import TWINS

ROUNDING = {"float32": 1e-5, "bfloat16": 2e-2, "float16": 2e-3}
"""Largest difference of logits, by the largest logit, that storing weights in a dtype makes."""


@pytest.mark.prove
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_from_training_to_the_merged_model(recipe: Path, tmp_path: Path) -> None:
    walked = walk(recipe, tmp_path)
    assert walked.steps == list(range(1, STEPS + 1))
    assert walked.answer
    assert load(recipe, [f"data.train={tmp_path / 'rows.jsonl'}"]).model.dtype in ("auto", walked.dtype)
    assert not walked.differences, "a run that broke and went on is the unbroken one, to the bit"
    for merge in walked.merges:
        assert merge.reloads, merge
        assert merge.same_top_token > 0.9, merge
        assert merge.from_run <= ROUNDING[merge.dtype], merge
        if merge.base != "16bit":
            computed = ROUNDING[walked.dtype]  # weights are unpacked to what is computed in
            assert merge.from_trained <= computed, "dequantized weights are those that it was trained on"
    quantized = [merge for merge in walked.merges if merge.base == "16bit"]
    assert all(merge.from_trained > merge.from_run for merge in quantized), "another base is another model"


def test_every_tutorial_has_its_recipes() -> None:
    assert {recipe.stem.partition("_")[0] for recipe in RECIPES} == set(ARCHITECTURES)
    assert {architecture_of(recipe) for recipe in RECIPES} <= set(TWINS)


def test_what_each_recipe_was_verified_on_is_recorded() -> None:
    """By `python -m benchmarks.recipes --record`: docs/claims.md says it of each, and says nothing of recipes that are gone."""
    recorded = json.loads((ROOT / make_pages.RESULTS / make_pages.RECIPES).read_text(encoding="utf-8"))
    assert sorted(recorded) == [recipe.stem for recipe in RECIPES]
    for name, found in recorded.items():
        assert found["twin"]["resumed"] == "the same bits", name
        assert all(merge["reloads"] for merge in found["twin"]["merges"]), name
    page = (ROOT / "docs" / "claims.md").read_text(encoding="utf-8")
    assert "not verified" not in page
