"""The experts of a mixture: sorted and grouped against one by one; an update that a weight of 16 bits would swallow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.layer import ParamWrapper
from torch import nn

from luthier import config
from luthier.data.steps.layout import micro_batches
from luthier.engines import make_engine
from luthier.kernels import experts
from luthier.kernels.experts import UPDATES, Update, experts_forward, experts_one_by_one, grouped, use_experts
from luthier.kernels.experts_lora import compute_apart
from luthier.training import build
from tests.helpers.tiny_models import save_twin, twin

KINDS = {
    "gate": {"has_gate": True},
    "no gate": {"has_gate": False},
    "transposed, with biases": {"has_gate": True, "is_transposed": True, "has_bias": True},
    "a norm behind": {"has_gate": True, "has_post_expert_norm": True},
}
E, IN, INNER = 4, 16, 24


class Experts(nn.Module):
    """What `experts_forward` needs of a module of transformers, with random weights."""

    def __init__(
        self,
        has_gate: bool = True,
        is_transposed: bool = False,
        has_bias: bool = False,
        has_post_expert_norm: bool = False,
        dtype: torch.dtype = torch.float32,
        width: int = IN,
    ) -> None:
        super().__init__()
        self.num_experts, self.has_gate, self.is_transposed, self.has_bias = E, has_gate, is_transposed, has_bias
        self.has_post_expert_norm, self.act_fn = has_post_expert_norm, nn.SiLU()
        first = "gate_up_proj" if has_gate else "up_proj"
        for name, size in ((first, (width, (1 + has_gate) * INNER)), ("down_proj", (INNER, width))):
            shape = (E, *(size if is_transposed else size[::-1]))
            self.register_parameter(name, nn.Parameter((0.3 * torch.randn(shape)).to(dtype)))
            if has_bias:
                self.register_parameter(f"{name}_bias", nn.Parameter(torch.randn(E, size[1]).to(dtype)))
        if has_post_expert_norm:
            self.post_expert_norm = nn.RMSNorm(width)

    def _apply_gate(self, both: torch.Tensor) -> torch.Tensor:
        gate, up = both.chunk(2, -1)
        return self.act_fn(gate) * up

    def update(self, rank: int) -> list[Update]:
        """Random, on all weights; with its factors as leaves."""
        updates = {}
        for name in ("gate_up_proj" if self.has_gate else "up_proj", "down_proj"):
            shape = getattr(self, name).shape
            inputs, outputs = shape[1:] if self.is_transposed else shape[:0:-1]
            a, b = torch.randn(E, inputs, rank) / inputs**0.5, torch.randn(E, rank, outputs) / rank
            updates[name] = [Update(a.requires_grad_(), b.requires_grad_(), 0.5)]
        setattr(self, UPDATES, updates)
        return [update for each in updates.values() for update in each]


def routed(tokens: int, width: int = IN) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hidden states, two of the experts for each token (never the last one), and their shares."""
    chosen = torch.rand(tokens, E - 1).argsort(1)[:, :2]
    return torch.randn(tokens, width, requires_grad=True), chosen, torch.rand(tokens, 2, requires_grad=True)


