"""Distillation: each divergence is its equation over full logits, and how a step is cut does not change it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from luthier import config
from luthier.data.steps import layout as layouts
from luthier.data.steps.layout import micro_batches
from luthier.errors import UserError
from luthier.objectives import Objective
from luthier.policy.policy import enable_activation_checkpointing
from luthier.policy.teacher import Teacher
from luthier.training.learning_check import LearningCheck
from luthier.training.loop import evaluate, train_step
from luthier.training.step import optimizer_step, plan_step
from luthier.types import NO_TARGET
from tests.helpers.jobs import MadeJob, make_samples, step_of
from tests.helpers.taught import LENGTHS, OBJECTIVES, distill, make_teacher, named, taught_job
from tests.helpers.tiny_models import VOCAB


def gradient_of(job: MadeJob) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in job.policy.parameters() if p.requires_grad and p.grad is not None])


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm())


def by_definition(keys: dict[str, Any], teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
    """The loss of each position, of the full logits [n, V] of both, in float64."""
    heat, beta, k = keys.get("temperature", 1.0), keys.get("beta", 0.5), keys.get("top_k", VOCAB)
    p, q = (logits.double().div(heat).softmax(-1) for logits in (teacher, student))
    if k < VOCAB:
        chosen = torch.zeros_like(p, dtype=torch.bool).scatter(-1, p.topk(k).indices, True)
        p, q = (torch.cat([x[chosen].reshape(-1, k), (x * ~chosen).sum(-1, keepdim=True)], -1) for x in (p, q))
    m = beta * p + (1 - beta) * q

    def kl(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a * (a / b).log()).sum(-1)

    found = {"forward": kl(p, q), "reverse": kl(q, p), "jsd": beta * kl(p, m) + (1 - beta) * kl(q, m)}
    return heat**2 * found[keys.get("divergence", "forward")]


def nll(logits: torch.Tensor, targets: torch.Tensor) -> float:
    return float(torch.nn.functional.cross_entropy(logits.detach(), targets, reduction="sum"))


def plainly(job: MadeJob, keys: dict[str, Any]) -> tuple[float, torch.Tensor, dict[str, float]]:
    """Loss, gradient and figures, one document a pass and of full logits."""
    assert isinstance(job.policy.teacher, Teacher)
    total, trained = torch.zeros((), dtype=torch.float64), 0
    figures = dict.fromkeys(("nll", "teacher_nll", "agreement"), 0.0)
    for sample in job.samples:
        (batch,) = micro_batches([sample], [0], layout=job.layout, max_tokens=1000, step=0)
        at = torch.as_tensor(sample.targets) != NO_TARGET
        targets = torch.as_tensor(sample.targets)[at]
        student, teacher = (
            policy.core(**policy._inputs(batch, torch.device("cpu"))).logits[0][at][:, :VOCAB]
            for policy in (job.policy, job.policy.teacher.policy)
        )
        total = total + by_definition(keys, teacher.detach(), student).sum()
        trained += len(targets)
        figures["nll"] += nll(student, targets)
        figures["teacher_nll"] += nll(teacher, targets)
        figures["agreement"] += int((student.argmax(-1) == teacher.argmax(-1)).sum())
    job.policy.zero_grad()
    (total / trained).backward()  # type: ignore[no-untyped-call]
    gradient = gradient_of(job).clone()
    job.policy.zero_grad()
    return float(total.detach()) / trained, gradient, {name: value / trained for name, value in figures.items()}


@pytest.mark.parametrize("keys", OBJECTIVES, ids=named)
def test_it_is_its_equation(keys: dict[str, Any], tmp_path: Path) -> None:
    """Loss, gradient and figures of full logits, the divergence in float64."""
    job = taught_job(tmp_path, distill(**keys), "flat", 100_000, "lora_dropout=0.0")
    loss, wanted, figures = plainly(job, keys)
    got, done = step_of(job)
    assert done.figures["loss"] == pytest.approx(loss, rel=1e-5)
    assert apart(got, wanted) < 1e-5
    assert {name: done.figures[name] for name in figures} == pytest.approx(figures, rel=1e-5)
    name = {"forward": "forward_kl", "reverse": "reverse_kl"}.get(keys.get("divergence", "forward"), "jsd")
    assert done.figures[name] == pytest.approx(loss / keys.get("temperature", 1.0) ** 2, rel=1e-5)
    trained = job.samples.trained
    assert done.row_losses is not None
    of_rows = zip(job.steps.indices(0), done.row_losses, strict=True)
    assert sum(loss for _, loss in of_rows) == pytest.approx(loss * trained.sum(), rel=1e-5)


@pytest.mark.parametrize(("beta", "other"), [(0, "forward"), (1, "reverse")])
def test_the_ends_of_beta_are_the_other_divergences(beta: float, other: str, tmp_path: Path) -> None:
    """And near an end the jsd, divided by what is left of beta, tends to them."""
    end, plain, near = (
        step_of(taught_job(tmp_path / name, distill(**keys)))
        for name, keys in {
            "end": {"divergence": "jsd", "beta": float(beta)},
            "plain": {"divergence": other},
            "near": {"divergence": "jsd", "beta": abs(beta - 1e-3)},
        }.items()
    )
    assert torch.equal(end[0], plain[0])
    assert end[1].figures == plain[1].figures
    assert near[1].figures["loss"] / 1e-3 == pytest.approx(plain[1].figures["loss"], rel=2e-2)


def test_all_tokens_as_the_likeliest_are_the_whole(tmp_path: Path) -> None:
    for divergence in ("forward", "reverse", "jsd"):
        found = [
            step_of(taught_job(tmp_path / f"{divergence}{k}", distill(divergence=divergence, top_k=k)))
            for k in (None, VOCAB, VOCAB - 1, 2 * VOCAB)
        ]
        for gradient, done in found[1:]:
            assert apart(gradient, found[0][0]) < 1e-5
            assert done.figures == pytest.approx(found[0][1].figures, rel=1e-5)


@pytest.mark.parametrize("size", [1, 7, 100])
@pytest.mark.parametrize("keys", [{}, {"divergence": "jsd", "top_k": 3}], ids=named)
def test_the_chunks_of_the_heads_do_not_matter(
    keys: dict[str, Any], size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted, figures = step_of(taught_job(tmp_path / "a", distill(**keys)))
    monkeypatch.setattr(layouts, "HEAD_CHUNK_TOKENS", size)
    got, found = step_of(taught_job(tmp_path / "b", distill(**keys)))
    assert apart(got, wanted) < 2e-6
    assert found.figures == pytest.approx(figures.figures, rel=2e-6)


@pytest.mark.parametrize("keys", [{}, {"divergence": "reverse", "top_k": 3}], ids=named)
def test_a_head_that_is_trained_and_layers_that_run_twice(keys: dict[str, Any], tmp_path: Path) -> None:
    """Under full tuning the head's own gradient is that of full logits; activation checkpointing changes nothing."""
    plain, checked = (
        taught_job(tmp_path / name, distill(**keys), "flat", 100_000, "tuning=full", policy={"warm": False})
        for name in ("plain", "checked")
    )
    loss, wanted, _ = plainly(plain, keys)
    got, done = step_of(plain)
    assert done.figures["loss"] == pytest.approx(loss, rel=1e-5)
    assert apart(got, wanted) < 1e-5
    enable_activation_checkpointing(checked.policy.core)
    again, _ = step_of(checked)
    assert apart(again, got) < 1e-6


