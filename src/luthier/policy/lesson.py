"""What a policy asks of a teacher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch

from luthier.types import MicroBatch


class Compared(NamedTuple):
    """A model's distributions of n positions beside a teacher's; each is [n], and what it is stands in `types.Scores`."""

    divergence: torch.Tensor
    teacher: torch.Tensor
    agreed: torch.Tensor


class Lesson(Protocol):
    """What a teacher says of some positions."""

    def split(self, sizes: Sequence[int]) -> Sequence[Lesson]:
        """The same of so many positions each."""

    def compared(self, logits: torch.Tensor, targets: torch.Tensor) -> Compared:
        """logits [n, V] in float32, targets [n]; differentiable in the logits, as far as the divergence goes."""


class Teaches(Protocol):
    """A teacher, as a policy knows it."""

    is_beginning: bool
    """whether it is the policy as it was at step 0"""

    def lesson(self, batch: MicroBatch) -> Lesson:
        """Of the trained positions of a micro-batch that has some."""
