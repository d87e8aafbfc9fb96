"""`objective: weighted` is the weighted sum of its terms, to rounding, in one forward pass; and the z-loss is its definition."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from luthier import component, config
from luthier.cli import main
from luthier.data.steps.layout import micro_batches
from luthier.errors import UserError
from luthier.objectives.sft import SFT
from luthier.objectives.weighted import Weighted
from luthier.objectives.z_loss import ZLoss
from luthier.runs.recorder import read_lines
from luthier.runs.run_folder import METRICS
from luthier.training.before_step import survey
from luthier.training.job import Job
from luthier.training.learning_check import LearningCheck
from luthier.training.loop import train_step
from luthier.training.objective_figures import check_first_step
from luthier.training.step import optimizer_step, plan_step
from luthier.types import NO_TARGET, Pieces, Text
from tests.helpers.jobs import make_config, make_job, make_policy, make_samples
from tests.helpers.pairs import pair_job
from tests.helpers.tiny_models import tiny_llama

LENGTHS = (3, 70, 17, 40, 5, 61, 33, 8)
FACTORS = {"sft": 0.7, "z_loss": 0.01}
TERMS = "objective={kind: weighted, terms: [{kind: sft, weight: 0.7}, {kind: z_loss, weight: 0.01}]}"


def weighted(**factors: float) -> Weighted:
    terms = tuple({"kind": kind, "weight": factor} for kind, factor in factors.items())
    return Weighted(Weighted.Config.model_validate({"kind": "weighted", "terms": terms}))


def job_of(folder: Path, objective: Any, max_tokens: int = 100_000, layout: str = "flat", *more: str) -> Job:
    given = make_config(folder, "lora_dropout=0.1", "global_batch_size=8", "max_steps=3", "learning_rate=1e-3", *more)
    job = make_job(
        given, make_samples(LENGTHS), make_policy(given, layout=layout), layout=layout, max_tokens=max_tokens
    )
    job.objective = objective
    job.wrapped.train()
    return job


def gradient(job: Job) -> torch.Tensor:
    step = plan_step(job, 0)
    survey(job, step)
    optimizer_step(job, step)
    return gradient_of(job)


def gradient_of(job: Job) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in job.policy.parameters() if p.grad is not None])


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm())


def test_the_gradient_is_the_weighted_sum_of_the_terms(tmp_path: Path) -> None:
    clip = "max_grad_norm=null"
    sft = gradient(job_of(tmp_path / "a", SFT(SFT.Config()), 100_000, "flat", clip))
    z_loss = gradient(job_of(tmp_path / "b", ZLoss(ZLoss.Config()), 100_000, "flat", clip))
    both = gradient(job_of(tmp_path / "c", weighted(**FACTORS), 100_000, "flat", clip))
    assert apart(both, 0.7 * sft + 0.01 * z_loss) < 1e-6
    assert apart(both, 0.7 * sft) > 1e-3, "the second term counts"


@pytest.mark.parametrize("layout", ["flat", "padded"])
@pytest.mark.parametrize("max_tokens", [1, 150, 100_000])
def test_the_layout_does_not_matter(layout: str, max_tokens: int, tmp_path: Path) -> None:
    want = gradient(job_of(tmp_path / "a", weighted(**FACTORS)))
    assert apart(gradient(job_of(tmp_path / "b", weighted(**FACTORS), max_tokens, layout)), want) < 1e-6


def test_the_z_loss_is_its_definition(tmp_path: Path) -> None:
    """From the whole logits of the model's own forward."""
    policy = make_policy(make_config(tmp_path), layout="padded").eval()
    samples = make_samples((9, 14))
    (batch,) = micro_batches(samples, [0, 1], layout="padded", max_tokens=1000, step=0)
    out = ZLoss(ZLoss.Config()).loss(policy, batch)
    with torch.no_grad():
        logits = [policy.core(input_ids=torch.from_numpy(s.input_ids)[None]).logits[0] for s in samples]
    squares = [
        logit[torch.from_numpy(s.targets != NO_TARGET)].logsumexp(-1).square().sum()
        for logit, s in zip(logits, samples, strict=True)
    ]
    assert float(out.sums["tokens"]) == pytest.approx(float(sum(squares)), rel=1e-6)
    assert out.documents is not None
    assert sorted(out.documents.tolist()) == pytest.approx(sorted(map(float, squares)), rel=1e-6)


