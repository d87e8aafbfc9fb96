"""The optimizer and the schedule of its learning rate."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import get_scheduler
from transformers.optimization import Adafactor

from luthier.config import TrainingConfig
from luthier.errors import UserError
from luthier.models.precision import dtype_name
from luthier.policy.policy import Policy
from luthier.system.words import counted
from luthier.training.stochastic_adamw import StochasticAdamW
from luthier.tuning._starts import starts_of

ROUNDS_STOCHASTICALLY = "adamw_bf16"


def make_optimizer(
    training: TrainingConfig, policy: Policy, rates: Mapping[str, float] | None = None, seed: int = 0
) -> torch.optim.Optimizer:
    """The optimizer that `training.optim` names; biases and norms (tensors of one dimension) are not decayed.

    Args:
        rates: parts of the names of parameters, and how many times the learning rate they learn at (`Tuned.rates`).
        seed: of the optimizer that rounds by chance.

    Raises:
        UserError: parameters of 16 bits, and an optimizer that would lose small steps in them; or keys that it does not read.
    """
    _refuse_unread_keys(training, policy)
    refuse_lost_steps(training.optim, policy)
    groups = parameter_groups(training, policy, rates or {})
    rate, betas, eps = training.learning_rate or 0.0, (training.adam_beta1, training.adam_beta2), training.adam_epsilon
    match training.optim:
        case "adamw":
            return torch.optim.AdamW(groups, lr=rate, betas=betas, eps=eps)
        case "adamw_bf16":
            return StochasticAdamW(groups, rate, betas, eps, seed)
        case "muon":
            return _muon(groups, policy, rate, betas, eps)
        case "adafactor":
            fixed = {"scale_parameter": False, "relative_step": False, "warmup_init": False}
            return Adafactor(groups, lr=rate, **fixed)  # type: ignore[no-any-return]
    import bitsandbytes

    made: torch.optim.Optimizer
    library: Any = bitsandbytes.optim
    if training.optim == "lion":
        made = library.Lion(groups, lr=rate)
    else:
        adamw = {"adamw_8bit": "AdamW8bit", "paged_adamw": "PagedAdamW", "paged_adamw_8bit": "PagedAdamW8bit"}
        made = getattr(library, adamw[training.optim])(groups, lr=rate, betas=betas, eps=eps)
    return made


def restore_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """As `load_state_dict`; what an optimizer of bitsandbytes pages is paged again, where its own loading puts it on the card."""
    if not getattr(optimizer, "is_paged", False):
        optimizer.load_state_dict(state)
        return
    paging: Any = optimizer
    paging.load_state_dict(state, move_to_device=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # `notes_on` has said where nothing is paged
        for parameter, held in paging.state.items():
            for name, value in held.items():
                if name in ("state1", "state2"):
                    held[name] = paging.get_state_buffer(parameter, dtype=value.dtype).copy_(value)
                elif isinstance(value, torch.Tensor):
                    held[name] = value.to(parameter.device)


def notes_on(optim: str, device: torch.device) -> list[str]:
    """What is otherwise on this device than the optimizer's name says."""
    if optim.startswith("paged_") and device.type != "cuda":
        return [
            f"{optim}: nothing is paged on {device.type}, where its state is ordinary memory; the numbers are the same"
        ]
    return []


def _refuse_unread_keys(training: TrainingConfig, policy: Policy) -> None:
    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    if training.optim == "muon" and not all(map(_is_for_muon(policy), trained)):
        return  # AdamW reads them for the rest
    for key in ("adam_beta1", "adam_beta2", "adam_epsilon") if training.optim in ("adafactor", "lion", "muon") else ():
        if getattr(training, key) != type(training).model_fields[key].default:
            why = " for matrices, and nothing else is trained" if training.optim == "muon" else ""
            raise UserError(
                f"training.{key}", f"{training.optim} has no such number{why}", "an AdamW", f"leave {key} out"
            )


def _is_for_muon(policy: Policy) -> Callable[[nn.Parameter], bool]:
    """Which parameters Muon is made for: matrices between embeddings and head."""
    edges = (policy.core.get_input_embeddings(), policy.core.get_output_embeddings())
    outside = {id(parameter) for edge in edges if edge is not None for parameter in edge.parameters()}
    return lambda parameter: parameter.ndim == 2 and id(parameter) not in outside


