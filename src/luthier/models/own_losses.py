"""Losses that a model's config.json adds in its own training, and that a run adds only where its objective names them."""

from __future__ import annotations

from typing import Any

from luthier import component
from luthier.component import ComponentConfig
from luthier.config.combinations import terms_of, weighted_sum


def own_losses(model_config: Any, objective: ComponentConfig) -> list[str]:
    """One line for all that the objective lacks, with the objective that has them beside its own terms; none if it has all.

    Args:
        model_config: the model's transformers configuration (see `Objective.of_model`).
    """
    config, used = model_config.get_text_config(), {term.kind for term in terms_of(objective)}
    kinds = [component.load("objectives", kind) for kind in component.listing("objectives") if kind not in used]
    lacking = [found for kind in kinds if (found := kind.of_model(config)) is not None]
    if not lacking:
        return []
    named = " and ".join(f"{key} of {term['weight']:g}" for key, term in lacking)
    line = weighted_sum(objective, after=[term for _, term in lacking])
    return [f"not used: the model's own {named}; to train with {'it' if len(lacking) == 1 else 'them'}: {line}"]
