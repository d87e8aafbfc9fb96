"""`router_balance`: transformers' loss of each document, or of the step, whatever the layout and the number of processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers.models.qwen3_moe.modeling_qwen3_moe import load_balancing_loss_func

from luthier import config
from luthier.data.steps.layout import micro_batches
from luthier.engines.ddp import DDP
from luthier.engines.single import Single
from luthier.errors import UserError
from luthier.models.flat import stock_attention
from luthier.objectives.router_balance import RouterBalance
from luthier.objectives.weighted import Weighted
from luthier.policy import routers
from luthier.policy.policy import enable_activation_checkpointing
from luthier.policy.routers import check_routers, routers_of
from luthier.runs.recorder import read_lines
from luthier.runs.run_folder import METRICS
from luthier.training import run
from luthier.training.before_step import survey
from luthier.training.job import Job
from luthier.training.learning_check import LearningCheck
from luthier.training.loop import train_step
from luthier.training.step import Step
from luthier.types import Plan, Sample
from tests.helpers.jobs import make_config, make_job, make_policy, make_samples
from tests.helpers.processes import torchrun
from tests.helpers.tiny_models import save_twin, tiny_llama, twin
from tests.objectives.test_weighted import apart, gradient

LENGTHS = (3, 70, 17, 40, 5, 61, 33, 8)
CHOSEN = 2
"""experts of a token, in the twins"""
OVER = ("document", "step")
FAMILIES = {"qwen3_moe": ("flat", "padded"), "gpt_oss": ("padded",)}
"""Mixtures, and the layouts that the proof allows them."""


def balance(over: str) -> RouterBalance:
    return RouterBalance(RouterBalance.Config(over=over))


def together(over: str, weight: float = 0.5) -> Weighted:
    terms = ({"kind": "sft"}, {"kind": "router_balance", "over": over, "weight": weight})
    return Weighted(Weighted.Config.model_validate({"kind": "weighted", "gradient_shares": True, "terms": terms}))


def job_of(
    folder: Path,
    objective: Any,
    max_tokens: int = 100_000,
    layout: str = "flat",
    family: str = "qwen3_moe",
    *more: str,
    engine: Single | DDP | None = None,
) -> Job:
    """Its routers say more than those of fresh weights do."""
    keys = ("global_batch_size=8", "max_steps=30", "max_grad_norm=null", "lr_scheduler_type=constant", *more)
    dropout = () if "tuning=full" in keys else ("lora_dropout=0.1",)
    given = make_config(folder, *dropout, "learning_rate=1e-2", "warmup_steps=0", *keys)
    policy = make_policy(given, family, layout=layout)
    with torch.no_grad():
        for router, _ in routers_of(policy.core):
            router.weight *= 20
    job = make_job(given, make_samples(LENGTHS), policy, layout=layout, max_tokens=max_tokens, engine=engine)
    job.objective = objective
    job.wrapped.train()
    return job


def said_alone(job: Job, samples: list[Sample]) -> list[list[torch.Tensor]]:
    """document -> layer -> logits of the routers [tokens, experts], each document by itself, from transformers."""
    core = job.policy.core.eval()
    with torch.no_grad(), stock_attention(core):
        return [
            list(core(input_ids=torch.from_numpy(s.input_ids)[None], output_router_logits=True).router_logits)
            for s in samples
        ]


def by_transformers(logits: list[torch.Tensor]) -> float:
    """The mean over layers of its loss of one layer."""
    found = [float(load_balancing_loss_func((layer,), layer.shape[-1], CHOSEN)) for layer in logits]
    return sum(found) / len(found)


@pytest.mark.parametrize(("family", "layout"), [(name, layout) for name, them in FAMILIES.items() for layout in them])
def test_it_is_the_loss_of_transformers(family: str, layout: str, tmp_path: Path) -> None:
    """Of each document by itself, times its trained tokens; or of the whole step, times those of the step."""
    job = job_of(tmp_path, balance("document"), 100, layout, family)
    samples = [job.samples[index] for index in range(4)]
    alone = said_alone(job, samples)
    batches = micro_batches(samples, range(4), layout=layout, max_tokens=100, step=0)
    assert len(batches) > 1
    outs = [job.objective.loss(job.policy, batch) for batch in batches]
    found = {
        row: value
        for batch, out in zip(batches, outs, strict=True)
        for row, value in zip(batch.row_ids, out.documents, strict=True)
    }
    for sample, logits in zip(samples, alone, strict=True):
        assert float(found[sample.row]) == pytest.approx(sample.trained_tokens * by_transformers(logits), rel=1e-5)
    assert sum(float(out.sums["tokens"].detach()) for out in outs) == pytest.approx(sum(map(float, found.values())), rel=1e-6)

    job.objective = balance("step")
    survey(job, Step(0, [], Plan.of(samples), {}, batches))
    whole = [torch.cat(layer) for layer in zip(*alone, strict=True)]
    got = sum(float(job.objective.loss(job.policy, batch).sums["tokens"].detach()) for batch in batches)
    assert got == pytest.approx(sum(s.trained_tokens for s in samples) * by_transformers(whole), rel=1e-5)
    assert got != pytest.approx(sum(map(float, found.values())), rel=1e-2), "the two forms differ"


@pytest.mark.prove
@pytest.mark.parametrize("over", OVER)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_layout_does_not_matter(family: str, over: str, tmp_path: Path) -> None:
    """With dropout on, and with an adapter whose gradient from this term is not small."""
    layouts = FAMILIES[family]
    want = gradient(job_of(tmp_path / "a", together(over), layout=layouts[0], family=family))
    without = gradient(job_of(tmp_path / "b", together(over, 1e-6), layout=layouts[0], family=family))
    assert apart(without, want) > 1e-2
    for layout in layouts:
        for max_tokens in (1, 150):
            job = job_of(tmp_path / f"{layout}{max_tokens}", together(over), max_tokens, layout, family)
            assert apart(gradient(job), want) < 2e-6, (layout, max_tokens)


@pytest.mark.parametrize("over", OVER)
def test_checkpointed_activations_give_the_same(over: str, tmp_path: Path) -> None:
    kept, again = (job_of(tmp_path / name, together(over), 150) for name in "ab")
    enable_activation_checkpointing(again.policy.core)
    assert apart(gradient(again), gradient(kept)) < 1e-6


def test_routers_that_do_not_say_whom_they_chose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The K largest logits are those; with activation checkpointing too, whose second pass nobody listens to."""
    want = gradient(job_of(tmp_path / "a", together("document"), 150))
    whole = routers._said

    def logits_alone(router: Any, output: Any, place: int) -> routers.Said:
        return whole(router, (output[place],), 0)

    monkeypatch.setattr(routers, "_said", logits_alone)
    for name in ("kept", "again"):
        job = job_of(tmp_path / name, together("document"), 150)
        if name == "again":
            enable_activation_checkpointing(job.policy.core)
        assert apart(gradient(job), want) < 1e-6, name