def refuse_lost_steps(optim: str, policy: nn.Module) -> None:
    """A step much smaller than a weight is nothing after rounding to 16 bits."""
    for name, parameter in policy.named_parameters():
        if parameter.requires_grad and parameter.dtype != torch.float32 and optim != ROUNDS_STOCHASTICALLY:
            raise UserError(
                "training.optim",
                f"{name} is trained in {str(parameter.dtype).removeprefix('torch.')}, in which {optim} would lose most steps",
                "parameters in float32, or an optimizer that rounds by chance",
                f"training.optim={ROUNDS_STOCHASTICALLY}",
            )


def train_in_bfloat16(model: Any, dtype: torch.dtype) -> None:
    if dtype != torch.bfloat16:
        raise UserError(
            "training.optim",
            f"{ROUNDS_STOCHASTICALLY} while {dtype_name(dtype)} is computed in",
            "bfloat16",
            "model.dtype=bfloat16, or training.optim=adamw",
        )
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)
    for start in starts_of(model).values():
        start.data = start.data.to(dtype)


class Together(torch.optim.Optimizer):
    """Several optimizers, each with parameters of its own, as one."""

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        self.parts = parts
        super().__init__([group for part in parts for group in part.param_groups], {})
        self.param_groups = [group for part in parts for group in part.param_groups]

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step of each; `closure` is of torch's interface and not used."""
        del closure
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [group for part in self.parts for group in part.param_groups]


def _muon(
    groups: list[dict[str, Any]], policy: Policy, rate: float, betas: tuple[float, float], eps: float
) -> torch.optim.Optimizer:
    """Muon (Jordan, 2024) for the matrices between embeddings and head, AdamW for the rest.

    Muon's steps are scaled to the length of AdamW's (Moonshot AI, 2025, arXiv:2502.16982), so one learning rate does for both.
    """
    is_hidden = _is_for_muon(policy)
    inner, rest = list[dict[str, Any]](), list[dict[str, Any]]()
    for group in groups:
        hidden = [p for p in group["params"] if is_hidden(p)]
        other = [p for p in group["params"] if not is_hidden(p)]
        inner += [{**group, "params": hidden}] if hidden else []
        rest += [{**group, "params": other}] if other else []
    parts = list[torch.optim.Optimizer]()
    if inner:
        parts.append(torch.optim.Muon(inner, lr=rate, adjust_lr_fn="match_rms_adamw"))
    if rest:
        parts.append(torch.optim.AdamW(rest, lr=rate, betas=betas, eps=eps))
    return Together(parts)


def parameter_groups(training: TrainingConfig, policy: nn.Module, rates: Mapping[str, float]) -> list[dict[str, Any]]:
    """Trained parameters by weight decay and peak learning rate; the first group has the rate of the configuration."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    rate, decay = training.learning_rate or 0.0, training.weight_decay or 0.0
    for name, parameter in policy.named_parameters():
        if parameter.requires_grad:
            faster = next((times for part, times in rates.items() if part in name), 1.0)
            groups.setdefault((faster, decay if parameter.ndim >= 2 else 0.0), []).append(parameter)
    ordered = sorted(groups.items(), key=lambda item: (item[0][0] != 1.0, -item[0][1]))
    return [{"params": held, "weight_decay": decay, "peak_lr": rate * faster} for (faster, decay), held in ordered]


def warmup_steps(training: TrainingConfig, total: int) -> int:
    """Of `total` steps.

    Raises:
        UserError: the learning rate would rise to the very end, or further.
    """
    asked = training.warmup_steps or 0
    if isinstance(asked, float) and asked < 1:
        return round(asked * total)
    if asked >= total:
        raise UserError(
            "training.warmup_steps",
            f"{asked:g} warm-up steps of {counted(total, 'step')}",
            "fewer warm-up steps than steps",
            "warmup_steps=0.03",
        )
    return int(asked)


def make_schedule(training: TrainingConfig, total: int) -> Callable[[int], float]:
    """step (from 0) -> share of the peak learning rate, by the schedule of transformers. A pure function: nothing to save."""
    steps = warmup_steps(training, total)
    probe = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    scheduler = get_scheduler(training.lr_scheduler_type, probe, num_warmup_steps=steps, num_training_steps=total)
    share: Callable[[int], float] = scheduler.lr_lambdas[0]
    # Shifted by one within the warm-up, so that no step is spent at a rate of exactly zero.
    return lambda step: share(step + 1) if step < steps else share(step)
