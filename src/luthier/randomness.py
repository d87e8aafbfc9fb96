"""Every random draw as a function of what it is drawn for, never of a generator's state.

So batching, layout, the number of processes and a resume do not change one draw, and there is no state to save. A
`torch.Generator` draws a sequence: what a position gets depends on what was drawn before it, and on the device.
The mixers are the finalisers of MurmurHash3 (Appleby, 2011; public domain), of 64 bits for arrays and of 32 for tensors.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

Bits = npt.NDArray[np.uint64]


def key(*parts: int | str) -> int:
    """A 64-bit key of the parts, the same on every machine and Python process."""
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def uniform(*parts: int | str) -> float:
    """A number in [0, 1) of the parts."""
    return key(*parts) / 2**64


def permutation(length: int, *parts: int | str) -> npt.NDArray[np.int64]:
    """A permutation of range(length): indices in the order of their hashes."""
    bits = mix64(np.arange(length, dtype=np.uint64) + np.uint64(key(*parts)))
    return np.argsort(bits, kind="stable").astype(np.int64)


def mix64(bits: Bits) -> Bits:
    """Each value scrambled, one to one; 0 stays 0."""
    bits = (bits ^ (bits >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    bits = (bits ^ (bits >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
    return bits ^ (bits >> np.uint64(33))


def mix32(bits: torch.Tensor) -> torch.Tensor:
    """Each value of an int32 tensor scrambled, one to one; 0 stays 0. Works in place.

    torch has no unsigned arithmetic: products wrap all the same, and shifts are made logical by a mask.
    """
    bits ^= (bits >> 16) & 0xFFFF
    bits *= int32(0x85EBCA6B)
    bits ^= (bits >> 13) & 0x7FFFF
    bits *= int32(0xC2B2AE35)
    bits ^= (bits >> 16) & 0xFFFF
    return bits


def int32(value: int) -> int:
    """The low 32 bits as a signed number."""
    value &= 0xFFFFFFFF
    return value - 2**32 if value >= 2**31 else value
