"""What `luthier inspect CONFIG --gradients` finds out: what one batch does to each module. Nothing is saved.

The model is trained in memory for one step of the configured optimizer, at the peak of its learning rate. A module that
got no gradient gets a second step on the same rows: the first half of a product whose second half begins at zero (LoRA's
A and B) has none in the first.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

from luthier.config import RunConfig
from luthier.engines import StepResult
from luthier.engines.single import Single
from luthier.errors import NonFinite
from luthier.inspecting.module_tree import table
from luthier.models.precision import choose_dtype, dtype_name
from luthier.system.devices import device
from luthier.system.words import counted
from luthier.training.before_step import survey
from luthier.training.build import build, silent
from luthier.training.job import Job
from luthier.training.step import Step, optimizer_step, plan_step

LARGE, USUAL = 0.1, 0.01
"""Of a weight's norm: a first step that changes so much is suspicious; what the advice aims at."""
SHOWN = 8
HEADINGS = ("module", "how many", "gradient needed", "before", "after", "update / weight", "")
TEXT_COLUMNS = 3

Norms = dict[str, float]


@dataclass
class Module:
    """One module with weights of its own; norms are over these weights together."""

    name: str
    required: bool
    """whether some weight of it is trained"""
    before: float | None
    """norm of the gradient before the backward pass; None where there is no gradient"""
    after: float | None
    """norm of the gradient of the mean loss, before clipping"""
    update: float | None = None
    """norm of the optimizer's change over the norm of the weights before, of those that got a gradient; None where none did, or
    these were zero"""
    second_update: float | None = None
    """the same of those that got their gradient from the second step only"""
    state: str = ""
    """`frozen`, `learns`, `learns from the second step`, `no token`, `dead`, `not finite`, or `not reached`"""


@dataclass
class Gradients:
    """What one batch did."""

    modules: list[Module]
    rows: list[str]
    learning_rate: float
    trained: str
    """a line that says what is trained"""
    problem: str = ""
    """what was not finite, and in which rows"""
    first_non_finite: str = ""
    """the module whose output was the first that is not finite"""
    verdict: list[str] = field(default_factory=list)

    def of(self, state: str) -> list[Module]:
        return [module for module in self.modules if module.state == state]

    @property
    def exit_code(self) -> int:
        """As of a run that would end so: 4 for numbers that are not finite, 2 for weights that cannot learn."""
        return 4 if self.problem else 2 if self.of("dead") else 0

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class WatchedEngine(Single):
    """One process; notes the norm of each gradient before it is clipped."""

    named: dict[str, nn.Parameter]
    norms: Norms

    def clip_and_step(self, optimizer: torch.optim.Optimizer, max_grad_norm: float | None) -> StepResult:
        self.norms = norms_of_gradients(self.named, 1 / self.scaler.get_scale())
        return super().clip_and_step(optimizer, max_grad_norm)


def norms_of_gradients(named: dict[str, nn.Parameter], factor: float = 1.0) -> Norms:
    return {name: float(p.grad.float().norm()) * factor for name, p in named.items() if p.grad is not None}


def one_batch(config: RunConfig, trust_remote_code: bool = False, say: Callable[[str], None] = silent) -> Gradients:
    """Trains the rows of the first step once and says what became of every module.

    Raises:
        UserError, EnvironmentProblem: as training would.
    """
    engine = WatchedEngine(WatchedEngine.Config(), device())
    dtype, why = choose_dtype(config.model.dtype, engine.device)
    say(f"computed in {dtype_name(dtype)} ({why}), on {engine.device}")
    built = build(config, engine, dtype, trust_remote_code=trust_remote_code, say=say)
    job, core = built.job, built.job.policy.core
    named = dict(core.named_parameters())
    engine.named = {name: parameter for name, parameter in named.items() if parameter.requires_grad}
    engine.norms = {}
    step = plan_step(job, 0)
    rate = config.training.learning_rate or 0.0
    for group in job.optimizer.param_groups:
        group["lr"] = group["peak_lr"]
    before = norms_of_gradients(engine.named)
    start = {name: parameter.detach().clone() for name, parameter in engine.named.items()}
    job.wrapped.train()
    rows = [job.samples.place(example) for example in step.examples]
    found = Gradients([], rows, rate, built.tuned.trained)
    with _first_non_finite(core) as names:
        try:
            _take(job, step)
            after, late = engine.norms, {}
            changes = {name: _change(start[name], parameter) for name, parameter in engine.named.items()}
            if without := [name for name in engine.named if not after.get(name)]:
                _take(job, step)
                late = engine.norms
                changes |= {name: _change(start[name], engine.named[name]) for name in without}
        except NonFinite as error:
            found.problem, found.first_non_finite = error.found, next(iter(names), "")
            after, changes, late = engine.norms, {}, {}
    found.modules = _modules(core, before, after, changes, late)
    found.verdict = list(_verdict(found))
    return found


def _take(job: Job, step: Step) -> None:
    survey(job, step)
    optimizer_step(job, step)