def test_routers_that_say_something_else_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    core = job_of(tmp_path, together("document")).policy.core
    check_routers(core)
    whole = routers._said
    monkeypatch.setattr(routers, "_said", lambda *given: (torch.cat([whole(*given)[0]] * 2), whole(*given)[1]))
    with pytest.raises(
        UserError, match=r"logits and chosen experts of the shapes \[\[8, \d+\], \[4, 2\]\] for 4 tokens"
    ):
        check_routers(core)


def test_the_step_is_surveyed_once(tmp_path: Path) -> None:
    job = job_of(tmp_path, together("step"), 150)
    calls = []
    begin = job.objective.begin_step
    job.objective.begin_step = lambda *given: (calls.append(1), begin(*given))[1]  # type: ignore[method-assign]
    for _ in range(2):
        train_step(job, job.record, LearningCheck(job.policy, job.waiting))
    assert len(calls) == 2


@pytest.mark.prove
@pytest.mark.processes
def test_two_processes(tmp_path: Path) -> None:
    """Both forms on gloo, with an empty micro-batch; and the shares of the gradient."""
    done = torchrun("tests.helpers.router_worker", str(tmp_path / "ddp"), str(tmp_path / "found.safetensors"))
    assert done.returncode == 0, done.stderr[-3000:]
    found = load_file(tmp_path / "found.safetensors")
    assert int(found["empty_micro_batches"]) > 0
    for over in OVER:
        assert apart(found[over], gradient(job_of(tmp_path / over, together(over)))) < 2e-6
        one, other = lines_of(tmp_path / "ddp" / f"{over}-step"), lines_of_a_step(tmp_path / f"{over}-step", over)
        for name in ("loss", "loss_router_balance", "grad_share_router_balance"):
            assert one[0][name] == pytest.approx(other[0][name], rel=1e-5), name


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return read_lines(folder / METRICS)


