"""Whole runs of reward models: what they leave is loaded by transformers and peft, and scores as it did in training."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from luthier import config
from luthier.data.steps.layout import micro_batches
from luthier.errors import UserError
from luthier.inference import measures
from luthier.inference.rewards import JudgedPairs
from luthier.policy.policy import evaluating
from luthier.training import result, run
from luthier.training.build import Built
from luthier.types import Sample
from tests.helpers.killing import WORDS, write_config
from tests.helpers.tiny_models import save_twin, tiny_llama

FREEZE = "tuning={kind: freeze, last_layers: 1}"


def trained(
    config_file: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, *overrides: str
) -> tuple[list[Sample], list[float]]:
    """A short run: rows that it held out, and their scores by the policy as it ended."""
    found: list[Any] = []

    def noting(config: Any, built: Built, *rest: Any) -> None:
        write(config, built, *rest)
        samples, job = list(built.job.held_out or ()), built.job
        with torch.no_grad(), evaluating(job.policy):
            for index, sample in enumerate(samples):
                (batch,) = micro_batches([sample], [index], layout=job.layout, max_tokens=1000, step=0)
                values = job.policy(batch, ("value",), head=False).value
                assert values is not None
                found.append((sample, float(values[0])))

    write = result.write_result
    monkeypatch.setattr(run, "write_result", noting)
    short = (f"output_dir={folder}", "max_steps=3", "max_tokens_per_micro_batch=400", "save_steps=100")
    run.execute(config.load(config_file, [*short, *overrides]), say=lambda _: None)
    return [sample for sample, _ in found], [score for _, score in found]


def planted(folder: Path, shuffled: bool) -> Path:
    """A configuration for pairs in which one answer has a certain word and the other another one, somewhere; both are as long on
    average. 400 of them are learned from, 100 are held out. `shuffled`: which of the two is better is chance, in both."""
    tiny_llama(folder / "model")
    rng = random.Random(1)
    rows = []
    for number in range(500):
        answers = []
        for trait in ("violin", "France"):
            words = rng.choices(("the", "capital", "builds", "and", "tunes", "Paris", "is", "a"), k=rng.randint(3, 14))
            words.insert(rng.randint(0, len(words)), trait)
            answers.append(" ".join(words))
        better, worse = answers[:: rng.choice((1, -1))] if shuffled else answers
        rows.append({"prompt": f"{' '.join(rng.choices(WORDS, k=5))} {number}", "chosen": better, "rejected": worse})
    for name, some in (("train", rows[:400]), ("held", rows[400:])):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, some)) + "\n")
    path = folder / "mine.yaml"
    path.write_text(f"""
model: {{path: {folder / "model"}, dtype: float32}}
data: {{train: {folder / "train.jsonl"}, eval: {folder / "held.jsonl"}}}
tuning: full
objective: reward
training: {{num_train_epochs: 3, global_batch_size: 8, learning_rate: 1e-3, eval_steps: 50}}
output_dir: {folder / "run"}
""")
    return path


@pytest.mark.prove
@pytest.mark.parametrize("shuffled", [False, True], ids=["planted", "shuffled"])
def test_a_trait_is_learned_and_chance_is_not(shuffled: bool, tmp_path: Path) -> None:
    """Of the held-out pairs at least 95 % are right; where the labels are chance, half of them, within the interval."""
    run.execute(config.load(planted(tmp_path, shuffled)), say=lambda _: None)
    judged = measures.measure_target(str(tmp_path / "run"), None, answered=0, max_new_tokens=1)
    assert isinstance(judged, JudgedPairs)
    (share, low, high), pairs = judged.figures["accuracy"]
    assert pairs == 100
    if shuffled:
        assert low <= 0.5 <= high, judged.figures
    else:
        assert share >= 0.95, judged.figures
        for name in ("accuracy_where_the_better_is_longer", "accuracy_where_the_better_is_shorter"):
            assert judged.figures[name][0][0] >= 0.9, judged.figures


def by_transformers(model: Any, padding: int, samples: Sequence[Sample]) -> list[float]:
    """All in one padded batch, as a server has them."""
    ids = [torch.as_tensor(sample.input_ids) for sample in samples]
    batch = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=padding)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(one) for one in ids], batch_first=True)
    with torch.no_grad():
        scores: list[float] = model(input_ids=batch, attention_mask=mask).logits[:, 0].tolist()
    return scores


@pytest.mark.parametrize("tuning", ["tuning=full", FREEZE])
def test_a_model_is_loaded_by_transformers(tuning: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config_file = write_config(tmp_path, "reward")
    samples, scores = trained(config_file, tmp_path / "run", monkeypatch, tuning)
    folder = tmp_path / "run" / "model"
    model, report = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    settings = json.loads((folder / "config.json").read_text())
    assert settings["architectures"] == ["LlamaForSequenceClassification"]
    assert model.config.num_labels == 1
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.config.pad_token_id == tokenizer.pad_token_id
    assert by_transformers(model.eval(), tokenizer.pad_token_id, samples) == pytest.approx(scores, abs=1e-5)
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert "score.weight" in file.keys()  # noqa: SIM118
        assert "lm_head.weight" not in file.keys()  # noqa: SIM118


def test_an_adapter_is_loaded_by_peft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config_file = write_config(tmp_path, "reward")
    samples, scores = trained(config_file, tmp_path / "run", monkeypatch, "lora_dropout=0.0")
    folder = tmp_path / "run" / "adapter"
    settings = json.loads((folder / "adapter_config.json").read_text())
    assert (settings["task_type"], settings["modules_to_save"]) == ("SEQ_CLS", ["score"])
    padding = AutoTokenizer.from_pretrained(folder).pad_token_id
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model", num_labels=1, pad_token_id=padding)
    model = PeftModel.from_pretrained(base, folder).eval()
    assert by_transformers(model, padding, samples) == pytest.approx(scores, abs=1e-5)


def test_padding_is_no_token_at_which_answers_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many published models have it: then transformers would read the score one token early."""
    config_file = write_config(tmp_path, "reward")
    file = tmp_path / "model" / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"pad_token": "<|im_end|>"}))
    settings = tmp_path / "model" / "config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"pad_token_id": 2}))
    samples, scores = trained(config_file, tmp_path / "run", monkeypatch, "tuning=full")
    assert {int(sample.input_ids[-1]) for sample in samples} == {2}
    folder = tmp_path / "run" / "model"
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert model.config.pad_token_id == tokenizer.pad_token_id != 2
    assert by_transformers(model.eval(), tokenizer.pad_token_id, samples) == pytest.approx(scores, abs=1e-5)


def test_training_goes_on_from_a_reward_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its head is taken, not drawn anew."""
    config_file = write_config(tmp_path, "reward")
    samples, scores = trained(config_file, tmp_path / "run", monkeypatch, "tuning=full")
    model = f"model={tmp_path / 'run' / 'model'}"
    again = trained(config_file, tmp_path / "again", monkeypatch, model, "learning_rate=1e-9")
    assert [sample.input_ids.tolist() for sample in again[0]] == [sample.input_ids.tolist() for sample in samples]
    assert again[1] == pytest.approx(scores, abs=1e-4)


def test_an_architecture_without_the_layout_does_not_begin(tmp_path: Path) -> None:
    config_file = write_config(tmp_path, "reward")
    save_twin(tmp_path / "other", "baichuan")
    with pytest.raises(UserError, match="has no ForSequenceClassification of baichuan"):
        run.execute(config.load(config_file, [f"model={tmp_path / 'other'}", f"output_dir={tmp_path / 'run'}"]))
    assert not (tmp_path / "run" / "manifest.json").exists()