@contextmanager
def _first_non_finite(core: nn.Module) -> Iterator[list[str]]:
    """Gets the names of the modules without children whose outputs are not finite, the first one first."""
    found: list[str] = []

    def watch(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if isinstance(output, torch.Tensor) and output.is_floating_point() and not output.isfinite().all():
                found.append(name)

        return hook

    leaves = [(name, module) for name, module in core.named_modules() if next(module.children(), None) is None]
    hooks = [module.register_forward_hook(watch(name)) for name, module in leaves]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _change(start: torch.Tensor, now: nn.Parameter) -> tuple[float, float]:
    """(norm of the change, norm of the weights before)."""
    return float((now.detach() - start).float().norm()), float(start.float().norm())


def _modules(
    core: nn.Module, before: Norms, after: Norms, changes: dict[str, tuple[float, float]], late: Norms
) -> list[Module]:
    found = []
    for path, module in core.named_modules():
        own = {
            f"{path}.{name}" if path else name: parameter for name, parameter in module.named_parameters(recurse=False)
        }
        if not own:
            continue
        trained = [name for name, parameter in own.items() if parameter.requires_grad]
        line = Module(path, bool(trained), _together(before, trained), _together(after, trained))
        without = [name for name in trained if not after.get(name)]
        line.update = _ratio([changes[name] for name in trained if name in changes and name not in without])
        line.second_update = _ratio([changes[name] for name in without if name in changes and late.get(name)])
        line.state = _state(line, without, late) if trained else "frozen"
        found.append(line)
    return found


def _ratio(moved: Sequence[tuple[float, float]]) -> float | None:
    """Of the changes of weights, and the norms that these had."""
    weight = math.hypot(*(norm for _, norm in moved))
    return math.hypot(*(change for change, _ in moved)) / weight if weight else None


def _together(norms: Norms, names: Sequence[str]) -> float | None:
    known = [norms[name] for name in names if name in norms]
    return math.sqrt(sum(value * value for value in known)) if known else None


def _state(module: Module, without: Sequence[str], late: Norms) -> str:
    """Of a trained module, some of whose weights (`without`) got no gradient from the first backward pass."""
    if module.after is not None and not math.isfinite(module.after):
        return "not finite"
    if not without:
        return "learns"
    if not late:
        return "not reached"
    if all(late.get(name) for name in without):
        return "learns from the second step"
    return "no token" if ".experts." in module.name else "dead"


def _verdict(found: Gradients) -> Iterator[str]:
    """Lines of what is wrong and what to do; one line where nothing is."""
    if found.problem:
        yield f"NOT FINITE: {found.problem}"
        if found.first_non_finite:
            yield f"  the first output that is not finite is that of {found.first_non_finite}"
        yield "  do: model.dtype=bfloat16 or float32, and look at these rows (luthier data CONFIG --row FILE:N)"
        return
    if dead := found.of("dead"):
        names = ", ".join(module.name for module in dead[:SHOWN])
        yield f"DEAD: {len(dead)} trained modules got no gradient in two steps: {names}"
        yield "  do: name only layers that the model uses in tuning.target_modules; look for weights that are all zero"
    updates = {
        module.name: max(known)
        for module in found.modules
        if (known := [one for one in (module.update, module.second_update) if one is not None])
    }
    largest = max(updates, key=lambda name: updates[name], default="")
    if largest and updates[largest] > LARGE:
        advice = found.learning_rate * USUAL / updates[largest]
        yield f"LARGE: one step changes {largest} by {100 * updates[largest]:.0f} % of its norm"
        yield f"  do: learning_rate={advice:.0e}, or a longer training.warmup_steps"
    elif largest and updates[largest] < torch.finfo(torch.float32).eps:
        yield f"SMALL: no step changes a weight by more than {updates[largest]:.0e} of its norm, which float32 loses"
        yield "  do: a larger training.learning_rate"
    elif not dead:
        count = sum(module.required for module in found.modules)
        yield f"fine: all {count} trained modules get a finite gradient, and the optimizer moves them"


def as_text(found: Gradients, everything: bool = False) -> str:
    """A table, and the verdict.

    Args:
        everything: a line for every module; else modules of the same name in other layers share one with the range
            of their figures, and frozen ones are counted.
    """
    groups: dict[tuple[str, str], list[Module]] = {}
    for module in found.modules:
        alike = module.name if everything else re.sub(r"\b\d+\b", "*", module.name)
        if everything or module.required:
            groups.setdefault((alike, module.state), []).append(module)
    rows: list[Sequence[str]] = [HEADINGS]
    for (name, state), members in groups.items():
        trained = "no" if state == "frozen" else "yes"
        norms = (_range([getattr(module, key) for module in members], "none") for key in ("before", "after"))
        still = "" if state == "frozen" else "from zero" if any(module.after for module in members) else "none yet"
        updates = _range([module.update for module in members], still)
        rows.append((name, str(len(members)), trained, *norms, updates, "" if state in ("learns", "frozen") else state))
    frozen = len(found.of("frozen"))
    notes = [] if everything or not frozen else [f"{frozen} modules with weights are frozen and need no gradient."]
    head = f"{found.trained}\n{counted(len(found.rows), 'row')}, learning rate {found.learning_rate:g} (the peak)\n"
    return "\n".join([head, *table(rows, TEXT_COLUMNS), "", *notes, *found.verdict])


def _range(values: Sequence[float | None], nothing: str) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return nothing
    low, high = (f"{value:.1e}" for value in (min(known), max(known)))
    return low if low == high else f"{low} to {high}"
