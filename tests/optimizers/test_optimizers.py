"""`training.optim`: each optimizer learns, resumes to the bit, and is the published one; 16 bits lose nothing on average."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from luthier import component, config
from luthier.config.keys import explain
from luthier.config.other_tools import RENAMED_VALUES
from luthier.errors import UserError
from luthier.optimizers import _stochastic_adamw
from luthier.optimizers._adamw import AdamWConfig, adamw
from luthier.optimizers._stochastic_adamw import StochasticAdamW, round_stochastically
from luthier.runs.checkpoint import pack, unpack
from luthier.training import run
from luthier.training.loop import run_steps as run_loop
from luthier.training.parameters import make_optimizer
from luthier.training.state import restore, state_of
from tests.helpers.jobs import make_config, make_job, make_policy, make_samples
from tests.helpers.tiny_models import tiny_llama

OPTIMIZERS = component.listing("optimizers")
SAMPLES = make_samples([24, 17, 9, 30, 12, 21])
ROWS = [{"prompt": f"Say {number}.", "completion": f"{number}!"} for number in range(8)]


def job_of(folder: Path, optim: str, steps: int = 6, tuning: str = "full", *more: str) -> Any:
    """On a tiny model with all weights trained; in bfloat16 where the optimizer rounds by chance."""
    given = make_config(
        folder,
        f"tuning={tuning}",
        f"optim={optim}",
        f"learning_rate={'2e-4' if optim == 'lion' else '2e-3'}",
        f"max_steps={steps}",
        "global_batch_size=6",
        "warmup_steps=0",
        "save_steps=1",
        "weight_decay=0.01",
        *more,
    )
    dtype = torch.bfloat16 if optim == "adamw_bf16" else torch.float32
    policy = make_policy(given, dtype=dtype)
    for parameter in policy.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)
    job = make_job(given, SAMPLES, policy)
    job.optimizer = make_optimizer(given.training, policy, seed=given.seed)
    return job


def component_of(kind: str) -> Any:
    return component.make("optimizers", component.load("optimizers", kind).Config())


def through_a_file(tree: Any) -> Any:
    tensors: dict[str, torch.Tensor] = {}
    return unpack(json.loads(json.dumps(pack(tree, tensors))), {name: value.clone() for name, value in tensors.items()})


@pytest.mark.parametrize("optim", OPTIMIZERS)
def test_each_learns_and_resumes_to_the_bit(tmp_path: Path, optim: str) -> None:
    whole = job_of(tmp_path / "whole", optim)
    run_loop(whole, whole.record)
    lines = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["loss"] < lines[0]["loss"] - 0.05
    half = job_of(tmp_path / "half", optim)
    half.steps = replace(half.steps, max_steps=3)
    run_loop(half, half.record)
    rest = job_of(tmp_path / "rest", optim)
    restore(rest, through_a_file(state_of(half)), 3)
    torch.manual_seed(99)
    run_loop(rest, rest.record)
    for (name, one), (_, other) in zip(whole.policy.named_parameters(), rest.policy.named_parameters(), strict=True):
        assert torch.equal(one, other), name
    assert pack(state_of(whole)["optimizer"], {}) == pack(state_of(rest)["optimizer"], {})


READ = [
    (kind, key)
    for kind in OPTIMIZERS
    for key in component.load("optimizers", kind).Config.model_fields
    if key.startswith("adam_")
]


@pytest.mark.parametrize(("optim", "key"), READ)
def test_each_reads_the_keys_that_it_takes(tmp_path: Path, optim: str, key: str) -> None:
    found = []
    for number, given in enumerate(([], [f"{key}={1e-2 if key == 'adam_epsilon' else 0.5}"])):
        job = job_of(tmp_path / str(number), optim, 2, "full", *given)
        run_loop(job, job.record)
        found.append(torch.cat([parameter.detach().flatten() for parameter in job.policy.parameters()]))
    assert not torch.equal(*found)


def test_what_is_paged_is_paged_again_at_a_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a card bitsandbytes hands out managed memory for it; here it is seen what it was asked for."""
    half = job_of(tmp_path / "half", "paged_adamw", steps=1)
    run_loop(half, half.record)
    state = through_a_file(state_of(half))
    rest = job_of(tmp_path / "rest", "paged_adamw", steps=2)
    handed = list[torch.Tensor]()

    def counted(parameter: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        handed.append(torch.zeros_like(parameter, dtype=dtype))
        return handed[-1]

    monkeypatch.setattr(rest.optimizer, "get_state_buffer", counted)
    restore(rest, state, 1)
    parameters = [parameter for group in rest.optimizer.param_groups for parameter in group["params"]]
    held = [rest.optimizer.state[parameter][name] for parameter in parameters for name in ("state1", "state2")]
    assert {id(tensor) for tensor in held} == {id(tensor) for tensor in handed}
    assert sum(float(tensor.abs().sum()) > 0 for tensor in held) > len(held) / 2


def test_muon_moves_hidden_matrices_by_orthogonal_steps(tmp_path: Path) -> None:
    """Five steps of Newton and Schulz bring singular values near 1; a gradient's lie far apart."""
    job = job_of(tmp_path, "muon", steps=1)
    before = {name: parameter.detach().clone() for name, parameter in job.policy.named_parameters()}
    run_loop(job, job.record)
    muon, adamw = job.optimizer.parts
    assert {type(muon), type(adamw)} == {torch.optim.Muon, torch.optim.AdamW}
    for name, parameter in job.policy.named_parameters():
        inside = any(parameter is p for group in muon.param_groups for p in group["params"])
        assert inside == (parameter.ndim == 2 and "embed" not in name and "lm_head" not in name), name
        if inside:
            step = (parameter - before[name] * (1 - 2e-3 * 0.01)).detach().double()
            values = torch.linalg.svdvals(step)
            assert values[0] / values[len(values) // 2] < 2, name
            rms = step.square().mean().sqrt()  # as AdamW's: about the rate, at 0.2
            assert 0.5 < float(rms) / (0.2 * 2e-3) < 1.5, name


def test_the_paged_one_of_32_bits_is_adamw(tmp_path: Path) -> None:
    """Another program's arithmetic, so to rounding; in 8 bits it is further off."""
    found = {}
    for optim in ("adamw", "paged_adamw", "paged_adamw_8bit"):
        job = job_of(tmp_path / optim, optim)
        run_loop(job, job.record)
        found[optim] = torch.cat([parameter.detach().flatten() for parameter in job.policy.parameters()])
    moved = found["adamw"] - torch.cat([p.detach().flatten() for p in job_of(tmp_path, "adamw").policy.parameters()])
    far = {name: float((weights - found["adamw"]).norm() / moved.norm()) for name, weights in found.items()}
    assert far["paged_adamw"] < 1e-3 < far["paged_adamw_8bit"]


def test_a_run_says_where_nothing_is_paged() -> None:
    (note,) = component_of("paged_adamw").notes(torch.device("cpu"))
    assert note.startswith("paged_adamw: nothing is paged on cpu")
    assert not component_of("paged_adamw").notes(torch.device("cuda"))
    assert not component_of("adamw_8bit").notes(torch.device("cpu"))


def test_names_of_other_tools_are_answered_with_ours() -> None:
    for theirs, ours in RENAMED_VALUES["training.optim.kind"].items():
        with pytest.raises(UserError, match=f"{theirs}', another tool's name: write optim={ours}\n"):
            config.load(None, ["model=m", "data=d", f"optim={theirs}"])
        assert config.load(None, ["model=m", "data=d", f"optim={ours}"]).training.optim.kind == ours
        assert f"training.optim: {ours}" in explain(theirs)


def test_rounding_by_chance_is_right_on_average() -> None:
    values = torch.tensor([1.0, 1.001, -0.3333333, 1e-20, 3.3e38, 0.0]).repeat(20_000, 1)
    rounded = round_stochastically(values, "a key").float()
    assert torch.equal(rounded[:, 0], values[:, 0]), "what fits keeps its bits"
    assert torch.equal(rounded[:, 5], values[:, 5])
    for column in range(values.shape[1]):
        neighbours = rounded[:, column].unique()
        assert len(neighbours) <= 2
        gap = float(neighbours[-1] - neighbours[0])
        mean = rounded[:, column].double().mean()
        assert abs(float(mean - values[0, column].double())) <= 4 * gap / (2 * 20_000**0.5)
    assert torch.equal(rounded, round_stochastically(values, "a key").float())
    assert not torch.equal(rounded, round_stochastically(values, "another key").float())


def test_small_steps_are_not_lost_in_16_bits() -> None:
    """A hundred steps of 1e-4 from 1: to nearest, none is ever taken."""
    parameter = nn.Parameter(torch.ones(4096, dtype=torch.bfloat16))
    nearest = nn.Parameter(torch.ones(4096, dtype=torch.bfloat16))
    ours = StochasticAdamW([{"params": [parameter]}], 1e-4, (0.9, 0.999), 1e-8, seed=0)
    plain = torch.optim.AdamW([nearest], lr=1e-4, weight_decay=0.0)
    for _ in range(100):
        parameter.grad, nearest.grad = torch.ones_like(parameter), torch.ones_like(nearest)
        ours.step()
        plain.step()
    assert float(parameter.detach().double().mean()) == pytest.approx(0.99, abs=3e-4)
    assert torch.equal(nearest.detach(), torch.ones_like(nearest))


def test_it_is_adamw_but_for_the_rounding() -> None:
    """Its mean over many like parameters follows AdamW in float32, with decay and changing gradients."""
    parameter = nn.Parameter(torch.full((50_000,), 0.7, dtype=torch.bfloat16))
    exact = nn.Parameter(torch.full((1,), float(parameter[0].detach())))
    ours = StochasticAdamW([{"params": [parameter], "weight_decay": 0.1}], 1e-2, (0.9, 0.99), 1e-8, seed=0)
    plain = torch.optim.AdamW([exact], lr=1e-2, betas=(0.9, 0.99), weight_decay=0.1)
    for step in range(30):
        gradient = 1.0 if step % 3 else -0.5
        parameter.grad, exact.grad = torch.full_like(parameter, gradient), torch.full_like(exact, gradient)
        ours.step()
        plain.step()
    assert float(parameter.detach().double().mean()) == pytest.approx(float(exact.detach()), abs=1e-3)


def stepped(parameter: nn.Parameter, steps: int = 3) -> list[torch.Tensor]:
    """The parameter and both means after some steps of made-up gradients."""
    optimizer = StochasticAdamW(
        [{"params": [parameter], "weight_decay": 0.1}], lr=1e-2, betas=(0.9, 0.99), eps=1e-8, seed=3
    )
    for step in range(steps):
        torch.manual_seed(step)
        parameter.grad = torch.randn(parameter.shape).to(parameter.dtype)
        optimizer.step()
    return [parameter.detach(), optimizer.state[parameter]["mean"], optimizer.state[parameter]["square"]]


@pytest.mark.parametrize("slices", [64, 4096])
def test_slices_change_no_bit_and_bound_what_is_computed_at_once(slices: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an embedding of 600 M numbers the whole would be 25 GB for a moment."""
    values = torch.randn(130, 79).bfloat16()
    whole = stepped(nn.Parameter(values.clone()))
    drawn: list[int] = []
    bits = _stochastic_adamw.random_bits
    monkeypatch.setattr(_stochastic_adamw, "SLICE", slices)
    monkeypatch.setattr(
        _stochastic_adamw,
        "random_bits",
        lambda shape, *rest, **start: (drawn.append(shape.numel()), bits(shape, *rest, **start))[1],
    )
    for parameter in (nn.Parameter(values.clone()), nn.Parameter(values.T.contiguous().T)):
        for one, other in zip(whole, stepped(parameter), strict=True):
            assert torch.equal(one, other)
    assert max(drawn) == slices


def test_the_fused_adamw_is_taken_on_cuda_only() -> None:
    """There torch's own choice holds one more copy of all trained numbers at the step."""
    (group,) = [{"params": [nn.Parameter(torch.ones(3))]}]
    assert not adamw([group], 1e-3, AdamWConfig(kind="adamw")).defaults["fused"]
    on_cuda = SimpleNamespace(device=torch.device("cuda"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim, "AdamW", lambda groups, **keys: keys)
        assert adamw([{"params": [on_cuda]}], 1e-3, AdamWConfig(kind="adamw"))["fused"]


def test_trained_parameters_of_16_bits_need_such_rounding(tmp_path: Path) -> None:
    given = make_config(tmp_path, "tuning=full")
    policy = make_policy(given)
    policy.to(torch.bfloat16)
    with pytest.raises(UserError, match="is trained in bfloat16, in which adamw would lose most steps"):
        make_optimizer(given.training, policy)


def test_keys_that_an_optimizer_does_not_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"training\.optim: lion has no such key") as caught:
        make_config(tmp_path, "optim=lion", "adam_beta1=0.5")
    assert "adamw_8bit" in caught.value.expected
    for given in ("optim={kind: lion, adam_beta1: 0.5}", "training={optim: {adam_beta1: 0.5, kind: lion}}"):
        with pytest.raises(UserError, match=r"training\.optim\.adam_beta1: unknown key"):
            make_config(tmp_path, given)
    with pytest.raises(UserError, match=r"training\.optim\.adam_beta1: unknown key"):
        make_config(tmp_path, "adam_beta1=0.5", "optim=lion")
    with pytest.raises(
        UserError, match=r'training\.adam_beta1: unknown key; did you mean "training\.optim\.adam_beta1"'
    ):
        make_config(tmp_path, "training={adam_beta1: 0.5}")
    assert make_config(tmp_path, "adam_beta1=0.8").training.optim.adam_beta1 == 0.8
    assert make_config(tmp_path, "optim=paged_adamw", "adam_beta1=0.8").training.optim.adam_beta1 == 0.8


def test_muon_reads_the_keys_of_adamw_where_it_leaves_it_something(tmp_path: Path) -> None:
    matrices = make_config(tmp_path, "optim=muon", "adam_beta1=0.5")
    with pytest.raises(UserError, match="no such number for matrices, and nothing else is trained"):
        make_optimizer(matrices.training, make_policy(matrices))
    whole = make_config(tmp_path, "optim=muon", "adam_beta1=0.5", "tuning=full")
    assert any(
        group.get("betas") == (0.5, 0.999) for group in make_optimizer(whole.training, make_policy(whole)).param_groups
    )


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_a_run_in_bfloat16(tmp_path: Path, tuning: str) -> None:
    tiny_llama(tmp_path / "model")
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    keys = [f"model={tmp_path / 'model'}", f"data={tmp_path / 'train.jsonl'}", f"output_dir={tmp_path / 'run'}"]
    keys += [f"tuning={tuning}", "optim=adamw_bf16", "max_steps=3", "learning_rate=1e-3"]
    with pytest.raises(UserError, match="adamw_bf16 while float32 is computed in"):
        run.execute(config.load(None, [*keys, "dtype=float32"]), say=lambda text: None)
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
    run.execute(config.load(None, [*keys, "dtype=bfloat16"]), say=lambda text: None)
    (weights,) = (tmp_path / "run").glob("[am]*/*.safetensors")
    assert {tensor.dtype for tensor in load_file(weights).values()} == {torch.bfloat16}
