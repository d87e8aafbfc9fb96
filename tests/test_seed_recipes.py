"""Each recipe of examples/seeds/ on a tiny random model of its own architecture, from training to the merged model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from luthier import config, exporting, run
from luthier.chatting import Chat, Settings
from luthier.data.template_check import made_tokenizer, tokens_of
from luthier.models.opened import open_model
from tests.helpers.breaking import Broken, break_after
from tests.helpers.tiny_models import TWINS, twin

ROOT = Path(__file__).parent.parent
RECIPES = sorted((ROOT / "examples" / "seeds").glob("*.yaml"))
ARCHITECTURES = {"baichuan2": "baichuan", "bloom": "bloom", "gemma": "gemma", "llama2": "llama", "yuan": "yuan"}
"""The first word of a recipe's name -> its architecture."""
STEPS, BREAKS_AFTER = 4, 3
ROWS = [{"instruction": f"What is {n} and {n}?", "input": "", "output": f"It is {2 * n}."} for n in range(200)]
TEXTS = [{"text": f"### Human: What is {n} and {n}? ### Assistant: It is {2 * n}."} for n in range(200)]


def model_of(recipe: Path, template: str, folder: Path) -> Path:
    """A tiny model of the recipe's architecture, with a tokenizer that has what its template needs."""
    tokenizer = made_tokenizer(tokens_of(template), adds_bos=True, texts=[row["output"] for row in ROWS])
    name = ARCHITECTURES[recipe.stem.partition("_")[0]]
    twin(name, vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def data_of(keys: dict[str, Any], folder: Path) -> list[str]:
    """Overrides that put rows of the recipe's own kind in the place of its data."""
    whole_texts = "format" in (keys.get("train") or {})
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (TEXTS if whole_texts else ROWS)))
    if "registry" not in keys:
        return [f"data.train.path={folder / 'rows.jsonl'}" if whole_texts else f"data.train={folder / 'rows.jsonl'}"]
    (folder / "dataset_info.json").write_text(json.dumps({keys["train"]: {"file_name": "rows.jsonl"}}))
    return [f"data.registry={folder}"]


def logits(model: Any, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(torch.tensor([ids])).logits.float()
    return found


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_from_training_to_the_merged_model(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    given = config.load(
        recipe,
        [
            f"model.path={model_of(recipe, keys['data']['chat_template'], tmp_path / 'model')}",
            *data_of(keys["data"], tmp_path),
            f"max_steps={STEPS}",
            "save_steps=2",
            "global_batch_size=4",
            "report_to=[]",
            f"output_dir={tmp_path / 'run'}",
        ],
    )

    with monkeypatch.context() as patch:
        break_after(BREAKS_AFTER, patch)
        with pytest.raises(Broken):
            run.train(given, say=lambda text: None)
    finished = run.train(given, resume=True, say=lambda text: None)
    assert [line["step"] for line in finished.metrics if "loss" in line] == list(range(1, STEPS + 1))

    opened = open_model(str(finished.folder))
    chat = Chat(opened, settings=Settings(max_new_tokens=8))
    chat.say("What is 2 and 2?")

    base = "16bit" if given.model.quantization else "as trained"
    done = exporting.export(
        str(finished.folder), "merged", tmp_path / "merged", base=base, unproven=True, say=lambda text: None
    )
    assert done.drift.top1_agreement > 0.9
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    again = open_model(str(tmp_path / "merged"))
    ids = opened.renderer.tokenizer("What is 2 and 2?")["input_ids"]
    assert torch.equal(logits(merged, ids), logits(again.model.float(), ids))


def test_every_tutorial_has_its_recipes() -> None:
    found = {recipe.stem.partition("_")[0] for recipe in RECIPES}
    assert found == set(ARCHITECTURES)
    assert set(ARCHITECTURES.values()) <= set(TWINS)
