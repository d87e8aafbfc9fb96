"""Noise on the embeddings: of the published size, the same in every layout, and gone in evaluation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from luthier import config
from luthier.data.steps.layout import Layout, micro_batches
from luthier.inference.generation import generate
from luthier.policy.neftune import Noise
from luthier.policy.policy import Policy
from luthier.training import run
from tests.helpers.jobs import make_config, make_policy, make_samples
from tests.helpers.pairs import make_pairs
from tests.helpers.tiny_models import save_twin, tiny_tokenizer

SAMPLES = make_samples([24, 17, 9])


def scored(policy: Policy, layout: Layout, step: int, max_tokens: int = 512) -> torch.Tensor:
    """Log-probabilities of all rows, in the order of the rows."""
    found = {}
    for batch in micro_batches(SAMPLES, [0, 1, 2], layout=layout, max_tokens=max_tokens, step=step):
        with torch.no_grad():
            logps, starts = policy(batch).logps, 0
        for row in batch.row_ids:
            count = next(sample.trained_tokens for sample in SAMPLES if sample.row == row)
            found[row] = logps[starts : starts + count]
            starts += count
    return torch.cat([found[sample.row] for sample in SAMPLES])


def test_the_layout_does_not_change_the_noise(tmp_path: Path) -> None:
    policies = {layout: make_policy(make_config(tmp_path), layout=layout) for layout in ("flat", "padded")}
    before = scored(policies["flat"].train(), "flat", step=3)
    for policy in policies.values():
        Noise(policy, 5.0)
    noisy = scored(policies["flat"].train(), "flat", step=3)
    assert float((noisy - before).abs().max()) > 0.01
    torch.testing.assert_close(scored(policies["padded"].train(), "padded", step=3), noisy, atol=1e-5, rtol=0)
    torch.testing.assert_close(scored(policies["flat"], "flat", step=3, max_tokens=1), noisy, atol=1e-5, rtol=0)
    assert float((scored(policies["flat"], "flat", step=4) - noisy).abs().max()) > 1e-3
    assert torch.equal(scored(policies["flat"].eval(), "flat", step=3), before)


def test_what_answers_share_has_the_same_noise(tmp_path: Path) -> None:
    """Once or several times; it is as small as in the longer document that has it first."""
    samples, found = make_pairs(((30, 9, 4), (5, 2, 17))), dict[str, torch.Tensor]()
    for layout in ("flat", "shared", "padded"):
        policy = make_policy(make_config(tmp_path), layout=layout).train()
        Noise(policy, 5.0)
        (batch,) = micro_batches(samples, [0, 1, 2, 3], layout=layout, max_tokens=1000, step=3)
        with torch.no_grad():
            found[layout] = policy(batch).logps
    torch.testing.assert_close(found["shared"], found["flat"], atol=1e-5, rtol=0)
    torch.testing.assert_close(found["padded"], found["flat"], atol=1e-5, rtol=0)


def test_its_size_is_as_published(tmp_path: Path) -> None:
    """Uniform within alpha / sqrt(L D), whose variance is a third of the square."""
    policy = make_policy(make_config(tmp_path), layout="padded")
    embedding, seen = policy.core.get_input_embeddings(), list[torch.Tensor]()
    Noise(policy, 5.0)
    embedding.register_forward_hook(lambda module, inputs, output: seen.append(output - module.weight[inputs[0]]))
    scored(policy.train(), "padded", step=0)
    (noise,) = seen
    for row, length in zip(noise, sorted((len(sample) for sample in SAMPLES), reverse=True), strict=True):
        width = 5.0 / (length * 64) ** 0.5
        assert float(row[:length].abs().max()) <= width
        assert float(row[:length].square().mean()) == pytest.approx(width**2 / 3, rel=0.1)
        assert abs(float(row[:length].mean())) < 0.1 * width


def test_answers_are_generated_without_noise(tmp_path: Path) -> None:
    """In the middle of a run and after it, whatever the last batch was: the policy trains on, its answers are the model's own."""
    policy = make_policy(make_config(tmp_path)).train()
    prompts, tokenizer = [[5, 6, 7, 8, 9], [4]], tiny_tokenizer()
    want = [answer.ids for answer in generate(policy.model, tokenizer, prompts, max_new_tokens=6, stop_ids=[])]
    Noise(policy, 300.0)
    scored(policy, "flat", step=0)
    assert policy.training
    assert [answer.ids for answer in generate(policy.model, tokenizer, prompts, max_new_tokens=6, stop_ids=[])] == want


@pytest.mark.prove
def test_a_run_with_noise_answers_its_prompts(tmp_path: Path) -> None:
    save_twin(tmp_path / "model", "llama")
    (tmp_path / "rows.jsonl").write_text('{"prompt": "Say 1.", "completion": "1!"}\n' * 4)
    keys = [f"model={tmp_path}/model", f"data={tmp_path}/rows.jsonl", "sample_prompts=[Hello!]", "max_steps=2"]
    keys += ["neftune_noise_alpha=5", "dtype=float32", f"output_dir={tmp_path}/run"]
    run.execute(config.load(None, keys), say=lambda text: None)
    (answer,) = json.loads((tmp_path / "run" / "answers.json").read_text())
    assert answer["prompt"] == "Hello!"
