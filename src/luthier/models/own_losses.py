"""Losses that a model's config.json adds in its own training, and that a run adds only where its objective names them."""

from __future__ import annotations

from typing import Any

from luthier.component import ComponentConfig
from luthier.config.problems import terms_of, weighted_sum


def own_losses(model_config: Any, objective: ComponentConfig) -> list[str]:
    """One line for all that the objective lacks, with the objective that has them beside its own terms; none if it has all.

    Args:
        model_config: the model's transformers configuration. `z_loss_weight` is asked for by a number that is not zero,
            `router_aux_loss_coef` by `output_router_logits` beside it.
    """
    config = model_config.get_text_config()
    asked = {"z_loss_weight": {"kind": "z_loss", "form": "largest"}}
    if getattr(config, "output_router_logits", False):
        asked["router_aux_loss_coef"] = {"kind": "router_balance", "over": "step"}
    used = {term.kind for term in terms_of(objective)}
    weights = {key: getattr(config, key, 0.0) for key, term in asked.items() if term["kind"] not in used}
    lacking = {key: weight for key, weight in weights.items() if weight}
    if not lacking:
        return []
    named = " and ".join(f"{key} of {weight:g}" for key, weight in lacking.items())
    line = weighted_sum(objective, after=[{**asked[key], "weight": weight} for key, weight in lacking.items()])
    return [f"not used: the model's own {named}; to train with {'it' if len(lacking) == 1 else 'them'}: {line}"]
