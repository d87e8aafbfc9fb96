"""Learning from judged answers: the loss is its equation, z is of the whole step, and how a step is cut does not change it."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from luthier import config
from luthier.data.dataset.mismatched import Mismatched, partners
from luthier.data.steps.kept_reference import KeptReference
from luthier.data.steps.layout import micro_batches
from luthier.data.steps.order import Steps
from luthier.errors import UserError
from luthier.training.before_step import survey
from luthier.training.job import SURVEYED
from luthier.training.learning_check import LearningCheck
from luthier.training.loop import evaluate, train_step
from luthier.training.objective_figures import check_first_step
from luthier.training.step import optimizer_step, plan_step
from luthier.types import NO_TARGET, Plan, Sample, shared_tokens
from tests.helpers.jobs import Listed, MadeJob, make_config, make_job, make_policy, step_of
from tests.helpers.pairs import made, make_pairs, named
from tests.helpers.tiny_models import VOCAB
from tests.objectives.test_pairs import alone, mean, moved, s

JUDGED = ((3, 9, 0), (100, 40, 1), (17, 1, 0), (4, 90, 0), (33, 7, 1), (8, 20, 0), (60, 12, 1))
"""Tokens of a request and of its answer, and the answer's role."""
OBJECTIVES = (
    {"kind": "kto"},
    {"kind": "kto", "beta": 0.5, "desirable_weight": 1.5, "undesirable_weight": 0.7},
    {"kind": "kto", "undesirable_weight": 0.0},
    {"kind": "kto", "loss": "apo_zero_unpaired"},
)


def make_answers(lengths: Any = JUDGED, seed: int = 0) -> list[Sample]:
    """Random ids; of each answer all tokens are trained."""
    rng, out = np.random.default_rng(seed), list[Sample]()
    for index, (asked, answered, role) in enumerate(lengths):
        ids = rng.integers(3, VOCAB, asked + answered)
        targets = np.full(len(ids), NO_TARGET)
        targets[asked - 1 : -1] = ids[asked:]
        out.append(Sample(ids, targets, f"judged.jsonl:{index + 1}", index, role=role))
    return out


def kto_job(
    folder: Path,
    keys: dict[str, Any],
    layout: str = "flat",
    limit: int = 100_000,
    *overrides: str,
    samples: list[Sample] | None = None,
    **kwargs: Any,
) -> MadeJob:
    """All in one step, with dropout, from a policy that goes on from an adapter."""
    settings = make_config(
        folder,
        "lora_dropout=0.1",
        "global_batch_size=7",
        "max_steps=5",
        "learning_rate=1e-3",
        "warmup_steps=0",
        *overrides,
    )
    policy = make_policy(settings, layout=layout)
    held_out = make_answers(JUDGED[:3], seed=5)
    job = make_job(settings, samples or make_answers(), policy, layout=layout, max_tokens=limit, held_out=held_out, **kwargs)
    job.objective = made(**keys)
    job.steps = Steps(job.samples.examples, settings.training.global_batch_size, settings.seed, 1.0, 5)
    if job.objective.mismatched:
        assert job.held_out is not None
        job.mismatched = {"train": Mismatched(job.samples, 42, None), "eval": Mismatched(job.held_out, 42, None)}
    policy.keep_reference()
    return job


