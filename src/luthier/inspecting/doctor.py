"""What `luthier doctor` finds out: the machine, what would be chosen on it, and whether the promises hold for a model.

The model itself is not loaded. A small random twin of it (its own classes, few layers) answers for its code paths.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from luthier import component
from luthier.component import ComponentConfig
from luthier.config import RunConfig
from luthier.data.steps.layout import Layout, micro_batches
from luthier.errors import LuthierError
from luthier.kernels import attention
from luthier.kernels.dropout import DropoutKeys, KeyedDropout
from luthier.models import flat
from luthier.models.precision import choose_dtype
from luthier.models.reading import context_length, load_config
from luthier.models.sources.resolve import resolve
from luthier.policy.policy import Policy
from luthier.system import machine
from luthier.system.devices import device as find_device
from luthier.tuning import Start
from luthier.tuning.full import Full
from luthier.tuning.lora import Lora
from luthier.types import NO_TARGET, Sample

LENGTHS = (3, 40, 7, 200, 12, 65, 5, 120)
"""Tokens of the rows of the invariances: very unequal."""

GRADIENT_TOLERANCE = 1e-5
"""Largest difference of two gradients, relative to the gradient's norm, that is rounding of float32."""

ALL_TOKENS = 10**9


@dataclass(frozen=True)
class Check:
    """One thing that was tried."""

    name: str
    passed: bool
    says: str


def examine(target: str | None, config: RunConfig | None = None, trust_remote_code: bool = False) -> dict[str, Any]:
    """Facts of the machine, choices, and checks; JSON-able.

    Args:
        target: a model as in `model.path`; None looks at the machine only.
        config: the configuration that names the model, for its dtype and its tuning method.
        trust_remote_code: whether Python files of a hub model may be fetched and run.

    Raises:
        UserError, EnvironmentProblem: the model cannot be found or fetched.
    """
    device = find_device()
    dtype, why = choose_dtype(config.model.dtype if config else "auto", device)
    found: dict[str, Any] = {
        "machine": machine.look().as_dict(),
        "versions": machine.versions(),
        "untested": machine.untested(),
        "device": str(device),
        "dtype": _name(dtype),
        "dtype_reason": why,
    }
    if target is None:
        return found
    source = resolve(target, config.model.revision if config else None, trust_remote_code)
    model_config = load_config(source.folder, trust_remote_code)
    verdict = flat.prove(model_config, dtype, device)
    found["model"] = {
        "name": source.name,
        "commit": source.commit,
        "architecture": (model_config.architectures or ["unknown"])[0],
        "context_tokens": context_length(model_config),
    }
    found["layout"] = "flat" if verdict.flat else "padded"
    found["attention"] = _attention(model_config, verdict.flat, device, dtype)
    found["proof"] = asdict(verdict)
    found["checks"] = [asdict(check) for check in invariances(model_config, config, verdict.flat, device)]
    return found


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _attention(model_config: Any, runs_flat: bool, device: torch.device, dtype: torch.dtype) -> str:
    if not runs_flat:
        return "the model's own"
    text = model_config.get_text_config()
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return attention.choose_path(device, dtype, size, size)


def invariances(model_config: Any, config: RunConfig | None, runs_flat: bool, device: torch.device) -> list[Check]:
    """Whether micro-batches and layout change the gradient of the model's twin, in float32 and with dropout."""
    try:
        policy = _policy(model_config, config, device)
    except (LuthierError, ValueError, RuntimeError, TypeError, AttributeError, KeyError, ImportError) as error:
        return [
            Check(
                "invariances",
                False,
                f"no twin of this model could be tuned ({type(error).__name__}: {str(error)[:120]})",
            )
        ]
    samples = _samples()
    together = _gradient(policy, samples, "padded", ALL_TOKENS)
    norm = float(together.norm())
    checks = [
        _compare("padded: 8 rows at once = 1 row 8 times", together, _gradient(policy, samples, "padded", 1), norm)
    ]
    if runs_flat:
        flat.use_flat_attention(policy.core)
        lying = _gradient(policy, samples, "flat", ALL_TOKENS)
        checks.append(
            _compare("flat: 8 rows at once = 1 row 8 times", lying, _gradient(policy, samples, "flat", 1), norm)
        )
        checks.append(_compare("flat = padded", lying, together, norm))
    return checks


