"""Reward modelling: it is its equation on transformers' own scores, and how a step is cut does not change it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from luthier import component, config
from luthier.data.steps.layout import micro_batches
from luthier.errors import UserError
from luthier.models.score_head import begin_head, refuse_without_scores
from luthier.policy.policy import evaluating
from luthier.training.learning_check import LearningCheck
from luthier.training.loop import evaluate, train_step
from luthier.tuning import Start
from luthier.types import Sample
from tests.helpers.jobs import MadeJob, make_config, make_policy, step_of
from tests.helpers.pairs import LENGTHS, made, make_pairs, pair_job
from tests.helpers.tiny_models import HIDDEN, scored_twin, twin_config

REWARDS = ({"kind": "reward"}, {"kind": "reward", "margin": 0.5, "center_rewards_coefficient": 0.3})
FREEZE = "tuning={kind: freeze, last_layers: 1}"


def by_transformers(job: MadeJob, samples: list[Sample]) -> list[float]:
    """The score of each sample alone, by the model's own forward."""
    with torch.no_grad(), evaluating(job.policy):
        ids = [torch.as_tensor(sample.input_ids)[None] for sample in samples]
        job.policy.core.config.pad_token_id = None  # one row a batch: the last token is the last
        return [float(job.policy.core(input_ids=one).logits) for one in ids]


@pytest.mark.parametrize("layout", ["flat", "padded"])
@pytest.mark.parametrize("keys", REWARDS, ids=["plain", "centred"])
def test_it_is_its_equation(keys: dict[str, Any], layout: str, tmp_path: Path) -> None:
    job = pair_job(tmp_path, keys, layout, 330, "lora_dropout=0.0")
    if layout == "flat":  # the oracle is without documents
        found = by_transformers(pair_job(tmp_path / "oracle", keys, "padded", 330), list(job.samples))
    else:
        found = by_transformers(job, list(job.samples))
    margin, centred = keys.get("margin", 0.0), keys.get("center_rewards_coefficient", 0.0)
    wanted = {
        pair: math.log1p(math.exp(-(found[2 * pair] - found[2 * pair + 1] - margin)))
        + centred * (found[2 * pair] + found[2 * pair + 1]) ** 2
        for pair in range(len(LENGTHS))
    }
    _, done = step_of(job)
    assert done.figures["loss"] == pytest.approx(float(np.mean(list(wanted.values()))), rel=1e-5)
    assert done.row_losses is not None
    assert dict(zip(job.steps.indices(0), done.row_losses, strict=True)) == pytest.approx(wanted, rel=1e-4)
    better, worse = np.array(found[::2]), np.array(found[1::2])
    assert done.figures["reward_chosen"] == pytest.approx(better.mean(), abs=1e-6)
    assert done.figures["margin"] == pytest.approx((better - worse).mean(), abs=1e-6)
    assert done.figures["accuracy"] == pytest.approx((better > worse).mean())
    assert done.figures["tokens_rejected"] == pytest.approx(np.mean([rejected for *_, rejected in LENGTHS]))


@pytest.mark.parametrize("layout", ["flat", "padded"])
def test_the_last_token_is_the_last_also_where_it_is_the_padding(layout: Any, tmp_path: Path) -> None:
    """Padding is id 0 here; all documents end with it, one of them with several."""
    policy = make_policy(make_config(tmp_path), layout=layout, scored=True).eval()
    ended = [
        replace(
            one,
            input_ids=np.concatenate([one.input_ids, [0] * (1 + place % 3)]),
            targets=np.append(one.targets, [-1] * (1 + place % 3)),
        )
        for place, one in enumerate(make_pairs(LENGTHS[:3]))
    ]
    places = range(len(ended))
    with torch.no_grad():
        (batch,) = micro_batches(ended, list(places), layout=layout, max_tokens=10_000, step=0)
        together = policy(batch, ("value",), head=False).value
        alone = [
            policy(micro_batches([ended[i]], [i], layout=layout, max_tokens=10_000, step=0)[0], ("value",), head=False)
            for i in places
        ]
        shorter = policy(
            micro_batches(
                [replace(ended[0], input_ids=ended[0].input_ids[:-1], targets=ended[0].targets[:-1])],
                [0],
                layout=layout,
                max_tokens=10_000,
                step=0,
            )[0],
            ("value",),
            head=False,
        )
    assert together is not None
    found = [float(together[batch.places.index(i)]) for i in places]
    assert found == pytest.approx([float(one.value[0]) for one in alone if one.value is not None], abs=1e-6)
    assert shorter.value is not None
    assert abs(float(shorter.value[0]) - found[0]) > 1e-4


@pytest.mark.parametrize("tuning", ["tuning=lora", "tuning=full", FREEZE])
def test_the_head_is_trained_whole_and_that_of_words_is_not_there(tuning: str, tmp_path: Path) -> None:
    made_config = make_config(tmp_path, tuning)
    policy = make_policy(made_config, scored=True, warm=False)
    trained = {name: p for name, p in policy.named_parameters() if p.requires_grad}
    heads = [p for name, p in trained.items() if ".score." in name]
    assert [(tuple(p.shape), p.dtype) for p in heads] == [((1, HIDDEN), torch.float32)]
    assert not any("lm_head" in name for name, _ in policy.named_parameters())
    layers = {name.split("layers.")[1][0] for name in trained if "layers." in name}
    assert layers == ({"1"} if tuning == FREEZE else {"0", "1"})