@pytest.mark.parametrize("up", [0.0, 0.2], ids=["z is 0", "z is above 0"])
@pytest.mark.parametrize("keys", OBJECTIVES, ids=named)
def test_it_is_its_equation(keys: dict[str, Any], up: float, tmp_path: Path) -> None:
    job = kto_job(tmp_path, keys, "flat", 100_000, "lora_dropout=0.0")
    samples, others = list(job.samples), list(Mismatched(job.samples, 42, None))
    before = [[sum(logps) - up * len(logps) for logps in alone(job, some)] for some in (samples, others)]
    if up:  # a reference that finds everything less likely
        for name, some in (("train", job.samples), (SURVEYED.format("train"), Listed(others))):
            flat = torch.cat([torch.tensor(one) - up for one in alone(job, list(some))])
            job.reference[name] = KeptReference(some, flat.numpy())
    moved(job)
    after = [[sum(logps) for logps in alone(job, some)] for some in (samples, others)]
    ratios, apart = ([p - r for p, r in zip(*two, strict=True)] for two in zip(after, before, strict=True))
    z = max(0.0, mean(apart)) if keys.get("loss") != "apo_zero_unpaired" else 0.0
    assert (z > 0) == bool(up) or not job.objective.mismatched
    beta, weights = keys.get("beta", 0.1), (keys.get("desirable_weight", 1.0), keys.get("undesirable_weight", 1.0))
    good = [role == 0 for *_, role in JUDGED]
    wanted = [
        weights[0] * (1 - s(beta * (ratio - z))) if is_good else weights[1] * (1 - s(beta * (z - ratio)))
        for ratio, is_good in zip(ratios, good, strict=True)
    ]
    _, done = step_of(job)
    assert done.figures["loss"] == pytest.approx(mean(wanted), rel=1e-5)
    assert done.row_losses is not None
    assert dict(zip(job.steps.indices(0), done.row_losses, strict=True)) == pytest.approx(
        dict(enumerate(wanted)), rel=1e-4, abs=1e-7
    )
    assert done.figures["kl"] == pytest.approx(z, rel=1e-4, abs=1e-6)
    rewards = [mean([beta * r for r, g in zip(ratios, good, strict=True) if g == kind]) for kind in (True, False)]
    found = [done.figures[name] for name in ("reward_good", "reward_bad", "margin", "share_good", "tokens_bad")]
    tokens = mean([answered for _, answered, role in JUDGED if role])
    assert found == pytest.approx([*rewards, rewards[0] - rewards[1], 4 / 7, tokens], rel=1e-3, abs=1e-6)


def test_z_is_counted_in_the_mismatched_answers_alone_and_learned_from_nowhere(tmp_path: Path) -> None:
    job = kto_job(tmp_path, OBJECTIVES[0], "flat", 150)
    step, calls = plan_step(job, 0), list[tuple[bool, tuple[int, ...]]]()
    forward = job.policy.forward

    def watched(batch: Any, *rest: Any, **named: Any) -> Any:
        calls.append((torch.is_grad_enabled(), tuple(batch.lengths)))
        return forward(batch, *rest, **named)

    job.policy.forward = watched  # type: ignore[method-assign]
    survey(job, step)
    optimizer_step(job, step)
    counted = [lengths for graded, lengths in calls if not graded]
    learned = [lengths for graded, lengths in calls if graded]
    assert sorted(sum(counted, ())) == sorted(job.mismatched["train"].lengths.tolist())
    assert sorted(sum(learned, ())) == sorted(job.samples.lengths.tolist())
    assert step.plan.tokens == sum(answered for _, answered, _ in JUDGED)


@pytest.mark.parametrize("keys", OBJECTIVES, ids=named)
def test_the_first_step_is_known(keys: dict[str, Any], tmp_path: Path) -> None:
    job = kto_job(tmp_path, keys)
    check_first_step(job, plan_step(job, 0))  # dropout is off for it
    moved(job)
    with pytest.raises(UserError, match="before anything was learned, and must be"):
        check_first_step(job, plan_step(job, 0))


def test_the_first_loss_is_a_half(tmp_path: Path) -> None:
    job = kto_job(tmp_path, {"kind": "kto"}, "flat", 100_000, "lora_dropout=0.0")
    _, done = step_of(job)
    found = [done.figures[name] for name in ("loss", "kl", "margin", "accuracy")]
    assert found == pytest.approx([0.5, 0.0, 0.0, 0.5], abs=1e-6)


def test_a_step_of_one_answer_works_and_says_nothing_of_the_other_kind(tmp_path: Path) -> None:
    job = kto_job(tmp_path, {"kind": "kto"}, "flat", 100_000, "global_batch_size=1")
    _, done = step_of(job)
    (example,) = job.steps.indices(0)
    there, missing = ("bad", "good") if JUDGED[example][2] else ("good", "bad")
    assert f"reward_{there}" in done.figures
    assert not {f"reward_{missing}", f"tokens_{missing}", "margin"} & done.figures.keys()
    assert all(map(math.isfinite, done.figures.values()))


def test_held_out_answers_are_measured_and_move_nothing(tmp_path: Path) -> None:
    curves = []
    for held_out in (True, False):
        job = kto_job(tmp_path / str(held_out), {"kind": "kto"})
        check, lines = LearningCheck(job.policy, job.waiting), list[dict[str, Any]]()
        job.record.recorder.evaluation = lines.append  # type: ignore[method-assign]
        job.wrapped.train()
        for _ in range(3):
            train_step(job, job.record, check)
            if held_out:
                evaluate(job, job.record)
        curves.append(torch.cat([p.detach().flatten() for p in job.policy.parameters()]))
        if held_out:
            assert {"eval_loss", "eval_reward_good", "eval_reward_bad", "eval_margin", "eval_kl"} <= lines[0].keys()
    assert torch.equal(*curves)


