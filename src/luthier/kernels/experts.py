"""The experts of a mixture, each on the tokens that chose it.

The definition, for token t with hidden state x_t and its K chosen experts e with the router's shares p_te:

    y_t = sum_e p_te D_e(act(G_e(x_t)))

where G_e and D_e (the expert's first and last projection) are L_e(x) = x W_e + s (x A_e) B_e + bias_e, W_e [in, out]. A_e [in, R]
and B_e [R, out] are of LoRA, where there is one. `experts_one_by_one` says it, an expert after the other and in float32, and is the twin.
`experts_forward` sorts the tokens by expert and multiplies group by group.

Two things are otherwise than in the functions that transformers has for it. First, x W + s (x A) B is computed, not x (W + s A B): the
sum of a weight of 16 bits and an update that is a thousandth of it is that weight again, and the update is lost. Second, under autocast all
products are in its type, as those of `torch.nn.Linear` are; `torch.nn.functional.grouped_mm` knows no autocast.

transformers calls `experts_forward` by its registered name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

NAME = "luthier_experts"

UPDATES = "luthier_updates"
"""An attribute of the module of experts: name of the weight -> its Updates, while an adapter on them is switched on."""

ALIGNED_BYTES = 16
"""What torch's kernel wants the rows of its matrices to be multiples of."""


@dataclass(frozen=True, slots=True)
class Update:
    """s A_e B_e, for each expert e."""

    a: torch.Tensor
    """[E, in, R]"""
    b: torch.Tensor
    """[E, R, out]"""
    scaling: float


def use_experts(model: Any) -> None:
    """From here on `model` computes its experts by `experts_forward`, where its code leaves that to a function."""
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    ALL_EXPERTS_FUNCTIONS.register(NAME, experts_forward)
    model.set_experts_implementation(NAME)


def takes_updates(module: nn.Module, name: str) -> bool:
    """Whether the weight `name` of `module` is one that `experts_forward` multiplies with."""
    chosen = getattr(getattr(module, "config", None), "_experts_implementation", None)
    return chosen == NAME and hasattr(module, "has_gate") and name in (_first(module), "down_proj")


def experts_forward(
    module: Any, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """transformers' experts interface: hidden states [T, D], experts of each token [T, K], their shares [T, K] -> [T, D]."""
    kind, each = hidden_states.device.type, top_k_index.shape[-1]
    x = hidden_states.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else hidden_states
    experts, order = torch.sort(top_k_index.reshape(-1), stable=True)
    numbers = torch.arange(module.num_experts, device=experts.device)
    ends = torch.searchsorted(experts, numbers, right=True).to(torch.int32)

    inner = _project(module, _first(module), x[order // each], experts, ends)
    inner = module._apply_gate(inner) if module.has_gate else module.act_fn(inner)
    out = _project(module, "down_proj", inner, experts, ends)
    if getattr(module, "has_post_expert_norm", False):
        out = module.post_expert_norm(out)
    out = out * top_k_weights.reshape(-1)[order, None]

    back = torch.empty_like(order)
    back[order] = torch.arange(len(order), device=order.device)
    said: torch.Tensor = out[back].reshape(-1, each, out.shape[-1]).sum(1)
    return said.to(hidden_states.dtype)


def _first(module: Any) -> str:
    return "gate_up_proj" if module.has_gate else "up_proj"


def _project(module: Any, name: str, x: torch.Tensor, experts: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """L_e of rows [M, in] that are sorted by expert -> [M, out]; `experts` [M] are those of the rows, `ends` [E] where each one's end."""
    weight = getattr(module, name)
    weight = weight if module.is_transposed else weight.transpose(-2, -1)
    kind = x.dtype if torch.is_autocast_enabled(x.device.type) else weight.dtype
    out = grouped(x.to(kind), weight.to(kind), ends)
    for update in getattr(module, UPDATES, {}).get(name, ()):
        held = x.dtype if torch.is_autocast_enabled(x.device.type) else update.a.dtype
        a, b = _padded(update.a.to(held), -1), _padded(update.b.to(held), -2)
        moved = grouped(grouped(x.to(held), a, ends), b, ends)
        out = (out + update.scaling * moved).to(kind)
    return out + getattr(module, f"{name}_bias")[experts].to(kind) if module.has_bias else out


def _padded(factor: torch.Tensor, axis: int) -> torch.Tensor:
    """A or B with a rank that torch's kernel takes: what is added is zero in both."""
    more = -factor.shape[axis] % (ALIGNED_BYTES // factor.element_size())
    return torch.nn.functional.pad(factor, (0, more) if axis == -1 else (0, 0, 0, more)) if more else factor


def grouped(x: torch.Tensor, weights: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """Rows [M, in], of which the first ends[0] are multiplied with weights[0], and so on: [E, in, out] -> [M, out]."""
    if _kernel_serves(x, weights):
        return torch.nn.functional.grouped_mm(x, weights, offs=ends)
    counts = torch.diff(ends, prepend=ends.new_zeros(1)).tolist()
    return torch.cat([rows @ weight for rows, weight in zip(torch.split(x, counts), weights, strict=True)])


def _kernel_serves(x: torch.Tensor, weights: torch.Tensor) -> bool:
    """torch's kernel is for CPUs and for CUDA capability 8.0 or more, and for rows of whole 16 bytes."""
    where = x.device.type
    capable = where == "cpu" or (where == "cuda" and torch.cuda.get_device_capability(x.device) >= (8, 0))
    return capable and all(size * x.element_size() % ALIGNED_BYTES == 0 for size in weights.shape[1:])


def experts_one_by_one(
    module: Any, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """The definition, in float32: each expert on its tokens, with W + s A B as one matrix. The twin for tests."""
    out = torch.zeros_like(hidden_states, dtype=torch.float32)
    for expert in range(module.num_experts):
        token, place = (top_k_index == expert).nonzero(as_tuple=True)
        inner = _by_one(module, _first(module), expert, hidden_states[token].float())
        inner = module._apply_gate(inner) if module.has_gate else module.act_fn(inner)
        said = _by_one(module, "down_proj", expert, inner)
        if getattr(module, "has_post_expert_norm", False):
            said = module.post_expert_norm(said)
        out = out.index_add(0, token, said * top_k_weights[token, place, None].float())
    return out


def _by_one(module: Any, name: str, expert: int, x: torch.Tensor) -> torch.Tensor:
    weight = getattr(module, name)[expert].float()
    weight = weight if module.is_transposed else weight.T
    for update in getattr(module, UPDATES, {}).get(name, ()):
        weight = weight + update.scaling * update.a[expert].float() @ update.b[expert].float()
    out: torch.Tensor = x @ weight
    return out + getattr(module, f"{name}_bias")[expert].float() if module.has_bias else out