OF_THE_WHOLE_MODEL = ("layers_to_transform", "rank_pattern", "alpha_pattern", "init_lora_weights", "adapter_path")
"""Keys of tuning that speak of layers, bits and files that the twin does not have."""


def _policy(model_config: Any, config: RunConfig | None, device: torch.device) -> Policy:
    """The twin, its trained part moved off its start: by the adapter of the configuration (without one: LoRA with dropout),
    or in all its weights, since it has fewer layers than may be named there."""
    chosen: ComponentConfig = config.tuning if config else Lora.Config(r=4, lora_dropout=0.1)
    if not component.load("tuning", chosen.kind).makes_adapter:
        chosen = Full.Config()
    others = {name: field.get_default(call_default_factory=True) for name, field in type(chosen).model_fields.items()}
    chosen = chosen.model_copy(update={name: others[name] for name in OF_THE_WHOLE_MODEL if name in others})
    keys = DropoutKeys(0)
    tuning = component.make("tuning", chosen)
    model = tuning.apply(flat.twin(flat.reduced(model_config), torch.float32, device), Start(keys)).model
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.ndim >= 2:
            parameter.data += (0.05 * torch.randn(parameter.shape, generator=generator)).to(device)
    policy = Policy(model, keys)
    for module in policy.modules():
        module.training = isinstance(module, KeyedDropout)
    return policy


def _samples() -> list[Sample]:
    draw = np.random.default_rng(4)
    samples = []
    for number, length in enumerate(LENGTHS):
        ids = draw.integers(1, flat.VOCABULARY, length)
        targets = np.append(ids[1:], NO_TARGET)
        targets[: length // 3] = NO_TARGET
        samples.append(Sample(ids, targets, f"row {number + 1}", number))
    return samples


def _gradient(policy: Policy, samples: Sequence[Sample], layout: Layout, max_tokens: int) -> torch.Tensor:
    """The gradient of the mean loss over all trained tokens, as one vector."""
    weight = sum(sample.trained_tokens for sample in samples)
    policy.zero_grad()
    for batch in micro_batches(samples, range(len(samples)), layout=layout, max_tokens=max_tokens, step=0):
        (-policy(batch).logps.sum() / weight).backward()
    return torch.cat([p.grad.flatten() for p in policy.parameters() if p.requires_grad and p.grad is not None]).cpu()


def _compare(name: str, one: torch.Tensor, other: torch.Tensor, norm: float) -> Check:
    if one.shape != other.shape:
        return Check(name, False, "not the same parameters got a gradient")
    difference = float((one - other).norm()) / norm
    return Check(name, difference <= GRADIENT_TOLERANCE, f"gradients differ by {difference:.0e} of their norm")


def as_text(found: dict[str, Any]) -> str:
    """The findings as a screen of text."""
    facts = found["machine"]
    lines = [
        f"system     {facts['system']}, Python {facts['python']}",
        f"processor  {facts['processor']}, {facts['cores']} cores",
        f"memory     {_size(facts['available_bytes'])} free of {_size(facts['memory_bytes'])}; "
        f"disk {_size(facts['disk_free_bytes'])} free",
    ]
    for gpu in facts["gpus"]:
        lines.append(
            f"GPU        {gpu['name']}, {_size(gpu['free_bytes'])} free of {_size(gpu['memory_bytes'])}, "
            f"capability {gpu['capability']}"
        )
    lines.append("versions   " + ", ".join(f"{name} {version}" for name, version in found["versions"].items()))
    if found["untested"]:
        lines.append("UNTESTED   with these versions the suite has not run: " + ", ".join(found["untested"]))
        lines.append("           pip install 'luthier' anew brings tested ones")
    lines.append(f"runs on    {found['device']}, in {found['dtype']}: {found['dtype_reason']}")
    if "model" not in found:
        return "\n".join([*lines, "", "luthier doctor MODEL also proves how a model may be trained."])
    model, proof = found["model"], found["proof"]
    lines += [
        "",
        f"model      {model['name']} ({model['architecture']}), context {model['context_tokens'] or 'unknown'} tokens",
        f"layout     {found['layout']}: {proof['why']}",
        f"attention  {found['attention']}",
    ]
    lines += [
        f"{'ok' if check['passed'] else 'FAILED':<10} {check['name']}: {check['says']}" for check in found["checks"]
    ]
    return "\n".join(lines)


def _size(count_bytes: int | None) -> str:
    return "unknown" if count_bytes is None else machine.size(count_bytes)
