"""Objectives on pairs: each is its equation, and how a step is cut does not change it."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from luthier import config
from luthier.data.steps.kept_reference import KeptReference
from luthier.data.steps.layout import micro_batches
from luthier.errors import UserError
from luthier.policy.neftune import Noise
from luthier.policy.policy import enable_activation_checkpointing
from luthier.training.learning_check import LearningCheck
from luthier.training.loop import evaluate, train_step
from luthier.training.objective_figures import check_first_step
from luthier.training.step import plan_step
from luthier.types import Sample
from tests.helpers.jobs import MadeJob, make_config, make_policy, step_of
from tests.helpers.pairs import LENGTHS, OBJECTIVES, made, make_pairs, named, pair_job

WEIGHTED = [one for one in OBJECTIVES if one.get("sft_weight") or one["kind"] in ("cpo", "orpo")]
REFERRED = [one for one in OBJECTIVES if one["kind"] == "dpo" and one.get("reference") != "none"]


def s(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def by_definition(keys: dict[str, Any], policy: list[list[float]], reference: list[list[float]]) -> float:
    """The loss of a pair, of log-probabilities a token of its better and its worse answer."""
    (yes, no), (yes_before, no_before) = policy, reference
    beta = keys.get("beta", {"simpo": 2.0}.get(keys["kind"], 0.1))
    if keys["kind"] == "simpo":
        return -math.log(s(beta * (mean(yes) - mean(no)) - 0.5 * beta))
    if keys["kind"] == "cpo":
        return -math.log(s(beta * (sum(yes) - sum(no))))
    if keys["kind"] == "orpo":
        odds = [math.log(math.exp(mean(one)) / (1 - math.exp(mean(one)))) for one in (yes, no)]
        return -beta * math.log(s(odds[0] - odds[1]))
    if keys.get("reference") == "none":
        yes_before, no_before = [0.0] * len(yes), [0.0] * len(no)
    alpha, short = keys.get("ld_alpha", 1.0), min(len(yes), len(no))
    better, worse = (
        [(p - r) * (1.0 if at < short else alpha) for at, (p, r) in enumerate(zip(one, other, strict=True))]
        for one, other in ((yes, yes_before), (no, no_before))
    )
    e, kind = keys.get("label_smoothing", 0.0), keys.get("loss", "sigmoid")
    x, d = beta * (sum(better) - sum(worse)), mean(better) - mean(worse)
    match kind:
        case "sigmoid":
            return -(1 - e) * math.log(s(x)) - e * math.log(s(-x))
        case "robust":
            return (-(1 - e) * math.log(s(x)) + e * math.log(s(-x))) / (1 - 2 * e)
        case "hinge":
            return max(0.0, 1 - x)
        case "ipo":
            return (d - 1 / (2 * beta)) ** 2
        case "apo_zero":
            return 1 - s(beta * sum(better)) + s(beta * sum(worse))
        case "apo_down":
            return s(beta * sum(better)) + 1 - s(x)
    assert kind == "sigmoid_norm"
    return -math.log(s(beta * d))


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def alone(job: MadeJob, samples: list[Sample]) -> list[list[float]]:
    """Log-probabilities of each sample's trained tokens, one forward pass a sample and no dropout."""
    job.policy.eval()
    with torch.no_grad():
        found = [
            job.policy(micro_batches([sample], [0], layout=job.layout, max_tokens=1000, step=0)[0]).logps.tolist()
            for sample in samples
        ]
    job.policy.train()
    return found


def moved(job: MadeJob) -> None:
    """Away from the beginning, so that log-ratios are no zeros."""
    with torch.no_grad():
        for parameter in job.policy.parameters():
            if parameter.requires_grad:
                parameter.add_(
                    0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(parameter)))
                )