@pytest.mark.parametrize("name", ["lfm2", "gpt2"])
def test_a_teacher_that_does_not_run_flat_is_padded(name: str, tmp_path: Path) -> None:
    """Of the same numbers as one document at a time."""
    objective = distill()
    whole, alone = (
        taught_job(tmp_path / str(limit), objective, "flat", limit, teacher=make_teacher(objective, name, flat=False))
        for limit in (100_000, 1)
    )
    (got, found), (wanted, figures) = step_of(whole), step_of(alone)
    assert apart(got, wanted) < 2e-6
    assert found.figures == pytest.approx(figures.figures, rel=2e-6)


@pytest.mark.parametrize("layout", ["flat", "padded"])
def test_what_is_kept_is_what_is_asked_in_the_step(layout: str, tmp_path: Path) -> None:
    objective = distill(top_k=5, temperature=2.0)
    asked, kept = (taught_job(tmp_path / name, objective, layout, 100) for name in ("asked", "kept"))
    assert isinstance(kept.policy.teacher, Teacher)
    wanted, figures = step_of(asked)
    step = plan_step(kept, 0)
    for batch in step.batches:
        batch.taught = kept.policy.teacher.numbers(batch)
    kept.policy.teacher.close()
    kept.policy.teacher._opens = lambda: pytest.fail("the teacher was asked")
    kept.wrapped.train()
    done = optimizer_step(kept, step)
    assert torch.equal(gradient_of(kept), wanted)
    assert done.figures == figures.figures


def test_the_teacher_is_not_touched(tmp_path: Path) -> None:
    """By steps, evaluations, the policy's mode or what is saved of it; and evaluations change nothing of the training."""
    curves = []
    for name, held_out in (("with", (20, 9, 30)), ("without", ())):
        job = taught_job(tmp_path / name, distill(), held_out=held_out)
        assert isinstance(job.policy.teacher, Teacher)
        teacher = job.policy.teacher.policy
        before = {key: value.clone() for key, value in teacher.state_dict().items()}
        check, lines = LearningCheck(job.policy, job.waiting), list[dict[str, Any]]()
        job.record.recorder.evaluation = lines.append  # type: ignore[method-assign]
        job.wrapped.train()
        for _ in range(4):
            train_step(job, job.record, check)
            if held_out:
                evaluate(job, job.record)
        assert not any(module.training for module in teacher.modules())
        assert not any(parameter.requires_grad for parameter in teacher.parameters())
        assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())
        held = {id(parameter) for parameter in job.policy.parameters()}
        assert not any(id(parameter) in held for parameter in teacher.parameters())
        curves.append(torch.cat([p.detach().flatten() for p in job.policy.parameters()]))
        if held_out:
            assert {"eval_loss", "eval_forward_kl", "eval_nll", "eval_teacher_nll", "eval_agreement"} <= lines[0].keys()
            assert len({line["eval_loss"] for line in lines}) == 4
            assert len({line["eval_teacher_nll"] for line in lines}) == 1
    assert torch.equal(*curves)


