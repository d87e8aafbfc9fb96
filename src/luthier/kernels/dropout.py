"""Random draws on tensors as a function of what they are drawn for, as randomness.py has it; dropout by them; and the seeds of
torch's own generators, for what draws from those.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn

from luthier.randomness import int32, key, mix32

if TYPE_CHECKING:
    from collections.abc import Iterator

    from luthier.types import MicroBatch


def random_bits(shape: torch.Size, device: torch.device, *parts: int | str, start: int = 0) -> torch.Tensor:
    """int32 of `shape`: 32 bits for each place, of the parts and the place; places are counted from `start`."""
    first, second = int32(key(*parts, 0)), int32(key(*parts, 1))
    places = torch.arange(start, start + shape.numel(), dtype=torch.int32, device=device)
    return mix32(mix32(places ^ first) + second).reshape(shape)


def mixed(positions: torch.Tensor, features: int, what: str) -> torch.Tensor:
    """Keys of positions [...] -> int32 [..., features]: 32 bits for each feature of each, of what they are drawn for."""
    places = torch.arange(features, dtype=torch.int32, device=positions.device)
    salted = mix32(positions ^ int32(key("module", what)))
    return mix32(salted[..., None] + places * int32(0x9E3779B9))


def seed_generators(seed: int, where: torch.device) -> None:
    """Of the CPU and of `where`. `torch.manual_seed` seeds every card of the machine, and takes a trace of the stack for it."""
    torch.default_generator.manual_seed(seed)
    if where.type == "cuda":
        torch.cuda.default_generators[where.index or 0].manual_seed(seed)
    elif where.type == "mps":
        torch.mps.manual_seed(seed)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Inside, torch's default generators start from `seed`; afterwards they are as they were."""
    with torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_available() else []):
        torch.manual_seed(seed)
        yield


class DropoutKeys:
    """The keys of the positions that are being computed, shared by all keyed dropouts of a model."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.positions: torch.Tensor | None = None

    def of(self, batch: MicroBatch) -> torch.Tensor:
        """[B, T] int32: one key a position, of (seed, step, row, position in the row)."""
        start = int32(key(self.seed, "dropout", batch.step))
        return mix32(mix32(batch.rows.to(torch.int32) ^ start) + batch.position_ids.to(torch.int32))

    @contextmanager
    def using(self, positions: torch.Tensor | None) -> Iterator[None]:
        before, self.positions = self.positions, positions
        try:
            yield
        finally:
            self.positions = before


class KeyedDropout(nn.Module):
    """Dropout whose mask is a function of (seed, step, row, position, module, feature); identity in eval mode.

    Input [B, T, D], or [N, D] where keys are [N]. Kept values are scaled by 1 / (1 - p), as torch does.
    """

    def __init__(self, p: float, name: str, keys: DropoutKeys) -> None:
        super().__init__()
        self.p = p
        self.name = name
        self.keys = keys

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or self.p == 0.0 or x.numel() == 0:  # the decoder is run with a head of no positions
            return x
        return x * self.mask(x.shape, x.device).to(x.dtype) * (1.0 / (1.0 - self.p))

    def mask(self, shape: torch.Size, device: torch.device) -> torch.Tensor:
        """Which features of each position are kept: bool of `shape`."""
        positions = self.keys.positions
        if positions is None or positions.numel() != shape[:-1].numel():
            found = None if positions is None else tuple(positions.shape)
            raise RuntimeError(f"dropout needs the keys of {tuple(shape[:-1])} positions, has {found}")
        positions = positions.reshape(shape[:-1])  # some models run their MLP on [B * T, D]
        threshold = int32(round(self.p * 2**32) - 2**31)  # signed comparison: shift the unsigned share by 2**31
        return mixed(positions.to(device), shape[-1], self.name) >= threshold

    def extra_repr(self) -> str:
        return f"p={self.p}, keyed"
