"""Muon (Jordan, 2024): orthogonal steps for the matrices between embeddings and head, AdamW for the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from luthier.errors import UserError
from luthier.optimizers import Optimizer, TrainedParameters
from luthier.optimizers._adamw import AdamWConfig, adamw

if TYPE_CHECKING:
    import torch

__all__ = ["Muon"]


class Muon(Optimizer):
    """Muon by torch for the matrices between embeddings and head, AdamW for the rest.

    Muon's steps are scaled to the length of AdamW's (Moonshot AI, 2025, arXiv:2502.16982), so one learning rate does for both.
    """

    class Config(AdamWConfig):
        kind: Literal["muon"] = "muon"

    state_bytes = 4
    """of a matrix; embeddings and head, under AdamW, have 8"""

    def __init__(self, config: Config) -> None:
        self.config = config

    def make(self, trained: TrainedParameters) -> torch.optim.Optimizer:
        import torch

        from luthier.optimizers._together import Together

        rate, parts = trained.learning_rate, list[torch.optim.Optimizer]()
        inner, rest = self._split(trained)
        if inner:
            parts.append(torch.optim.Muon(inner, lr=rate, adjust_lr_fn="match_rms_adamw"))
        if rest:
            parts.append(adamw(rest, rate, self.config))
        else:
            self._refuse_keys_of_adamw()
        return Together(parts)

    def _split(self, trained: TrainedParameters) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """The groups of Muon and those of AdamW."""
        inner, rest = list[dict[str, Any]](), list[dict[str, Any]]()
        for group in trained.groups:
            hidden = [p for p in group["params"] if p.ndim == 2 and id(p) not in trained.edges]
            other = [p for p in group["params"] if p.ndim != 2 or id(p) in trained.edges]
            inner += [{**group, "params": hidden}] if hidden else []
            rest += [{**group, "params": other}] if other else []
        return inner, rest

    def _refuse_keys_of_adamw(self) -> None:
        for key, field in AdamWConfig.model_fields.items():
            if key != "kind" and getattr(self.config, key) != field.default:
                raise UserError(
                    f"training.optim.{key}",
                    "muon has no such number for matrices, and nothing else is trained",
                    "an AdamW",
                    f"leave {key} out",
                )