def test_the_draw_of_the_head() -> None:
    model = scored_twin("llama", hidden_size=256)
    first = model.score.weight.detach().clone()
    assert float(first.std()) == pytest.approx(1 / math.sqrt(257), rel=0.2)
    with torch.random.fork_rng():
        torch.manual_seed(7)  # no generator's state has a part in it
        begin_head(model, 0)
    assert torch.equal(model.score.weight, first)
    begin_head(model, 1)
    assert not torch.equal(model.score.weight, first)


def test_an_empty_micro_batch_has_all_figures_and_no_gradient(tmp_path: Path) -> None:
    policy = make_policy(make_config(tmp_path), scored=True)
    batches = micro_batches(make_pairs(((5, 4, 4),)), [0, 1], layout="flat", max_tokens=64, step=0, processes=2, rank=1)
    (whole,) = micro_batches(make_pairs(((5, 4, 4),)), [0, 1], layout="flat", max_tokens=64, step=0)
    for keys in REWARDS:
        out, full = (made(**keys).loss(policy, batch) for batch in (batches[0], whole))
        assert out.sums.keys() == full.sums.keys() == {"pairs"}
        assert {k: v.keys() for k, v in out.metrics.items()} == {k: v.keys() for k, v in full.metrics.items()}
        (total,) = out.sums.values()
        assert float(total.detach()) == 0
        gradients = torch.autograd.grad(total, [p for p in policy.parameters() if p.requires_grad])
        assert all(not gradient.any() for gradient in gradients)


def test_held_out_pairs_are_measured_and_move_nothing(tmp_path: Path) -> None:
    curves = []
    for name, held_out in (("with", True), ("without", False)):
        job = pair_job(tmp_path / name, REWARDS[0], held_out=held_out)
        check, lines = LearningCheck(job.policy, job.waiting), list[dict[str, Any]]()
        job.record.recorder.evaluation = lines.append  # type: ignore[method-assign]
        job.wrapped.train()
        for _ in range(3):
            train_step(job, job.record, check)
            if held_out:
                evaluate(job, job.record)
        curves.append(torch.cat([p.detach().flatten() for p in job.policy.parameters()]))
        if held_out:
            assert {"eval_loss", "eval_accuracy", "eval_margin", "eval_reward_chosen"} <= lines[0].keys()
            assert len({line["eval_loss"] for line in lines}) == 3
    assert torch.equal(*curves)


@pytest.mark.parametrize(
    ("objective", "words"),
    [
        ("{kind: reward, margin: -1}", "margin"),
        ("{kind: reward, beta: 0.1}", "beta"),
        ("{kind: weighted, terms: [{kind: reward}, {kind: dpo}]}", "reward beside dpo: its model has a head of scores"),
    ],
)
def test_wrong_keys(objective: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        config.load(None, ["model=m", "data=d", f"objective={objective}"])


def test_it_answers_no_sample_prompts() -> None:
    with pytest.raises(UserError, match="whose model gives scores and no answers"):
        config.load(None, ["model=m", "data=d", "objective=reward", "sample_prompts=[Hello]"])


def test_an_architecture_without_the_layout_is_named() -> None:
    with pytest.raises(UserError, match="transformers has no ForSequenceClassification of yuan"):
        refuse_without_scores(twin_config("yuan"), "mine")
    refuse_without_scores(twin_config("llama"), "mine")


def test_what_is_left_out() -> None:
    """The rate of a whole model is smaller than that of SFT, that of an adapter its own."""
    rates = {
        kind: config.load(None, ["model=m", "data=d", "objective=reward", f"tuning={kind}"]).training
        for kind in ("full", "freeze", "lora")
    }
    assert [one.learning_rate for one in rates.values()] == [1e-5, 1e-5, 2e-4]
    assert {one.num_train_epochs for one in rates.values()} == {1.0}


@pytest.mark.parametrize("name", ["qwen3", "gpt2", "gpt_neox", "gemma3_text", "opt", "qwen3_moe"])
def test_other_architectures(name: str, tmp_path: Path) -> None:
    """Their adapters are on the layers alone, and their scores are those of transformers."""
    policy = make_policy(make_config(tmp_path), name, layout="padded", scored=True).eval()
    (batch,) = micro_batches(make_pairs(LENGTHS[:1]), [0, 1], layout="padded", max_tokens=1000, step=0)
    with torch.no_grad():
        values = policy(batch, ("value",), head=False).value
        policy.core.config.pad_token_id = None
        rows = [ids[:length][None] for ids, length in zip(batch.input_ids, batch.lengths, strict=True)]
        wanted = [float(policy.core(input_ids=ids).logits) for ids in rows]
    assert values is not None
    assert values.tolist() == pytest.approx(wanted, abs=1e-5)
    assert not any("score.lora" in part for part, _ in policy.named_parameters())


def test_a_model_that_goes_on_is_not_drawn_anew() -> None:
    tuning = component.make("tuning", config.load(None, ["model=m", "data=d", "tuning=full"]).tuning)
    model = scored_twin("llama", seed=3)
    before = model.score.weight.detach().clone()
    assert torch.equal(tuning.apply(model, Start(keys=None)).model.score.weight, before)  # type: ignore[arg-type]
