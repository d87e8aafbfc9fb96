"""The head of scores is held in float32, whatever the rest is held in; and what settles its padding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from luthier.models.load import load_model
from luthier.models.score_head import settle_padding
from luthier.optimizers._stochastic_adamw import StochasticAdamW
from luthier.optimizers.adamw_bf16 import AdamWBF16
from luthier.training.parameters import train_in_bfloat16
from tests.helpers.tiny_models import tiny_llama


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small model that has such a head, in float32."""
    tiny_llama(tmp_path)
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=1).save_pretrained(tmp_path)
    return tmp_path


def test_a_stored_head_is_taken_as_it_is_stored(folder: Path) -> None:
    stored = AutoModelForSequenceClassification.from_pretrained(folder).score.weight
    model: Any = load_model(folder, dtype=torch.bfloat16, device="cpu", scored=True)
    assert model.get_input_embeddings().weight.dtype == torch.bfloat16
    assert torch.equal(model.score.weight, stored)


def test_an_optimizer_of_bfloat16_leaves_it_in_float32(folder: Path) -> None:
    model: Any = load_model(folder, dtype=torch.float32, device="cpu", scored=True)
    before = model.score.weight.detach().clone()
    train_in_bfloat16(model, torch.bfloat16, AdamWBF16.Config())
    assert {one.dtype for name, one in model.named_parameters() if name != "score.weight"} == {torch.bfloat16}
    assert torch.equal(model.score.weight, before)
    plain = torch.nn.Parameter(before.clone())
    grad = torch.randn(before.shape, generator=torch.Generator().manual_seed(1))
    model.score.weight.grad, plain.grad = grad, grad.clone()
    StochasticAdamW([{"params": [model.score.weight]}], 1e-4, (0.9, 0.999), 1e-8, seed=0).step()
    torch.optim.AdamW([plain], lr=1e-4, eps=1e-8, weight_decay=0.0).step()
    torch.testing.assert_close(model.score.weight, plain, rtol=0, atol=1e-7)


def test_without_another_special_token_there_is_no_padding(folder: Path) -> None:
    model: Any = AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    stops = set(tokenizer.all_special_ids)
    tokenizer.pad_token = tokenizer.all_special_tokens[0]
    settle_padding(model, tokenizer, stops)
    assert model.config.pad_token_id is None
    assert tokenizer.pad_token is None
