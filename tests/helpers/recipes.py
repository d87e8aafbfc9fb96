"""A recipe of examples/seeds/ from training to the merged model, on a model and rows that are small."""

from __future__ import annotations

import contextlib
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from luthier import config
from luthier.api import Run
from luthier.config import RunConfig
from luthier.data.chat.check import made_tokenizer, tokens_of
from luthier.inference import verified_export
from luthier.inference.chat import Chat, Settings
from luthier.inference.opened import Base, Opened, open_model
from tests.helpers.breaking import break_after
from tests.helpers.command_line import luthier
from tests.helpers.killing import differences, steps_in
from tests.helpers.tiny_models import twin

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "examples" / "seeds").glob("*.yaml"))
ARCHITECTURES = {"baichuan2": "baichuan", "bloom": "bloom", "gemma": "gemma", "llama2": "llama", "yuan": "yuan"}
"""The first word of a recipe's name -> its architecture."""
STEPS, BREAKS_AFTER = 3, 2
QUESTION = "What is 2 and 2?"
ROWS = [{"instruction": f"What is {n} and {n}?", "input": "", "output": f"It is {2 * n}."} for n in range(200)]
TEXTS = [{"text": f"### Human: {row['instruction']} ### Assistant: {row['output']}"} for row in ROWS]


@dataclass(frozen=True)
class Merge:
    """A run's merged model; differences are of logits, by the largest logit."""

    base: str
    """what the adapter was merged into"""
    dtype: str
    from_run: float
    """largest difference from the run opened in float32 on the same base"""
    from_trained: float
    """largest difference from the model as it was held in training, computed in float32"""
    same_top_token: float
    """share of positions, against the run"""
    reloads: bool
    """whether transformers and luthier read the same model from the folder, to the bit"""


@dataclass(frozen=True)
class Walked:
    """What became of a recipe."""

    steps: list[int]
    differences: list[str]
    """what of a run that broke and went on is not that of an unbroken one, to the bit"""
    dtype: str
    """what was computed in"""
    answer: list[int]
    """tokens"""
    merges: list[Merge]


def architecture_of(recipe: Path) -> str:
    return ARCHITECTURES[recipe.stem.partition("_")[0]]


def twin_of(recipe: Path, folder: Path) -> Path:
    """A tiny model of the recipe's architecture, with a tokenizer that has what its template needs."""
    template = yaml.safe_load(recipe.read_text(encoding="utf-8"))["data"]["chat_template"]
    tokenizer = made_tokenizer(tokens_of(template), adds_bos=True, texts=[row["output"] for row in ROWS])
    made = twin(architecture_of(recipe), vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id)
    made.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def rows_of(keys: dict[str, Any], folder: Path) -> list[str]:
    """Overrides that put rows of the recipe's own kind in the place of its data."""
    whole_texts = "format" in (keys.get("train") or {})
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (TEXTS if whole_texts else ROWS)))
    if "registry" not in keys:
        return [f"data.train.path={folder / 'rows.jsonl'}" if whole_texts else f"data.train={folder / 'rows.jsonl'}"]
    (folder / "dataset_info.json").write_text(json.dumps({keys["train"]: {"file_name": "rows.jsonl"}}))
    return [f"data.registry={folder}"]


def walk(recipe: Path, folder: Path, model: str | Path | None = None) -> Walked:
    """Trains the recipe in one go and once more with a break, talks to the result, merges it and loads what was merged.

    Args:
        recipe: a file of examples/seeds.
        folder: where all of it goes.
        model: what is trained; default: a tiny random twin of the recipe's architecture.
    """
    keys = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    given = [
        f"model.path={twin_of(recipe, folder / 'model') if model is None else model}",
        *rows_of(keys["data"], folder),
        f"max_steps={STEPS}",
        "save_steps=1",
        "global_batch_size=4",
        "report_to=[]",
    ]

    whole, finished = folder / "whole", folder / "broken"
    train(recipe, *given, f"output_dir={whole}")
    with pytest.MonkeyPatch.context() as patch:
        broken = break_after(BREAKS_AFTER, patch)
        train(recipe, *given, f"output_dir={finished}", status=1)
    assert broken == [BREAKS_AFTER] == [steps_in(finished)]
    train(recipe, *given, f"output_dir={finished}", "--resume")
    trained = open_model(str(finished), dtype="float32")
    answer = Chat(trained, settings=Settings(max_new_tokens=8)).say(QUESTION)
    return Walked(
        [line["step"] for line in Run(finished).metrics if "loss" in line],
        differences(whole, finished),
        json.loads((finished / "manifest.json").read_text())["decisions"]["dtype"],
        answer.ids,
        [merged(trained, base, folder) for base in bases_of(config.load(recipe, given))],
    )


def train(*arguments: object, status: int = 0) -> None:
    with contextlib.redirect_stdout(io.StringIO()) as said:
        found = luthier("train", *arguments)
    assert found == status, said.getvalue()


def bases_of(given: RunConfig) -> list[Base]:
    """What the recipe's adapter can be merged into."""
    if given.model.quantization is None:
        return ["as trained"]
    return ["16bit", "dequantized"] if given.model.quantization.kind in ("nf4", "fp4") else ["16bit"]


def merged(trained: Opened, base: Base, folder: Path) -> Merge:
    """The run's merged model in `folder`, and what it says beside the run."""
    out = folder / f"merged-{base}".replace(" ", "-")
    done = verified_export.export(trained.target, "merged", out, base=base, unproven=True, say=lambda text: None)
    on_base = trained if base == "as trained" else open_model(trained.target, dtype="float32", base=base)
    again = open_model(str(out), dtype="float32")
    ids = trained.tokenizer(QUESTION)["input_ids"]
    found = logits(AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32), ids)
    far = [float((found - logits(each.model, ids)).abs().max() / found.abs().max()) for each in (on_base, trained)]
    same = torch.equal(found, logits(again.model, ids))
    return Merge(base, done.dtype, far[0], far[1], done.drift.top1_agreement, same)


def logits(model: Any, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(torch.tensor([ids])).logits.float()
    return found