def test_terms_share_one_forward_pass(tmp_path: Path) -> None:
    policy = make_policy(make_config(tmp_path))
    (batch,) = micro_batches(make_samples((9, 14)), [0, 1], layout="flat", max_tokens=1000, step=0)
    asked: list[tuple[str, ...]] = []

    def counted(batch: Any, want: tuple[str, ...] = ()) -> Any:
        asked.append(want)
        return policy(batch, want)

    out = weighted(**FACTORS).loss(counted, batch)
    assert asked == [("correct", "logsumexp")]
    alone = [SFT(SFT.Config()).loss(policy, batch).sums["tokens"], ZLoss(ZLoss.Config()).loss(policy, batch).sums["tokens"]]
    assert float(sum(out.sums.values())) == pytest.approx(float(0.7 * alone[0] + 0.01 * alone[1]), rel=1e-6)
    assert float(out.metrics["sft tokens"]["loss_sft"]) == pytest.approx(float(alone[0]), rel=1e-6)
    assert float(out.metrics["z_loss tokens"]["loss_z_loss"]) == pytest.approx(float(alone[1]), rel=1e-6)


def steps_of(job: Job, count: int = 2) -> tuple[list[dict[str, Any]], torch.Tensor]:
    check = LearningCheck(job.policy, job.waiting)
    for _ in range(count):
        train_step(job, job.record, check)
    job.record.recorder.sync()
    weights = torch.cat([p.detach().flatten() for p in job.policy.parameters() if p.requires_grad])
    return read_lines(Path(job.record.recorder.folder) / METRICS), weights


@pytest.mark.prove
def test_shares_of_the_gradient(tmp_path: Path) -> None:
    """They are those of the terms alone, add up to one, come with the lines on the screen only, and change no bit."""
    clip = "max_grad_norm=null"
    norms = {
        "sft": 0.7 * float(gradient(job_of(tmp_path / "a", SFT(SFT.Config()), 150, "flat", clip)).norm()),
        "z_loss": 0.01 * float(gradient(job_of(tmp_path / "b", ZLoss(ZLoss.Config()), 150, "flat", clip)).norm()),
    }
    shown = weighted(**FACTORS)
    shown.config = shown.config.model_copy(update={"gradient_shares": True})
    lines, weights = steps_of(job_of(tmp_path / "c", shown, 150))
    for kind, norm in norms.items():
        assert lines[0][f"grad_share_{kind}"] == pytest.approx(norm / sum(norms.values()), rel=1e-5)
    every_second, same = steps_of(job_of(tmp_path / "d", shown, 150, "flat", "logging_steps=2"))
    assert ["grad_share_sft" in line for line in every_second] == [False, True]
    assert torch.equal(weights, same)
    lines, same = steps_of(job_of(tmp_path / "e", weighted(**FACTORS), 150))
    assert not any("grad_share_sft" in line for line in lines)
    assert torch.equal(weights, same)


def test_losses_of_the_terms_are_recorded_a_token(tmp_path: Path) -> None:
    lines, _ = steps_of(job_of(tmp_path, weighted(**FACTORS)), 1)
    assert lines[0]["loss"] == pytest.approx(0.7 * lines[0]["loss_sft"] + 0.01 * lines[0]["loss_z_loss"], rel=1e-6)
    assert {"token_accuracy", "log_z"} <= set(lines[0])


