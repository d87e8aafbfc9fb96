"""Runs, adapters and models open as what they are, and plain peft and transformers see the same model."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from luthier.errors import UserError
from luthier.inference import scoring
from luthier.inference.generation import generate
from luthier.inference.opened import open_model
from luthier.models.flat import use_flat_attention
from luthier.types import NO_TARGET, Message, MicroBatch, Sample

TEXT = "What is the capital of France?"


def samples(count: int = 9) -> list[Sample]:
    draws = np.random.default_rng(3)
    out = []
    for index in range(count):
        ids = draws.integers(3, 500, size=int(draws.integers(2, 40)))
        targets = np.where(draws.random(len(ids)) < 0.6, np.roll(ids, -1), NO_TARGET)
        targets[-1] = NO_TARGET
        targets[0] = ids[1]
        out.append(Sample(ids.astype(np.int64), targets.astype(np.int64), f"x:{index}", index))
    return out


def test_run_adapter_and_model_open_as_what_they_are(run: Path, base: Path, full_run: Path) -> None:
    opened = open_model(str(run))
    assert opened.adapter == run / "adapter"
    assert opened.config is not None
    assert opened.compute_dtype == torch.float32  # as the run says
    assert opened.is_tuned
    assert opened.context_tokens == 256
    assert opened.renderer.stop_ids == {2}
    assert open_model(str(run / "adapter")).adapter == run / "adapter"
    plain = open_model(str(base))
    assert (plain.adapter, plain.config, plain.is_tuned) == (None, None, False)
    full = open_model(str(full_run))
    assert full.adapter is None
    assert full.is_tuned


def test_the_adapter_loads_in_plain_peft_by_the_way_of_the_tutorial(run: Path, base: Path) -> None:
    """AutoModelForCausalLM, PeftModel, apply_chat_template, generate, as people write it: same logits, same answer."""
    lora_path = str(run / "adapter")
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = PeftModel.from_pretrained(model, model_id=lora_path)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": TEXT}], tokenize=False, add_generation_prompt=True
    )
    inputs = tokenizer([text], return_tensors="pt", add_special_tokens=False)
    opened = open_model(str(run))
    prompt = opened.renderer.prompt_ids([Message("user", TEXT)])
    assert inputs.input_ids[0].tolist() == prompt
    with torch.no_grad():
        theirs = model(inputs.input_ids).logits
        ours = opened.model(inputs.input_ids).logits
        assert float((theirs - ours).abs().max()) < 1e-6
        with model.disable_adapter():
            assert float((theirs - model(inputs.input_ids).logits).abs().max()) > 0.1  # the adapter does something
    answer = model.generate(inputs.input_ids, attention_mask=inputs.attention_mask, max_new_tokens=20, do_sample=False)[
        0, len(prompt) :
    ]
    (own,) = generate(opened.model, opened.tokenizer, [prompt], max_new_tokens=20, stop_ids=opened.renderer.stop_ids)
    assert own.ids == answer.tolist()


def test_reference_is_the_base(run: Path, base: Path, full_run: Path) -> None:
    ids = torch.tensor([[5, 9, 42, 77]])
    plain = AutoModelForCausalLM.from_pretrained(base)
    for target in (run, full_run):
        opened = open_model(str(target))
        policy = opened.policy(with_reference=True)
        with torch.no_grad():
            tuned = opened.model(ids).logits
            with policy.reference():
                assert torch.equal(opened.model(ids).logits, plain(ids).logits)
            assert torch.equal(opened.model(ids).logits, tuned)
        assert not torch.equal(tuned, plain(ids).logits)


def test_nothing_is_known_of_the_past_of_a_plain_model(base: Path) -> None:
    with pytest.raises(UserError, match="nothing is known"):
        open_model(str(base)).policy(with_reference=True)


def test_an_adapter_of_another_base_is_refused(run: Path, base: Path, tmp_path: Path) -> None:
    moved, other = tmp_path / "run", tmp_path / "other"
    shutil.copytree(run, moved)
    shutil.copytree(base, other)
    model = AutoModelForCausalLM.from_pretrained(other)
    model.model.embed_tokens.weight.data.neg_()
    model.save_pretrained(other)
    ours = json.loads((moved / "adapter" / "luthier.json").read_text())
    ours["base"]["name"] = str(other)
    (moved / "adapter" / "luthier.json").write_text(json.dumps(ours))
    with pytest.raises(UserError, match="was trained on"):
        open_model(str(moved))


@pytest.mark.parametrize("layout", ["flat", "padded"])
@pytest.mark.parametrize("max_tokens", [16, 10_000])
def test_scores_are_those_of_each_row_alone(run: Path, layout: str, max_tokens: int) -> None:
    opened = open_model(str(run))
    rows = samples()
    expected_nll, expected_correct = [], []
    for sample in rows:
        with torch.no_grad():
            logits = opened.model(torch.from_numpy(sample.input_ids)[None]).logits[0].double()
        trained = sample.targets != NO_TARGET
        targets = torch.from_numpy(sample.targets[trained])
        logps = logits.log_softmax(-1)[torch.from_numpy(trained)]
        expected_nll.append(-float(logps.gather(-1, targets[:, None]).sum()))
        expected_correct.append(int((logps.argmax(-1) == targets).sum()))
    policy = opened.policy()
    if layout == "flat":
        use_flat_attention(policy.core)
    found = scoring.score_rows(policy, rows, layout=layout, max_tokens=max_tokens)
    assert found.nll == pytest.approx(expected_nll, abs=1e-3)
    assert found.correct.tolist() == expected_correct
    assert found.tokens.tolist() == [sample.trained_tokens for sample in rows]
    summary = scoring.score_rows(policy, rows, layout=layout, max_tokens=max_tokens).summary
    total = sum(sample.trained_tokens for sample in rows)
    assert summary["loss"] == pytest.approx(sum(expected_nll) / total, rel=1e-6)
    assert summary["perplexity"] == pytest.approx(np.exp(sum(expected_nll) / total), rel=1e-5)
    assert summary["token_accuracy"] == sum(expected_correct) / total
    assert summary["tokens"] == total


def test_windows_do_not_show(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = open_model(str(run)).policy()
    whole = scoring.score_rows(policy, samples(), layout="padded", max_tokens=64)
    monkeypatch.setattr(scoring, "WINDOW", 2)
    cut = scoring.score_rows(policy, samples(), layout="padded", max_tokens=64)
    assert cut.nll == pytest.approx(whole.nll, abs=1e-4)
    assert cut.correct.tolist() == whole.correct.tolist()


@pytest.mark.parametrize("processes", [1, 3])
def test_a_window_grows_with_the_processes_and_parts_no_example(
    run: Path, processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of nine samples, in examples of one, four, two and two, two a process."""
    policy, seen = open_model(str(run)).policy(), list[list[int]]()
    rows = [replace(sample, example=of) for sample, of in zip(samples(), [0, 1, 1, 1, 1, 2, 2, 3, 3], strict=True)]
    lay = scoring.micro_batches

    def noted(window: list[Sample], indices: list[int], **named: Any) -> list[MicroBatch]:
        seen.append(list(indices))
        return lay(window, indices, **named)

    monkeypatch.setattr(scoring, "WINDOW", 2)
    monkeypatch.setattr(scoring, "micro_batches", noted)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda sums: None)
    found = [
        scoring.score_rows(policy, rows, layout="padded", max_tokens=64, processes=processes, rank=rank)
        for rank in range(processes)
    ]
    wanted = {1: [[0, 1, 2, 3, 4], [5, 6], [7, 8]], 3: [[0, 1, 2, 3, 4, 5, 6], [7, 8]]}[processes]
    assert seen == wanted * processes
    whole = scoring.score_rows(policy, samples(), layout="padded", max_tokens=64)
    assert sum(one.nll for one in found) == pytest.approx(whole.nll, abs=1e-4)


def test_scoring_leaves_no_trace(run: Path) -> None:
    policy = open_model(str(run)).policy().train()
    policy.core.model.layers[1].eval()
    modes = [module.training for module in policy.modules()]
    state = torch.get_rng_state()
    first = scoring.score_rows(policy, samples(), layout="padded", max_tokens=64).summary
    assert [module.training for module in policy.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in policy.parameters())
    assert scoring.score_rows(policy.eval(), samples(), layout="padded", max_tokens=64).summary == first


def test_a_hopeless_model_has_an_infinite_perplexity() -> None:
    assert scoring.perplexity(1e4) == float("inf")