def test_an_empty_micro_batch_has_all_figures_and_no_gradient(tmp_path: Path) -> None:
    samples = make_samples((9,))
    empty = micro_batches(samples, [0], layout="flat", max_tokens=64, step=0, processes=2, rank=1)[0]
    (whole,) = micro_batches(samples, [0], layout="flat", max_tokens=64, step=0)
    for objective in (distill(), distill(top_k=3), beside_sft(0.5)):
        policy = taught_job(tmp_path, objective).policy
        out, full = (objective.loss(policy, batch) for batch in (empty, whole))
        assert out.sums.keys() == full.sums.keys()
        assert {k: v.keys() for k, v in out.metrics.items()} == {k: v.keys() for k, v in full.metrics.items()}
        total = sum(out.sums.values(), torch.zeros(()))
        assert float(total.detach()) == 0
        gradients = torch.autograd.grad(total, [p for p in policy.parameters() if p.requires_grad])
        assert all(not gradient.any() for gradient in gradients)


def beside_sft(weight: float) -> Objective:
    from luthier.objectives.weighted import Weighted

    terms = ({"kind": "distill", "teacher": "made"}, {"kind": "sft", "weight": weight})
    return Weighted(Weighted.Config.model_validate({"kind": "weighted", "terms": terms}))


def test_beside_supervised_tuning(tmp_path: Path) -> None:
    """In one forward pass the gradient is the sum of both."""
    from luthier.objectives.sft import SFT

    both, alone, other = (
        taught_job(tmp_path / name, objective, teacher=make_teacher(distill()))
        for name, objective in {"both": beside_sft(0.3), "one": distill(), "two": SFT(SFT.Config())}.items()
    )
    (got, found), (one, first), (two, second) = step_of(both), step_of(alone), step_of(other)
    assert apart(got, one + 0.3 * two) < 1e-6
    assert found.figures["loss"] == pytest.approx(first.figures["loss"] + 0.3 * second.figures["loss"], rel=1e-6)
    assert found.figures["loss_distill"] == pytest.approx(first.figures["forward_kl"], rel=1e-6)


@pytest.mark.parametrize(
    ("objective", "words"),
    [
        ("distill", "teacher"),
        ("{kind: distill, teacher: t, divergence: forward, beta: 0.3}", "beta is of the divergence jsd"),
        ("{kind: distill, teacher: t, divergence: backward}", "reverse"),
        ("{kind: distill, teacher: t, temperature: 0}", "temperature"),
        ("{kind: distill, teacher: t, top_k: 0}", "top_k"),
        (
            "{kind: distill, teacher: t, teacher_quantization: nf5}",
            "teacher_quantization is one of fp4, int8, nf4, not nf5",
        ),
        ("{kind: distill, teacher: t, beta: 1.5, divergence: jsd}", "beta"),
    ],
)
def test_wrong_keys(objective: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        config.load(None, ["model=m", "data=d", f"objective={objective}"])


def test_a_certain_teacher_and_a_certain_student_stay_finite() -> None:
    """Log-softmaxes of float32, without a clamp: probabilities that are 0 there count as such."""
    from luthier.policy.divergence import divergence, parted

    logits = torch.tensor([[0.0, 200.0, -300.0, 1.0], [80.0, -90.0, 0.0, 0.0]], requires_grad=True)
    for keys in ({"divergence": "forward"}, {"divergence": "reverse"}, {"divergence": "jsd", "beta": 0.3}):
        how = distill(**keys).teaching
        assert how is not None
        for teacher in (logits.detach().flip(-1).log_softmax(-1), logits.detach().log_softmax(-1)):
            found = divergence(teacher, logits.log_softmax(-1), how)
            (gradient,) = torch.autograd.grad(found.sum(), logits)
            assert bool(found.isfinite().all())
            assert bool(gradient.isfinite().all())
        assert found.tolist() == pytest.approx([0.0, 0.0], abs=1e-6)
    logs = parted(logits, torch.tensor([[1], [0]]))
    (gradient,) = torch.autograd.grad(logs.sum(), logits)
    assert logs[:, 1].tolist() == pytest.approx(
        [math.log(math.exp(0) + math.exp(1)) - 200, -80 + math.log(2)], rel=1e-5
    )
    assert bool(gradient.isfinite().all())


def test_the_samples_have_what_is_checked() -> None:
    assert len(LENGTHS) == 8