@pytest.mark.parametrize("keys", OBJECTIVES, ids=named)
def test_it_is_its_equation(keys: dict[str, Any], tmp_path: Path) -> None:
    job = pair_job(tmp_path, keys, "flat", 100_000, "lora_dropout=0.0")
    samples = list(job.samples)
    reference = alone(job, samples)
    moved(job)
    policy = alone(job, samples)
    pairs = range(0, len(samples), 2)
    wanted = {i // 2: by_definition(keys, policy[i : i + 2], reference[i : i + 2]) for i in pairs}
    _, done = step_of(job)
    weight = keys.get("sft_weight", 1.0 if keys["kind"] in ("cpo", "orpo") else 0.0)
    nll = -sum(sum(policy[i]) for i in pairs) / sum(len(policy[i]) for i in pairs)
    assert done.figures["loss"] == pytest.approx(mean(list(wanted.values())) + weight * nll, rel=1e-5)
    assert done.row_losses is not None
    assert dict(zip(job.steps.indices(0), done.row_losses, strict=True)) == pytest.approx(wanted, rel=1e-4)
    assert done.figures["nll"] == pytest.approx(nll, rel=1e-6)
    assert done.figures["logps_chosen"] == pytest.approx(mean([sum(policy[i]) for i in pairs]), rel=1e-6)
    assert done.figures["tokens_rejected"] == pytest.approx(mean([rejected for *_, rejected in LENGTHS]))


@pytest.mark.parametrize("family", ["mistral", "baichuan_alibi"])
def test_a_shared_prompt_is_as_two(family: str, tmp_path: Path) -> None:
    """In a window, with ALiBi, with noise on the embeddings, and where activations are computed again in the backward pass."""
    found = []
    for layout, again in (("flat", False), ("shared", False), ("shared", True)):
        job = pair_job(tmp_path / f"{layout}-{again}", {"kind": "dpo"}, layout, family=family)
        Noise(job.policy, 5.0)
        if again:
            enable_activation_checkpointing(job.policy.core)
        gradient, _ = step_of(job)
        found.append(gradient)
    for other in found[1:]:
        assert float((other - found[0]).norm() / found[0].norm()) < 1e-5


@pytest.mark.parametrize("keys", REFERRED, ids=named)
def test_the_first_step_is_known(keys: dict[str, Any], tmp_path: Path) -> None:
    """From a policy that begins at its base, and from one that goes on from an adapter."""
    for name, warm in (("base", False), ("adapter", True)):
        job = pair_job(tmp_path / name, keys, "flat", 100_000, "lora_dropout=0.0", warm=warm)
        _, done = step_of(job)
        for figure, value in job.objective.first_step().items():
            assert done.figures[figure] == pytest.approx(value, abs=1e-6)
        assert done.figures["accuracy"] == pytest.approx(0.5)


def test_a_policy_that_is_not_its_reference_does_not_begin(tmp_path: Path) -> None:
    job = pair_job(tmp_path, {"kind": "dpo"})
    check_first_step(job, plan_step(job, 0))  # dropout is off for it
    moved(job)
    before = [p.detach().clone() for p in job.policy.parameters()]
    with pytest.raises(UserError, match=r"loss is 0\.\d+ before anything was learned, and must be 0.693147"):
        train_step(job, job.record, LearningCheck(job.policy, job.waiting))
    assert all(torch.equal(one, other) for one, other in zip(before, job.policy.parameters(), strict=True))


def test_figures_kept_of_another_beginning_are_found(tmp_path: Path) -> None:
    job = pair_job(tmp_path, {"kind": "dpo"})
    kept = torch.cat([torch.tensor(one) for one in alone(job, list(job.samples))]).numpy()
    job.reference["train"] = KeptReference(job.samples, kept)
    check_first_step(job, plan_step(job, 0))
    job.reference["train"] = KeptReference(job.samples, kept + 0.01)
    with pytest.raises(UserError, match="before anything was learned"):
        check_first_step(job, plan_step(job, 0))


@pytest.mark.parametrize("layout", ["flat", "padded", "shared"])
def test_what_is_kept_is_what_is_computed_in_the_step(layout: str, tmp_path: Path) -> None:
    live, kept = (pair_job(tmp_path / name, {"kind": "dpo"}, layout, 150) for name in ("live", "kept"))
    kept.reference["train"] = KeptReference(
        kept.samples, torch.cat([torch.tensor(one) for one in alone(kept, list(kept.samples))]).numpy()
    )
    for job in (live, kept):
        moved(job)
    (wanted, _), (got, _) = step_of(live), step_of(kept)
    assert float((got - wanted).norm() / wanted.norm()) < 1e-6


@pytest.mark.parametrize("keys", WEIGHTED, ids=named)
def test_both_weights_are_of_the_whole_step(keys: dict[str, Any], tmp_path: Path) -> None:
    job = pair_job(tmp_path, keys)
    weights = plan_step(job, 0).weights
    assert weights == {"pairs": 7.0, "chosen_tokens": float(sum(chosen for _, chosen, _ in LENGTHS))}


def test_held_out_pairs_are_measured_by_the_objective(tmp_path: Path) -> None:
    """And that changes nothing of the training."""
    curves = []
    for name, held_out in (("with", True), ("without", False)):
        job = pair_job(tmp_path / name, {"kind": "dpo"}, held_out=held_out)
        check, lines = LearningCheck(job.policy, job.waiting), list[dict[str, Any]]()
        job.record.recorder.evaluation = lines.append  # type: ignore[method-assign]
        job.wrapped.train()
        for _ in range(4):
            train_step(job, job.record, check)
            if held_out:
                evaluate(job, job.record)
        curves.append(torch.cat([p.detach().flatten() for p in job.policy.parameters()]))
        if held_out:
            assert {"eval_loss", "eval_accuracy", "eval_margin", "eval_nll"} <= lines[0].keys()
            assert len({line["eval_loss"] for line in lines}) == 4
    assert torch.equal(*curves)


def test_an_empty_micro_batch_has_all_figures_and_no_gradient(tmp_path: Path) -> None:
    policy = make_policy(make_config(tmp_path))
    policy.keep_reference()
    batches = micro_batches(make_pairs(((5, 4, 4),)), [0, 1], layout="flat", max_tokens=64, step=0, processes=2, rank=1)
    (whole,) = micro_batches(make_pairs(((5, 4, 4),)), [0, 1], layout="flat", max_tokens=64, step=0)
    for keys in OBJECTIVES:
        out, full = (made(**keys).loss(policy, batch) for batch in (batches[0], whole))
        assert out.sums.keys() == full.sums.keys()
        assert {k: v.keys() for k, v in out.metrics.items()} == {k: v.keys() for k, v in full.metrics.items()}
        total = sum(out.sums.values(), torch.zeros(()))
        assert float(total.detach()) == 0
        gradients = torch.autograd.grad(total, [p for p in policy.parameters() if p.requires_grad])
        assert all(not gradient.any() for gradient in gradients)


def test_odds_stay_finite_near_certainty() -> None:
    from luthier.objectives.orpo import log_odds

    means = torch.tensor([0.0, -1e-9, -1e-3, -0.6931, -0.6932, -5.0, -80.0], requires_grad=True)
    odds = log_odds(means)
    (gradient,) = torch.autograd.grad(odds.sum(), means)
    assert bool(odds.isfinite().all())
    assert bool(gradient.isfinite().all())
    assert all(a > b for a, b in pairwise(odds.tolist()[1:]))
    exact = [math.log(math.exp(m) / -math.expm1(m)) for m in (-1e-3, -5.0, -80.0)]
    assert [float(odds[i]) for i in (2, 5, 6)] == pytest.approx(exact, rel=1e-5)


@pytest.mark.parametrize(
    ("objective", "words"),
    [
        ("{kind: dpo, loss: hinge, label_smoothing: 0.1}", "label_smoothing is of the losses sigmoid and robust"),
        ("{kind: dpo, beta: 0}", "beta"),
        ("{kind: dpo, loss: sigmoi}", "sigmoid"),
        ("{kind: simpo, gamma: 1}", "gamma"),
    ],
)
def test_wrong_keys(objective: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        config.load(None, ["model=m", "data=d", f"objective={objective}"])
