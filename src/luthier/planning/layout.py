"""How the documents of a run lie in its forward passes."""

from __future__ import annotations

from typing import Any

from luthier.config import RunConfig
from luthier.data.dataset.samples import SampleSet
from luthier.data.steps.layout import Layout
from luthier.models.flat import Verdict
from luthier.objectives import Objective

PAYS = 0.1
"""The share of tokens from which on it pays to compute what answers share once: attention to it costs a little more."""


def choose_layout(
    config: RunConfig, model_config: Any, verdict: Verdict, objective: Objective, samples: SampleSet
) -> tuple[Layout, str]:
    """The layout, and why.

    Args:
        verdict: what is proven of the architecture.
        samples: what is learned from.
    """
    if not verdict.flat:
        return "padded", verdict.why
    saved = float(samples.shared.sum() / samples.lengths.sum())
    if saved < PAYS or config.training.share_prefix == "never":
        return "flat", verdict.why
    against = _against(model_config, verdict, objective)
    if against:
        return "flat", f"{verdict.why}; each answer has its prompt again: {against}"
    return "shared", f"{verdict.why}; answers to one prompt share it: {100 * saved:.0f} % fewer tokens"


def _against(model_config: Any, verdict: Verdict, objective: Objective) -> str:
    """What speaks against sharing."""
    if "routing" in objective.wants:
        return "the load of experts is counted by whole answers"
    if objective.teaching is not None:
        return "the teacher reads whole answers"
    if verdict.shares and has_dropout(model_config):
        return "the model has dropout of its own, which draws anew for each"
    return verdict.why_apart


def has_dropout(model_config: Any) -> bool:
    """Whether a model drops by itself in training; LoRA's dropout is keyed, and not meant, nor that of heads that classify tokens."""
    text = model_config.get_text_config().to_dict()
    rates = (value for name, value in text.items() if "drop" in name and not name.startswith(("classifier", "summary")))
    return any(isinstance(value, float) and value > 0 for value in rates)
