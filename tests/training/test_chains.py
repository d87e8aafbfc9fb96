"""A run is the model of the next: its adapter gone on from, or merged first; its words are taken over."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from luthier import api, config
from luthier.errors import UserError
from luthier.inference.opened import open_model
from luthier.runs.chain import TEMPLATE, going_on
from tests.helpers.tiny_models import tiny_llama

ROWS = [{"prompt": f"Say {number}.", "completion": f"{number}!"} for number in range(12)]
PAIRS = [{"prompt": f"Say {number}.", "chosen": f"{number}!", "rejected": "I say no."} for number in range(12)]
IDS = torch.arange(3, 30)[None]
RATES: dict[str, Any] = {"learning_rate": 1e-2, "lr_scheduler_type": "constant", "warmup_steps": 0, "max_steps": 2}
WORDS = {
    "data.chat_template": "alpaca@stanford",
    "data.system": "Be brief.",
    "data.add_tokens": ["<violin>"],
    "quantization": "nf4",
}


def made(folder: Path, name: str, model: Path, **keys: Any) -> Path:
    """A run on the model, of two steps."""
    data = {"data": str(folder / "rows.jsonl")} | {"dtype": "float32", "global_batch_size": 4, **RATES, **keys}
    api.train(str(model), data.pop("data"), output_dir=folder / name, **data)
    return folder / name


def logits(target: Path) -> torch.Tensor:
    opened = open_model(str(target), dtype="float32", device=torch.device("cpu"))
    with torch.no_grad():
        found: torch.Tensor = opened.model(IDS).logits
    return found


def first_step(run: Path) -> dict[str, float]:
    found: dict[str, float] = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, rows, pairs, and a run `sft` that made an adapter."""
    folder = tmp_path_factory.mktemp("chains")
    tiny_llama(folder / "model")
    for name, rows in {"rows": ROWS, "pairs": PAIRS}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made(folder, "sft", folder / "model")
    return folder


def test_an_adapter_is_gone_on_from(place: Path) -> None:
    """As with tuning.adapter_path, to the bit; what it began with is the reference."""
    pairs = {"data": str(place / "pairs.jsonl"), "objective": "dpo"}
    named = made(place, "named", place / "sft", **pairs)
    spelled = made(place, "spelled", place / "model", **pairs, **{"tuning.adapter_path": str(place / "sft")})
    assert torch.equal(logits(named), logits(spelled))
    assert first_step(named)["loss"] == pytest.approx(0.693147, abs=1e-6)
    assert first_step(named)["margin"] == 0
    assert not torch.allclose(logits(named), logits(place / "sft"), atol=1e-4)
    assert config.load(named / "config.yaml").model.path == str(place / "model")


def test_a_run_is_merged_first(place: Path) -> None:
    """Once, into its own folder; a new adapter, or the whole model, is trained on that."""
    pairs = {"data": str(place / "pairs.jsonl"), "objective": "dpo"}
    whole = made(place, "whole", place / "sft", **pairs, tuning="full")
    assert first_step(whole)["loss"] == pytest.approx(0.693147, abs=1e-6)
    assert torch.allclose(logits(place / "sft" / "merged"), logits(place / "sft"), atol=1e-5)
    written = (place / "sft" / "merged" / "config.json").stat().st_mtime_ns
    other = made(place, "other", place / "sft", **pairs, r=3, **{"model.adapter": "merge"})
    assert (place / "sft" / "merged" / "config.json").stat().st_mtime_ns == written
    assert first_step(other)["margin"] == 0
    assert config.load(other / "config.yaml").model.path == str(place / "sft")
    assert not torch.allclose(logits(other), logits(place / "sft"), atol=1e-4)


def test_a_merged_folder_is_of_the_adapter_that_is_there(place: Path) -> None:
    """Where the run has gone on since, it is not taken for it; a run that began on it goes on with it."""
    sft, pairs = place / "gone-on", {"data": str(place / "pairs.jsonl"), "objective": "dpo", "tuning": "full"}
    shutil.copytree(place / "sft", sft)
    shutil.rmtree(sft / "merged", ignore_errors=True)
    made(place, "on-first", sft, **pairs)
    weights = sft / "adapter" / "adapter_model.safetensors"
    save_file({name: 2 * value for name, value in load_file(weights).items()}, weights)
    with pytest.raises(UserError, match="was not made of the adapter that") as caught:
        made(place, "on-second", sft, **pairs)
    assert caught.value.fix.startswith(f"rm -r {sft / 'merged'};")
    note = place / "on-first" / "manifest.json"
    note.write_text(note.read_text().replace('"finished"', '"stopped"'))
    shutil.rmtree(place / "on-first" / "model")
    made(place, "on-first", sft, **pairs, resume=True)
    shutil.rmtree(sft / "merged")
    made(place, "on-second", sft, **pairs)
    assert torch.allclose(logits(sft / "merged"), logits(sft), atol=1e-5)


