"""Random draws on tensors as a function of what they are drawn for, as randomness.py has it; and dropout by them.

The mixer is the finaliser of MurmurHash3 (Appleby, 2011; public domain) in 32 bits.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn

from luthier.randomness import key

if TYPE_CHECKING:
    from collections.abc import Iterator

    from luthier.types import MicroBatch


def _int32(value: int) -> int:
    value &= 0xFFFFFFFF
    return value - 2**32 if value >= 2**31 else value


def _mix32(bits: torch.Tensor) -> torch.Tensor:
    """MurmurHash3's 32-bit finaliser on int32 tensors (products wrap; shifts are made logical by a mask). Works in place."""
    bits ^= (bits >> 16) & 0xFFFF
    bits *= _int32(0x85EBCA6B)
    bits ^= (bits >> 13) & 0x7FFFF
    bits *= _int32(0xC2B2AE35)
    bits ^= (bits >> 16) & 0xFFFF
    return bits


def random_bits(shape: torch.Size, device: torch.device, *parts: int | str, start: int = 0) -> torch.Tensor:
    """int32 of `shape`: 32 bits for each place, of the parts and the place; places are counted from `start`."""
    first, second = _int32(key(*parts, 0)), _int32(key(*parts, 1))
    places = torch.arange(start, start + shape.numel(), dtype=torch.int32, device=device)
    return _mix32(_mix32(places ^ first) + second).reshape(shape)


def mixed(positions: torch.Tensor, features: int, what: str) -> torch.Tensor:
    """Keys of positions [...] -> int32 [..., features]: 32 bits for each feature of each, of what they are drawn for."""
    places = torch.arange(features, dtype=torch.int32, device=positions.device)
    salted = _mix32(positions ^ _int32(key("module", what)))
    return _mix32(salted[..., None] + places * _int32(0x9E3779B9))


class DropoutKeys:
    """The keys of the positions that are being computed, shared by all keyed dropouts of a model."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.positions: torch.Tensor | None = None

    def of(self, batch: MicroBatch) -> torch.Tensor:
        """[B, T] int32: one key a position, of (seed, step, row, position in the row)."""
        start = _int32(key(self.seed, "dropout", batch.step))
        return _mix32(_mix32(batch.rows.to(torch.int32) ^ start) + batch.position_ids.to(torch.int32))

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
        threshold = _int32(round(self.p * 2**32) - 2**31)  # signed comparison: shift the unsigned share by 2**31
        return mixed(positions.to(device), shape[-1], self.name) >= threshold

    def extra_repr(self) -> str:
        return f"p={self.p}, keyed"
