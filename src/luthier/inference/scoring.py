"""What a model makes of held-out samples: log-probabilities and right tokens, summed by sample.

Nothing here draws a random number or changes the model; sums are by sample first, so that the layout and the number of
processes only change the order of work, not the figures.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import exp, inf
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from luthier.data.steps.layout import Layout, micro_batches
from luthier.policy.policy import evaluating
from luthier.system.progress import Watch, unwatched
from luthier.system.words import counted
from luthier.types import NO_TARGET, Sample

WINDOW = 256
"""Samples a process that are laid out at a time, longest first: bounds the memory for their ids, and keeps processes in step."""

MOST_NATS = 700.0
"""exp() of more is no float."""


class Rows(Protocol):
    """A list of samples, or a file of them."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample: ...


@dataclass(frozen=True, slots=True)
class RowScores:
    """One entry a sample, in the samples' order."""

    nll: npt.NDArray[np.float64]
    """Sum over its trained tokens of -log p(target), in nats."""
    correct: npt.NDArray[np.int64]
    """Trained tokens that were the most likely ones."""
    tokens: npt.NDArray[np.int64]
    """Trained tokens."""

    @property
    def summary(self) -> dict[str, float]:
        """loss (nats a token), perplexity, token_accuracy and tokens, over all rows."""
        tokens = int(self.tokens.sum())
        loss = float(self.nll.sum()) / max(tokens, 1)
        return {
            "loss": loss,
            "perplexity": perplexity(loss),
            "token_accuracy": float(self.correct.sum()) / max(tokens, 1),
            "tokens": tokens,
        }


def perplexity(loss: float) -> float:
    """exp(loss in nats a token); infinite where that is no float."""
    return exp(loss) if loss < MOST_NATS else inf


def score_rows(
    policy: nn.Module,
    samples: Rows,
    *,
    layout: Layout,
    max_tokens: int,
    processes: int = 1,
    rank: int = 0,
    watch: Watch = unwatched,
) -> RowScores:
    """Scores of each sample, the same on every process.

    Args:
        policy: a `luthier.policy.policy.Policy`, possibly wrapped by an engine; run in eval mode, which is undone afterwards.
        samples: what is scored; those of one example are never parted by a window.
        layout: how the policy wants its micro-batches.
        max_tokens: most tokens of one forward pass; a longer sample goes alone.
        processes, rank: with more than one process each scores its share and the sums are exchanged.
        watch: is told with each forward pass how many samples are scored.
    """
    scored = 0
    sums = torch.zeros(2, len(samples), dtype=torch.float64)
    tokens = np.zeros(len(samples), dtype=np.int64)
    with evaluating(policy), torch.no_grad():
        for indices, window in _windows(samples, WINDOW * processes):
            tokens[indices] = [sample.trained_tokens for sample in window]
            rows, logps, correct = [], [], []
            for batch in micro_batches(
                window, indices, layout=layout, max_tokens=max_tokens, step=0, processes=processes, rank=rank
            ):
                scores = policy(batch, want=("correct",))
                rows.append(batch.rows[batch.targets != NO_TARGET])
                logps.append(scores.logps)
                correct.append(scores.correct)
                scored += len(batch.examples)
                watch(f"{scored:,} of {counted(len(samples), 'sample')} scored", scored / len(samples))
            places = torch.cat(rows)  # the device is waited for once a window, here
            sums[0].index_add_(0, places, -torch.cat(logps).double().cpu())
            sums[1].index_add_(0, places, torch.cat(correct).cpu().double())
    if processes > 1:
        sums = sums.to(next(policy.parameters()).device)
        torch.distributed.all_reduce(sums)
    nll, correct = sums.cpu().numpy()
    return RowScores(nll, correct.astype(np.int64), tokens)


def score_answers(
    policy: nn.Module, samples: Rows, max_tokens: int, watch: Watch = unwatched
) -> npt.NDArray[np.float64]:
    """[samples]: the score of each by a model that gives documents scores. It does not depend on the others, to rounding."""
    found, scored = np.zeros(len(samples)), 0
    with evaluating(policy), torch.no_grad():
        for indices, window in _windows(samples, WINDOW):
            for batch in micro_batches(window, indices, layout="padded", max_tokens=max_tokens, step=0):
                found[batch.places] = policy(batch, want=("value",), head=False).value.double().cpu().numpy()
                scored += len(batch.places)
                watch(f"{scored:,} of {counted(len(samples), 'answer')} scored", scored / len(samples))
    return found


def _windows(samples: Rows, size: int) -> Iterator[tuple[list[int], list[Sample]]]:
    """Neighbours and their places, `size` at a time, and so many more that no example is parted."""
    start, window = 0, list[Sample]()
    for index in range(len(samples)):
        sample = samples[index]
        if len(window) >= size and sample.example != window[-1].example:
            yield list(range(start, index)), window
            start, window = index, []
        window.append(sample)
    if window:
        yield list(range(start, start + len(window))), window
