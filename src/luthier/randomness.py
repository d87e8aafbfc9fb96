"""Every random draw as a function of what it is drawn for, never of a generator's state.

So batching, layout, the number of processes and a resume do not change one draw, and there is no state to save.
The mixer is the finaliser of MurmurHash3 (Appleby, 2011; public domain), here in 64 bits; kernels/dropout.py has it in 32.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

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
    bits = np.arange(length, dtype=np.uint64) + np.uint64(key(*parts))
    for shift, factor in ((33, 0xFF51AFD7ED558CCD), (33, 0xC4CEB9FE1A85EC53)):
        bits = (bits ^ (bits >> np.uint64(shift))) * np.uint64(factor)
    return np.argsort(bits ^ (bits >> np.uint64(33)), kind="stable").astype(np.int64)