@pytest.mark.parametrize("rank", [0, 1, 3, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_grouped_is_one_by_one(kind: str, rank: int) -> None:
    """Outputs and every gradient, also of an expert that no token chose."""
    torch.manual_seed(0)
    module = Experts(**KINDS[kind])
    factors = [factor for update in module.update(rank) for factor in (update.a, update.b)] if rank else []
    x, chosen, shares = routed(50)
    leaves = [x, shares, *module.parameters(), *factors]
    found = []
    for compute in (experts_forward, experts_one_by_one):
        out = compute(module, x, chosen, shares)
        found.append([out, *torch.autograd.grad((out * out.detach().cos()).sum(), leaves)])
    for fast, plain in zip(*found, strict=True):
        assert float((fast - plain).norm()) <= 1e-5 * float(plain.norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_that_the_kernel_does_not_take(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes that are no multiple of 16 bytes, and older cards, go expert by expert: the same numbers."""
    torch.manual_seed(0)
    x, ends = torch.randn(9, 16, dtype=dtype), torch.tensor([4, 4, 9], dtype=torch.int32)
    weights = torch.randn(3, 16, 8, dtype=dtype)
    whole = grouped(x, weights, ends)
    by_hand = torch.cat([x[:4] @ weights[0], x[4:] @ weights[2]])
    torch.testing.assert_close(whole, by_hand)
    torch.testing.assert_close(grouped(x, weights[..., :7], ends), by_hand[:, :7])
    monkeypatch.setattr(experts, "_kernel_serves", lambda *_: False)
    torch.testing.assert_close(grouped(x, weights, ends), by_hand)


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss"])
def test_it_is_what_transformers_computes(family: str) -> None:
    ids = torch.arange(3, 40)[None]
    model = twin(family)
    with torch.no_grad():
        stock = model(ids).logits
        use_experts(model)
        assert model.config._experts_implementation == experts.NAME
        assert torch.equal(model(ids).logits, stock)


@pytest.mark.parametrize("held", [torch.float32, torch.bfloat16])
def test_under_autocast_all_products_are_in_its_type(held: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of weights that are trained, in float32, as of frozen ones; and gradients come back in the weights' type."""
    module, seen = Experts(has_bias=True, dtype=held), set[torch.dtype]()
    module.update(4)
    whole = experts.grouped

    def noted(x: torch.Tensor, weights: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
        seen.update({x.dtype, weights.dtype})
        return whole(x, weights, ends)

    monkeypatch.setattr(experts, "grouped", noted)
    x, chosen, shares = routed(20)
    with torch.autocast("cpu", torch.bfloat16):
        out = experts_forward(module, x, chosen, shares)
    assert seen == {torch.bfloat16}
    assert out.dtype == x.dtype
    out.sum().backward()
    assert {weight.grad.dtype for weight in module.parameters() if weight.grad is not None} == {held}
    exact = experts_one_by_one(module, x, chosen, shares)
    assert float((out - exact).detach().norm() / exact.detach().norm()) < 0.02


class _Mixture(nn.Module):
    """One module of experts as peft sees it in a model; each weight is a single linear map, by an identity around it."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = twin("qwen3_moe", moe_intermediate_size=64).model.layers[0].mlp.experts
        self.config = self.experts.config

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        chosen = torch.zeros(len(x), 1, dtype=torch.int64)
        found: torch.Tensor = self.experts(x, chosen, torch.ones(len(x), 1))
        return found

    def set_experts_implementation(self, name: str) -> None:
        self.config._experts_implementation = name


@pytest.mark.parametrize("size", [2e-4, 1e-3])
def test_a_small_update_of_16_bit_weights_is_not_lost(size: float) -> None:
    """B after one and after five steps at 2e-4, on weights of 0.02 in bfloat16: what moves is s A B.

    The map from inputs to outputs is fitted over many inputs with the adapter on and off; rounding of outputs averages out,
    a weight that did not move stays where it was.
    """
    torch.manual_seed(0)
    mixture = _Mixture()
    inner = mixture.experts
    inner._apply_gate = lambda both: both[:, :64]  # linear, so that the update can be read off
    inner.gate_up_proj.data = 0.02 * torch.randn_like(inner.gate_up_proj)
    inner.down_proj.data = torch.eye(64).expand_as(inner.down_proj).contiguous()
    inner.to(torch.bfloat16)
    adapted = get_peft_model(mixture, LoraConfig(r=16, lora_alpha=32, target_parameters=["experts.gate_up_proj"]))
    (wrapper,) = [module for module in adapted.modules() if isinstance(module, ParamWrapper)]
    for parameter in (wrapper.lora_A.default.weight, wrapper.lora_B.default.weight):
        parameter.data = parameter.data.float()
    wrapper.lora_B.default.weight.data.uniform_(-size, size)
    compute_apart(adapted)
    x = torch.randn(20_000, 64)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        on = adapted(x)
        with adapted.disable_adapter():
            off = adapted(x)
        moved = torch.linalg.lstsq(x.bfloat16().float(), on - off).solution
    want = exact_update(wrapper)[0].T[:, :64]
    assert float((moved - want).norm() / want.norm()) < 0.1


def exact_update(wrapper: Any) -> torch.Tensor:
    """s B A of each expert, [E, out, in], as peft merges it, in float32."""
    a, b, rank = wrapper.lora_A.default.weight, wrapper.lora_B.default.weight, wrapper.r["default"]
    a, b = a.detach().reshape(-1, rank, a.shape[-1]), b.detach().reshape(b.shape[0], rank, -1)
    return wrapper.scaling["default"] * torch.einsum("o r e, e r i -> e o i", b, a)


@pytest.mark.parametrize("tuning", ["lora", "full", "freeze"])
def test_a_run_computes_its_experts_so(tuning: str, tmp_path: Path) -> None:
    """In bfloat16, whatever the weights are held in; an update of experts reaches them, and goes with the adapter's switch."""
    save_twin(tmp_path / "model", "qwen3_moe")
    (tmp_path / "rows.jsonl").write_text('{"prompt": "Say 1.", "completion": "1!"}\n')
    more = ["tuning.experts=true"] if tuning == "lora" else []
    asked = [
        f"model={tmp_path}/model",
        f"data={tmp_path}/rows.jsonl",
        f"tuning={tuning}",
        "model.dtype=bfloat16",
        *more,
    ]
    settings = config.load(None, [*asked, f"output_dir={tmp_path}/run"])
    job = build.build(settings, make_engine("auto", torch.device("cpu")), torch.bfloat16).job
    policy = job.policy
    (batch,) = micro_batches([job.samples[0]], [0], layout=job.layout, max_tokens=512, step=0)
    inner = policy.core.model.layers[-1].mlp.experts
    inner = inner.get_base_layer() if tuning == "lora" else inner
    seen: list[tuple[torch.dtype, set[str]]] = []
    inner._apply_gate = lambda both: seen.append((both.dtype, set(getattr(inner, UPDATES, {})))) or _gated(both)
    policy(batch)
    if tuning == "lora":
        with policy.model.disable_adapter():
            policy(batch)
    adapted_weights = {"gate_up_proj", "down_proj"} if tuning == "lora" else set()
    assert seen == [(torch.bfloat16, adapted_weights), *([(torch.bfloat16, set())] if tuning == "lora" else [])]
    assert inner.down_proj.dtype == (torch.bfloat16 if tuning == "lora" else torch.float32)


def _gated(both: torch.Tensor) -> torch.Tensor:
    gate, up = both.chunk(2, -1)
    return nn.functional.silu(gate) * up
