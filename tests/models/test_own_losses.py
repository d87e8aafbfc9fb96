"""Losses of a model's own config.json: a run says that it leaves them out, and has terms that give them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from luthier import config
from luthier.api import Run
from luthier.data.steps.layout import micro_batches
from luthier.models.own_losses import own_losses
from luthier.objectives.z_loss import ZLoss
from luthier.training import run
from luthier.types import NO_TARGET, Sample
from tests.helpers.jobs import make_config, make_policy
from tests.helpers.tiny_models import save_twin, twin_config

WEIGHT = 0.01


def objective(text: str) -> Any:
    return config.load(None, ["model=m", "data=d", f"objective={text}"]).objective


def test_the_largest_logit_squared_is_the_original_models_own_loss(tmp_path: Path) -> None:
    """Where every position is trained and nothing is padding: else the original averages over more positions."""
    ids = np.random.default_rng(0).integers(3, 500, 17)
    policy = make_policy(make_config(tmp_path), "baichuan", "padded").eval()
    (batch,) = micro_batches(
        [Sample(ids, np.append(ids[1:], NO_TARGET), "r:1", 0)], [0], layout="padded", max_tokens=99, step=0
    )
    out = ZLoss(ZLoss.Config(form="largest")).loss(policy, batch)
    given, losses = torch.from_numpy(ids)[None], []
    for weight in (0.0, WEIGHT):
        policy.core.config.z_loss_weight = weight
        with torch.no_grad():
            losses.append(float(policy.core(input_ids=given, labels=given).loss))
    assert WEIGHT * float(out.sums["tokens"].detach()) / (len(ids) - 1) == pytest.approx(losses[1] - losses[0], rel=1e-3)
    assert losses[1] - losses[0] > 1e-3
    gradient = torch.autograd.grad(out.sums["tokens"], [p for p in policy.parameters() if p.requires_grad])
    assert all(bool(part.any()) for part in gradient)


def test_terms_are_named_that_give_them() -> None:
    plain, z = twin_config("baichuan"), twin_config("baichuan", z_loss_weight=2e-4)
    mixture = twin_config("qwen3_moe", output_router_logits=True, router_aux_loss_coef=0.02)
    assert own_losses(plain, objective("sft")) == own_losses(twin_config("qwen3_moe"), objective("sft")) == []
    for given, kind, values in (
        (z, "z_loss", {"form": "largest", "weight": 2e-4}),
        (mixture, "router_balance", {"over": "step", "weight": 0.02}),
    ):
        (line,) = own_losses(given, objective("sft"))
        terms = objective(line.partition("objective=")[2]).terms
        assert terms[1].kind == kind
        assert {key: getattr(terms[1], key) for key in values} == values
        assert own_losses(given, objective(line.partition("objective=")[2])) == []


def test_the_line_keeps_the_terms_that_are_there_and_has_all_that_are_missing() -> None:
    both = twin_config("qwen3_moe", output_router_logits=True, router_aux_loss_coef=0.02, z_loss_weight=2e-4)
    written = "{kind: weighted, gradient_shares: true, terms: [{kind: sft, weight: 0.7}, {kind: z_loss, weight: 0.1}]}"
    for given, weights in (
        ("sft", {"sft": 1.0, "z_loss": 2e-4, "router_balance": 0.02}),
        (written, {"sft": 0.7, "z_loss": 0.1, "router_balance": 0.02}),
    ):
        (line,) = own_losses(both, objective(given))
        mended = objective(line.partition("objective=")[2])
        assert {term.kind: term.weight for term in mended.terms} == weights
        assert mended.gradient_shares == (given == written)
        assert own_losses(both, mended) == []


def test_a_run_says_so_at_its_start(tmp_path: Path) -> None:
    save_twin(tmp_path / "model", "baichuan", z_loss_weight=WEIGHT)
    rows = [{"prompt": f"Say {number}.", "completion": f"{number}!"} for number in range(8)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    keys = [
        f"model={tmp_path / 'model'}",
        f"data={tmp_path / 'rows.jsonl'}",
        "dtype=float32",
        "max_steps=2",
        "optim=paged_adamw",
    ]
    said: list[str] = []
    run.execute(config.load(None, [*keys, f"output_dir={tmp_path / 'plain'}"]), say=said.append)
    assert any("z_loss_weight of 0.01" in line for line in said)
    assert any("nothing is paged on cpu" in line for line in said)
    term = next(line for line in said if "z_loss_weight" in line).partition("to train with it: ")[2]
    said.clear()
    done = run.execute(config.load(None, [*keys, term, f"output_dir={tmp_path / 'with'}"]), say=said.append)
    assert not any("z_loss_weight" in line for line in said)
    assert all(line["largest_logit"] > 0 for line in Run(done).metrics if "loss" in line)
