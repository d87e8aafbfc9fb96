"""Noise on the embeddings of training (NEFTune, Jain et al., 2023, arXiv:2310.05914)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from luthier.kernels.dropout import mixed
from luthier.policy.policy import Policy
from luthier.types import MicroBatch


class Noise:
    """Adds U(-1, 1) * alpha / sqrt(L D) to the embeddings [B, T, D] of a document of L tokens, in training mode only.

    The draw is a function of (seed, step, row, position, feature), so that the layout of a batch does not change it.
    """

    def __init__(self, policy: Policy, alpha: float) -> None:
        self.policy, self.alpha = policy, alpha
        policy.core.get_input_embeddings().register_forward_hook(self._add)
        policy.register_forward_pre_hook(self._note)
        self.lengths: torch.Tensor | None = None
        """[B, T]: of the document whose draws each position takes"""

    def _note(self, _policy: nn.Module, inputs: tuple[Any, ...]) -> None:
        batch: MicroBatch = inputs[0]
        places, lengths = torch.tensor(batch.places or [0]), torch.tensor(batch.lengths)
        order = places.argsort()
        self.lengths = lengths[order[torch.searchsorted(places[order], batch.rows)]]

    def _add(self, embedding: nn.Module, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
        keys = self.policy.keys.positions
        if not embedding.training or keys is None or self.lengths is None:
            return output
        noise = mixed(keys, output.shape[-1], "neftune").to(torch.float32) / 2**31
        width = self.alpha / (self.lengths.to(output.device) * output.shape[-1]).sqrt()
        return output + (noise * width[..., None]).to(output.dtype)