@pytest.mark.prove
def test_a_chain_goes_on_where_it_stopped(place: Path) -> None:
    """The same lines with --resume, of a run that names a run."""
    pairs = {"data": str(place / "pairs.jsonl"), "objective": "dpo", "save_steps": 1, "save_total_limit": 2}
    for name, more in {"continued": {}, "merged": {"model.adapter": "merge"}}.items():
        run = made(place, name, place / "sft", **pairs, **more)
        before = logits(run)
        (run / "manifest.json").write_text((run / "manifest.json").read_text().replace('"finished"', '"stopped"'))
        for file in (run / "adapter").iterdir():
            file.unlink()
        (run / "adapter").rmdir()
        for file in (run / "checkpoints" / "step-000002").iterdir():
            file.unlink()
        (run / "checkpoints" / "step-000002").rmdir()
        made(place, name, place / "sft", **pairs, **more, resume=True)
        assert torch.equal(logits(run), before)


@pytest.mark.prove
def test_words_become_scores(place: Path) -> None:
    """An adapter for words is merged first where a head of scores is learned; one for scores is gone on from, and is no model of words."""
    pairs = {"data": str(place / "pairs.jsonl"), "objective": "reward"}
    judge = made(place, "judge", place / "sft", **pairs)
    assert config.load(judge / "config.yaml").model.path == str(place / "sft")
    again = made(place, "judge-again", judge, **pairs)
    assert config.load(again / "config.yaml").tuning.model_dump()["adapter_path"] == str(judge)
    assert first_step(again)["loss"] < first_step(judge)["loss"]
    with pytest.raises(UserError, match="learned to score answers"):
        made(place, "words-again", judge, data=str(place / "pairs.jsonl"), objective="dpo")
    with pytest.raises(UserError, match="an adapter for words is to be gone on from"):
        made(place, "x", place / "sft", **pairs, **{"model.adapter": "continue"})


@pytest.mark.parametrize("adapter", ["auto", "merge"])
def test_what_it_learned_by_is_taken_over(place: Path, adapter: str) -> None:
    """What is said itself comes first."""
    if not (place / "words").exists():
        made(place, "words", place / "model", **WORDS)
    given = ["data=d", f"model={place / 'words'}", f"model.adapter={adapter}"]
    found = going_on(config.load(None, given))
    assert found.data.system == "Be brief."
    if adapter == "auto":
        assert (found.data.chat_template, found.data.add_tokens) == ("alpaca@stanford", ("<violin>",))
        assert found.model.quantization is not None
        assert found.model.quantization.kind == "nf4"
        assert found.model.path == str(place / "model")
    said = going_on(config.load(None, [*given, "data.system=Be loud.", "data.chat_template=chatml"]))
    assert (said.data.system, said.data.chat_template) == ("Be loud.", "chatml")


MARKED = (
    "{% for message in messages %}{{ message.role }}: {% if message.role == 'assistant' %}{% generation %}{{ message.content }}"
    "{{ eos_token }}{% endgeneration %}{% else %}{{ message.content }}{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def test_a_template_of_the_users_is_the_same_to_the_letter(place: Path) -> None:
    """What is saved of it is without its marks: another one. Where the file is gone, that is named, and refused with what to write."""
    own = place / "own.jinja"
    own.write_text(MARKED)
    run = made(place, "own", place / "model", **{"data.chat_template": str(own)})
    pairs = {"data": str(place / "pairs.jsonl"), "objective": "dpo"}
    assert first_step(made(place, "own-next", run, **pairs))["margin"] == 0
    own.unlink()
    assert going_on(config.load(None, ["data=d", f"model={run}"])).data.chat_template == str(run / "adapter" / TEMPLATE)
    with pytest.raises(
        UserError, match=r"chat_template, on_system and enable_thinking as in the config.yaml of that run"
    ):
        made(place, "own-gone", run, **pairs)


def test_a_system_text_of_the_rows_is_that_of_the_next_run(place: Path) -> None:
    """All had it, so the model is asked with it; null leaves it out."""
    rows = [{"messages": [{"role": "system", "content": "You are S."}, {"role": "user", "content": row["prompt"]},
                          {"role": "assistant", "content": row["completion"]}]} for row in ROWS]  # fmt: skip
    (place / "spoken.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, tuning in {"spoken": "lora", "spoken-whole": "full"}.items():
        run = made(place, name, place / "model", data=str(place / "spoken.jsonl"), tuning=tuning)
        assert going_on(config.load(None, ["data=d", f"model={run}"])).data.system == "You are S."
        assert going_on(config.load(None, ["data=d", f"model={run}", "data.system=null"])).data.system is None


@pytest.mark.prove
def test_a_checkpoint_is_gone_on_from(place: Path) -> None:
    checkpoint = place / "sft" / "checkpoints" / "step-000002"
    assert torch.equal(logits(checkpoint), logits(place / "sft"))
    run = made(place, "from-step", checkpoint, data=str(place / "pairs.jsonl"), objective="dpo")
    assert first_step(run)["margin"] == 0


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["model.adapter=continue", "tuning=full"], "tuning=lora, or model.adapter=merge"),
        (["tuning.adapter_path=other"], "tuning.adapter_path names one"),
    ],
)
def test_what_cannot_be(place: Path, more: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        going_on(config.load(None, ["data=d", f"model={place / 'sft'}", *more]))


def test_a_checkpoint_is_not_merged(place: Path) -> None:
    """It has no place of its own for a model; the line that writes one is named."""
    with pytest.raises(UserError, match=r"luthier export .*step-000002 --to merged --output DIR"):
        made(place, "x", place / "sft" / "checkpoints" / "step-000002", tuning="full")
    assert not (place / "x").exists()