def test_an_empty_micro_batch_has_all_figures_and_no_gradient(tmp_path: Path) -> None:
    policy = make_policy(make_config(tmp_path))
    policy.keep_reference()
    some = make_answers(((5, 4, 0),))
    batches = micro_batches(some, [0], layout="flat", max_tokens=64, step=0, processes=2, rank=1)
    (whole,) = micro_batches(some, [0], layout="flat", max_tokens=64, step=0)
    for keys in OBJECTIVES:
        objective = made(**keys)
        with torch.no_grad():
            assert objective.survey(policy, batches[0]) in ([], [0.0, 0.0])
        out, full = (objective.loss(policy, batch) for batch in (batches[0], whole))
        assert {k: v.keys() for k, v in out.metrics.items()} == {k: v.keys() for k, v in full.metrics.items()}
        (total,) = out.sums.values()
        assert float(total.detach()) == 0
        gradients = torch.autograd.grad(total, [p for p in policy.parameters() if p.requires_grad])
        assert all(not gradient.any() for gradient in gradients)


@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3)), min_size=1, max_size=40),
    st.integers(0, 5),
)
def test_a_partner_has_another_answer_and_where_there_is_one_another_prompt(
    rows: list[tuple[int, int]], seed: int
) -> None:
    prompts, answers = (np.array(values) for values in zip(*rows, strict=True))
    if len(set(answers.tolist())) == 1:
        with pytest.raises(UserError, match=r"all answers are the same|one answer alone"):
            partners(prompts, answers, seed)
        return
    found = partners(prompts, answers, seed)
    assert (answers[found] != answers).all()
    for prompt, answer, partner in zip(prompts, answers, found, strict=True):
        if ((prompts != prompt) & (answers != answer)).any():
            assert prompts[partner] != prompt
    assert np.array_equal(found, partners(prompts, answers, seed))


@given(st.integers(2, 60), st.integers(0, 5))
def test_where_all_differ_each_answer_is_taken_once(count: int, seed: int) -> None:
    numbers = np.arange(count)
    assert sorted(partners(numbers, numbers, seed)) == list(range(count))
    assert count < 4 or any(
        (partners(numbers, numbers, seed) != partners(numbers, numbers, other)).any() for other in (7, 8, 9)
    )


def test_a_mismatched_pair_is_its_parts_and_no_longer_than_fits() -> None:
    samples = Listed(make_answers())
    for limit in (None, 101):
        others = Mismatched(samples, 42, limit)
        for place, sample in enumerate(others):
            asked, _, role = JUDGED[place]
            own = samples[place]
            assert (sample.row, sample.example, sample.role) == (own.row, place, role)
            assert sample.input_ids[:asked].tolist() == own.input_ids[:asked].tolist()
            answers = [samples[at].input_ids[JUDGED[at][0] :].tolist() for at in range(len(samples)) if at != place]
            found = sample.input_ids[asked:].tolist()
            assert found in (answers if limit is None else [one[: limit - asked] for one in answers])
            assert (others.lengths[place], others.trained[place]) == (len(sample), sample.trained_tokens)
            trained = np.flatnonzero(sample.targets != NO_TARGET)
            assert trained.tolist() == list(range(asked - 1, len(sample) - 1))
            assert sample.targets[trained].tolist() == sample.input_ids[trained + 1].tolist()


@pytest.mark.parametrize(
    ("roles", "words"),
    [([0] * 5, "no negative feedback: 5 good answers, and no bad one"), ([1], "no positive feedback: 1 bad answer")],
)
def test_one_kind_alone_is_refused(roles: list[int], words: str) -> None:
    with pytest.raises(UserError, match=words):
        made(kind="kto").notes(plan_of(roles))


def plan_of(roles: list[int]) -> Plan:
    return Plan.of([replace(make_answers(((3, 4, 0),))[0], example=at, role=role) for at, role in enumerate(roles)])