def lines_of_a_step(folder: Path, over: str) -> list[dict[str, Any]]:
    job = job_of(folder, together(over))
    train_step(job, job.record, LearningCheck(job.policy, job.waiting))
    job.record.recorder.sync()
    return lines_of(folder)


@pytest.mark.prove
@pytest.mark.parametrize(("tuning", "rate"), [("full", 1e-3), ("lora", 1e-2)])
def test_experts_come_to_be_used_alike(tuning: str, rate: float, tmp_path: Path) -> None:
    """The loss comes near to what even shares give, with LoRA too, whose routers stay as they are."""
    keys = (f"tuning={tuning}", f"learning_rate={rate}")
    job = job_of(tmp_path, together("step", 1.0), 100_000, "flat", "qwen3_moe", *keys)
    routers = [router.weight.detach().clone() for router, _ in routers_of(job.policy.core)]
    check = LearningCheck(job.policy, job.waiting)
    for _ in range(20):
        train_step(job, job.record, check)
    job.record.recorder.sync()
    first, *_, last = (line["loss_router_balance"] - CHOSEN for line in lines_of(tmp_path))
    assert first > 0.05
    assert last < first / 3
    same = [torch.equal(old, r.weight) for old, (r, _) in zip(routers, routers_of(job.policy.core), strict=True)]
    assert all(same) if tuning == "lora" else not any(same)


def test_a_model_without_routers_is_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no router"):
        routers_of(twin("llama"))
    tiny_llama(tmp_path / "model")
    (tmp_path / "rows.jsonl").write_text('{"instruction": "Say 1.", "output": "1!"}\n' * 8)
    terms = "objective={kind: weighted, terms: [{kind: sft}, {kind: router_balance, weight: 0.01}]}"
    keys = [f"model={tmp_path / 'model'}", f"data={tmp_path / 'rows.jsonl'}", f"output_dir={tmp_path / 'run'}", terms]
    with pytest.raises(UserError, match="leave router_balance out"):
        run.execute(config.load(None, keys), say=lambda text: None)
    assert not (tmp_path / "run" / METRICS).exists()


@pytest.mark.parametrize("tuning", [("tuning=freeze",), ("tuning=lora", "modules_to_save=[embed_tokens]")])
def test_routers_are_checked_where_weights_are_of_two_types(tuning: tuple[str, ...], tmp_path: Path) -> None:
    """Trained in float32, beside frozen ones in bfloat16, as a run is built."""
    save_twin(tmp_path / "model", "qwen3_moe")
    (tmp_path / "rows.jsonl").write_text('{"prompt": "Say 1.", "completion": "1!"}\n' * 4)
    keys = [f"model={tmp_path}/model", f"data={tmp_path}/rows.jsonl", "model.dtype=bfloat16", "max_steps=1"]
    keys += ["objective={kind: weighted, terms: [{kind: sft}, {kind: router_balance, weight: 0.1}]}"]
    run.execute(config.load(None, [*keys, *tuning, f"output_dir={tmp_path}/run"]), say=lambda text: None)
    (line,) = [line for line in lines_of(tmp_path / "run") if "loss_router_balance" in line]
    assert line["loss_router_balance"] > 0