@pytest.mark.parametrize(
    ("terms", "words"),
    [
        ("[]", ["terms", "empty"]),
        ("[{kind: sft}, {kind: sft}]", ["terms", "sft is there twice"]),
        ("[{kind: z_los}]", ["z_los", "z_loss"]),
        ("[{kind: weighted, terms: [{kind: sft}]}]", ["weighted sums themselves"]),
        ("[{kind: sft, beta: 1}]", ["objective.terms.0.beta: unknown key"]),
        ("[{kind: sft, weight: 0}]", ["weight", "at least 0.000001"]),
        ("[{weight: 1}]", ["kind"]),
    ],
)
def test_wrong_terms(terms: str, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        config.load(None, ["model=m", "data=d", f"objective={{kind: weighted, terms: {terms}}}"])
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_the_resolved_configuration_is_the_same_one(tmp_path: Path) -> None:
    loaded = config.load(None, ["model=m", "data=d", TERMS])
    (tmp_path / "again.yaml").write_text(loaded.resolved_yaml())
    assert config.load(tmp_path / "again.yaml") == loaded


def test_terms_may_be_divided_by_different_weights(tmp_path: Path) -> None:
    objective = weighted(**FACTORS)
    objective.terms["z_loss"].weights = lambda plan: {"tokens": float(len(plan.lengths))}
    by_row = steps_of(job_of(tmp_path / "a", objective), 1)[0][0]
    by_token = steps_of(job_of(tmp_path / "b", weighted(**FACTORS)), 1)[0][0]
    assert by_row["loss_sft"] == by_token["loss_sft"]
    assert by_row["loss_z_loss"] > 2 * by_token["loss_z_loss"]
    assert by_row["loss"] == pytest.approx(0.7 * by_row["loss_sft"] + 0.01 * by_row["loss_z_loss"], rel=1e-6)


def test_the_command_line_takes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is looked at early, before torch is there, is asked of the objective as it is configured."""
    monkeypatch.chdir(tmp_path)
    tiny_llama(Path("model"))
    rows = [{"instruction": f"Say {number}", "output": f"{number}!"} for number in range(8)]
    Path("train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    asked = ["model=./model", "data=train.jsonl", "output_dir=run", TERMS]
    assert main(["data", *asked]) == 0
    assert main(["train", *asked, "max_steps=2"]) == 0
    assert {"loss_sft", "loss_z_loss"} <= read_lines(Path("run") / METRICS)[-1].keys()


def sum_of(*terms: dict[str, Any]) -> Weighted:
    return Weighted(Weighted.Config.model_validate({"kind": "weighted", "terms": terms}))


@pytest.mark.parametrize("kinds", [("kto", "dpo"), ("dpo", "kto")])
def test_terms_that_make_other_samples_of_a_row_are_refused(kinds: tuple[str, str]) -> None:
    """KTO reads answers as good and bad ones, each alone, and DPO the halves of a pair."""
    with pytest.raises(UserError) as caught:
        sum_of(*({"kind": kind} for kind in kinds))
    assert f"{kinds[0]} beside {kinds[1]}: they do not make the same samples" in str(caught.value)
    pasted = config.load(None, ["model=m", "data=d", caught.value.fix]).objective
    assert isinstance(pasted, Weighted.Config)
    assert Weighted(pasted).terms.keys() == {kinds[0]}


@pytest.mark.parametrize(
    ("terms", "fixes"),
    [
        (
            [{"kind": "dpo", "beta": 0.3}, {"kind": "sft", "weight": 0.5}],
            ["objective={kind: dpo, beta: 0.3, sft_weight: 0.5}", "objective={kind: weighted, terms: [{kind: dpo"],
        ),
        ([{"kind": "sft"}, {"kind": "cpo", "weight": 2.0}], ["objective={kind: cpo, sft_weight: 1.5}", "terms: [{kind: sft"]),
        (
            [{"kind": "simpo"}, {"kind": "sft"}],
            ["objective={kind: weighted, terms: [{kind: simpo}, {kind: orpo}]}", "terms: [{kind: simpo"],
        ),
        ([{"kind": "orpo", "weight": 0.3}, {"kind": "sft"}], ["objective={kind: weighted, terms: [{kind: orpo}]}", "orpo"]),
        ([{"kind": "kto"}, {"kind": "sft"}], ["terms: [{kind: kto"]),
        ([{"kind": "z_loss"}, {"kind": "dpo"}], ["terms: [{kind: dpo"]),
    ],
    ids=str,
)
def test_terms_of_other_rows_are_met_with_a_sum_that_works(terms: list[dict[str, Any]], fixes: list[str]) -> None:
    """Who puts supervised tuning beside an objective of pairs means the better answers."""
    with pytest.raises(UserError) as caught:
        sum_of(*terms)
    assert "do not learn from the same rows" in str(caught.value)
    lines = [line.removesuffix(" where rows are pairs") for line in caught.value.fix.split("; or ")]
    for line, words in zip(lines, fixes, strict=True):
        assert words in line
        pasted = config.load(None, ["model=m", "data=d", line]).objective
        component.load("objectives", pasted.kind)(pasted)


def test_blocks_of_two_kinds_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SFT, "pieces", Pieces(8, joined=False))
    with pytest.raises(UserError, match="same samples"):
        sum_of({"kind": "pretrain", "block_size": 16}, {"kind": "sft"})


@pytest.mark.parametrize("other", ["z_loss", "router_balance", "sft"])
@pytest.mark.parametrize("turned", [False, True])
def test_a_sum_with_pretrain_learns_from_its_blocks(other: str, turned: bool) -> None:
    terms = [{"kind": "pretrain", "block_size": 16, "document_separator": "none"}, {"kind": other, "weight": 0.1}]
    objective = sum_of(*(reversed(terms) if turned else terms))
    assert objective.pieces == Pieces(16, joined=True)
    assert objective.takes == (Text,)
    (row,) = make_samples((9,))
    (made,) = objective.encode(Text("", "t.txt:1"), 0, cast("Any", SimpleNamespace(encode_text=lambda *_: row)))
    assert len(made.input_ids) == 8, "encoded by pretrain"


def test_a_figure_of_several_terms_is_that_of_the_first(tmp_path: Path) -> None:
    pairs = {"kind": "dpo", "reference": "none"}
    alone, _ = step_of_pairs(tmp_path / "a", pairs)
    both, _ = step_of_pairs(tmp_path / "b", {"kind": "weighted", "terms": (pairs, {"kind": "cpo"})})
    shared = {name for name in alone if name not in ("loss", "grad_norm")}
    assert {"accuracy", "margin", "tokens_chosen", "nll"} <= shared
    assert {name: both[name] for name in shared} == pytest.approx({name: alone[name] for name in shared}, rel=1e-6)


def test_parts_of_a_figure_within_a_term_are_added_up(tmp_path: Path) -> None:
    """As KTO's margin, whose parts are of good and of bad answers, under weights that its loss has no sum of."""
    kto = {"kind": "kto", "loss": "apo_zero_unpaired"}
    alone, _ = step_of_pairs(tmp_path / "a", kto)
    inside, _ = step_of_pairs(tmp_path / "b", {"kind": "weighted", "terms": (kto,)})
    assert alone["margin"] != 0
    assert {name: inside[name] for name in alone} == pytest.approx(alone, rel=1e-6)


def step_of_pairs(folder: Path, objective: dict[str, Any]) -> tuple[dict[str, float], Job]:
    job = pair_job(folder, objective)
    return optimizer_step(job, plan_step(job, 0)).figures, job


def test_a_sum_over_pairs_is_one_of_pairs() -> None:
    objective = sum_of({"kind": "dpo"}, {"kind": "simpo"})
    assert objective.roles == ("chosen", "rejected")
    assert objective.keeps_reference
    assert not sum_of({"kind": "dpo", "reference": "live"}, {"kind": "simpo"}).keeps_reference
    assert objective.first_step() == pytest.approx({"loss_dpo": math.log(2), "margin": 0.0})
    assert sum_of({"kind": "simpo"}, {"kind": "dpo"}).first_step() == pytest.approx({"loss_dpo": math.log(2)}), (
        "the margin is simpo's"
    )


def test_the_first_step_of_a_sum_is_known(tmp_path: Path) -> None:
    terms = ({"kind": "dpo", "weight": 0.5}, {"kind": "simpo"})
    job = pair_job(tmp_path, {"kind": "weighted", "terms": terms}, warm=False)
    check_first_step(job, plan_step(job, 0))
    job = pair_job(tmp_path, {"kind": "weighted", "terms": terms}, warm=False)
    with torch.no_grad():
        for parameter in job.policy.parameters():
            if parameter.requires_grad:
                parameter += 0.05
    with pytest.raises(UserError, match=r"loss_dpo is .* must be 0\.693147"):
        check_first_step(job, plan_step(job, 0))


def test_pairs_of_a_sum_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_llama(Path("model"))
    rows = [{"prompt": f"Say {number}", "chosen": f"{number}!", "rejected": "no"} for number in range(4)]
    Path("train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    objective = "objective={kind: weighted, terms: [{kind: dpo}, {kind: simpo}]}"
    assert main(["data", "model=./model", "data=train.jsonl", "output_dir=run", objective]) == 0
