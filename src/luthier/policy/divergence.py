"""How far one distribution over the vocabulary is from another: P the teacher's, Q the student's, of each position."""

from __future__ import annotations

import math

import torch

from luthier.objectives import Teaching


def divergence(teacher: torch.Tensor, student: torch.Tensor, how: Teaching) -> torch.Tensor:
    """Log-probabilities [n, W] of both -> [n]; differentiable in the student's.

    - forward: KL(P || Q) = sum P (log P - log Q)
    - reverse: KL(Q || P)
    - jsd: beta KL(P || M) + (1 - beta) KL(Q || M) with M = beta P + (1 - beta) Q
    """
    if how.divergence == "forward":
        return _kl(teacher, student)
    if how.divergence == "reverse":
        return _kl(student, teacher)
    mixture = torch.logaddexp(teacher + math.log(how.beta), student + math.log1p(-how.beta))
    return how.beta * _kl(teacher, mixture) + (1 - how.beta) * _kl(student, mixture)


def _kl(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return (one.exp() * (one - other)).sum(-1)


def likeliest(logits: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The `count` largest of logits [n, W], largest first: their ids [n, K], and the logarithms of their probabilities as `parted`
    gives them."""
    ids = logits.topk(min(count, logits.shape[-1]), dim=-1).indices
    return ids, parted(logits, ids)


def parted(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """logits [n, W] and K of their ids -> log-probabilities of these and, where others are left, of all others together:
    [n, K + 1], else [n, K]."""
    whole = logits.logsumexp(-1, keepdim=True)
    own = logits.gather(-1, ids) - whole
    if ids.shape[-1] == logits.shape[-1]:
        return own
    rest = logits.scatter(-1, ids, -math.inf).logsumexp(-1, keepdim=True) - whole
    return torch.cat([own, rest], -1)