@pytest.mark.parametrize(
    ("counts", "keys", "mended"),
    [
        ((10, 10), {}, ""),
        ((40, 30), {}, ""),
        ((30, 40), {}, "desirable_weight=1.56"),
        ((100, 10), {}, "undesirable_weight=8.57"),
        ((100, 10), {"undesirable_weight": 8.57}, ""),
        ((30, 40), {"desirable_weight": 1.56}, ""),
        ((10, 10), {"undesirable_weight": 0.0}, "undesirable_weight=0.857"),
    ],
)
def test_weights_that_are_not_advised_are_told_with_the_line_that_mends_it(
    counts: tuple[int, int], keys: dict[str, float], mended: str
) -> None:
    notes = made(kind="kto", **keys).notes(plan_of([0] * counts[0] + [1] * counts[1]))
    cost, *notes = notes
    assert cost.startswith(f"z: {7 * sum(counts):,} tokens an epoch")
    assert "share" not in cost
    assert [note.split("objective.")[1] for note in notes] == [mended] * bool(mended)


def test_a_pair_is_a_good_and_a_bad_answer(tmp_path: Path) -> None:
    """And of a conversation with several answers the last one is learned from, the one that was judged."""
    from luthier.data.dataset.prepare import prepare
    from tests.helpers.tiny_models import tiny_llama

    model = tiny_llama(tmp_path / "model")
    rows = [{"prompt": "a b", "chosen": "c", "rejected": "d e"}, {"prompt": "b c", "chosen": "e f", "rejected": "a"}]
    turns = [{"role": role, "content": "a b"} for role in ("user", "assistant", "user", "assistant")]
    for name, some in (
        ("pairs", rows),
        ("judged", [{"messages": turns, "label": good} for good in (True, False, True)]),
    ):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, some)) + "\n")
    from luthier.models.reading import load_tokenizer

    tokenizer = load_tokenizer(Path(str(model)), trust_remote_code=False)
    found = {}
    for name in ("pairs", "judged"):
        asked = config.load(None, [f"model={model}", f"data={tmp_path / name}.jsonl", "objective=kto"])
        found[name] = prepare(asked, tokenizer, context_length=None, objective=made(kind="kto"))
    assert found["pairs"].train.roles.tolist() == [0, 1, 0, 1]
    assert found["pairs"].train.plan().examples.tolist() == [0, 0, 1, 1]
    prompts = [int((one.targets != NO_TARGET).argmax()) for one in found["pairs"].train]
    assert found["pairs"].train.shared.tolist() == [0, prompts[1], 0, prompts[3]]
    assert found["judged"].train.roles.tolist() == [0, 1, 0]
    (first, *_) = found["judged"].train
    gaps = np.diff(np.flatnonzero(first.targets != NO_TARGET))
    assert set(gaps.tolist()) == {1}
    assert first.trained_tokens < len(first) / 2


def test_of_a_pair_that_is_too_long_each_answer_is_cut_by_itself(tmp_path: Path) -> None:
    """Nothing reads the two together: the short one stays whole."""
    from luthier.data.dataset.prepare import prepare
    from luthier.models.reading import load_tokenizer
    from tests.helpers.tiny_models import tiny_llama

    model = tiny_llama(tmp_path / "model")
    rows = [{"prompt": "a b", "chosen": "c", "rejected": "d e " * 30}, {"prompt": "b c", "chosen": "e f", "rejected": "a"}]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    keys = [f"model={model}", f"data={tmp_path / 'pairs.jsonl'}", "data.max_length=24", "data.on_long_row=truncate"]
    asked = config.load(None, [*keys, "objective=kto"])
    tokenizer = load_tokenizer(Path(str(model)), trust_remote_code=False)
    found = prepare(asked, tokenizer, context_length=None, objective=made(kind="kto")).train
    assert (found.roles.tolist(), found.plan().examples.tolist()) == ([0, 1, 0, 1], [0, 0, 1, 1])
    assert found.lengths[1] == 24 > found.lengths[0]
    assert found.shared[1] == int((found[1].targets != NO_TARGET).argmax()) > 0


@pytest.mark.parametrize("limit", [None, 101, 125])
def test_mismatched_answers_of_a_pair_share_its_prompt(limit: int | None) -> None:
    pairs = Listed(make_pairs())
    others = Mismatched(pairs, 42, limit)
    assert others.shared.tolist() == pairs.shared.tolist() == shared_tokens(list(others))
    assert others.shared.any()
    (cost,) = made(kind="kto").notes(pairs.plan())
    assert cost.endswith(f"; {int((pairs.lengths - pairs.shared).sum()):,} where answers share their prompt")


@pytest.mark.parametrize(
    ("objective", "words"),
    [
        ("{kind: kto, beta: 0}", "beta"),
        ("{kind: kto, desirable_weight: -1}", "desirable_weight"),
        ("{kind: kto, reference: none}", "kept"),
    ],
)
def test_wrong_keys(objective: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        config.load(None, ["model=m", "data=d", f"objective={objective}"])
