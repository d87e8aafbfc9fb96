"""Losses that a model's config.json adds in its own training, and that a run adds only where its objective names them."""

from __future__ import annotations

from typing import Any

from luthier.component import ComponentConfig


def own_losses(model_config: Any, objective: ComponentConfig) -> list[str]:
    """A line for each that the objective lacks, with the term that gives it.

    Args:
        model_config: the model's transformers configuration. `z_loss_weight` is asked for by a number that is not zero,
            `router_aux_loss_coef` by `output_router_logits` beside it.
    """
    config = model_config.get_text_config()
    asked = {"z_loss": ("z_loss_weight", getattr(config, "z_loss_weight", 0.0), "z_loss, form: largest")}
    if getattr(config, "output_router_logits", False):
        asked["router_balance"] = (
            "router_aux_loss_coef",
            getattr(config, "router_aux_loss_coef", 0.0),
            "router_balance, over: step",
        )
    used = {term.kind for term in getattr(objective, "terms", (objective,))}
    return [
        f"not used: the model's own {key} of {weight:g}; to train with it: "
        f"objective={{kind: weighted, terms: [{{kind: sft}}, {{kind: {term}, weight: {weight:g}}}]}}"
        for kind, (key, weight, term) in asked.items()
        if weight and kind not in used
    ]
