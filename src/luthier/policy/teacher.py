"""A teacher: another model, whose distributions of the trained positions are computed beside the policy's, chunk by chunk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property

import torch

from luthier.objectives import Teaching
from luthier.policy.divergence import divergence, likeliest, parted
from luthier.policy.lesson import Compared, Lesson
from luthier.policy.policy import Policy
from luthier.types import NO_TARGET, MicroBatch


class Teacher:
    """A model that is asked and never trained. It is no part of the policy: nothing that is done to that reaches it.

    Args:
        how: what is asked of it.
        words: of how many ids, from 0, both models have logits: distributions are over these.
        opens: gives it in scoring form; called when it is first asked.
        flat: whether it takes flat micro-batches as they are; else they are padded for it.
        is_beginning: whether it is the policy as it was at step 0.
    """

    def __init__(
        self, how: Teaching, words: int, opens: Callable[[], Policy], *, flat: bool, is_beginning: bool = False
    ) -> None:
        self.how, self.words, self.flat, self.is_beginning = how, words, flat, is_beginning
        self._opens = opens

    @cached_property
    def policy(self) -> Policy:
        """Its model."""
        policy = self._opens().eval()
        return policy.requires_grad_(False)

    def close(self) -> None:
        """Lets go of its model; it is opened again where it is asked again."""
        self.__dict__.pop("policy", None)

    def lesson(self, batch: MicroBatch) -> Lesson:
        """Of the trained positions: what is kept of it, else its hidden states."""
        if batch.taught is not None:
            return _Kept(self, batch.taught)
        return _Asked(self, self._states(batch))

    def numbers(self, batch: MicroBatch) -> torch.Tensor:
        """[N, 2 K + 2] float32, what is kept of a micro-batch: of each trained position the ids of the K likeliest tokens, their
        log-probabilities and that of all others together (0 where there are none), at the temperature; and the log-probability
        of the target, at 1. Ids are exact in float32 up to 2^24.
        """
        targets = batch.targets[batch.targets != NO_TARGET].to(self.policy.core.device)
        states = self._states(batch).tensor_split(batch.head_chunks)
        parts = zip(states, targets.tensor_split(batch.head_chunks), strict=True)
        return torch.cat([_Asked(self, part).numbers(own) for part, own in parts])

    def _states(self, batch: MicroBatch) -> torch.Tensor:
        return self.policy.states(batch if self.flat or batch.layout == "padded" else padded(batch))


class _Asked:
    """Of hidden states [n, D] of the teacher (or what `Policy.states` gives): its head is computed for a piece when this is compared."""

    def __init__(self, teacher: Teacher, states: torch.Tensor) -> None:
        self.teacher, self.states = teacher, states

    def split(self, sizes: Sequence[int]) -> Sequence[Lesson]:
        return [_Asked(self.teacher, part) for part in torch.split(self.states, list(sizes))]

    def compared(self, logits: torch.Tensor, targets: torch.Tensor) -> Compared:
        how, words = self.teacher.how, self.teacher.words
        if how.top_k is not None:
            return _Kept(self.teacher, self.numbers(targets)).compared(logits, targets)
        own, logits = self._logits(), logits[:, :words]
        with torch.no_grad():
            softened = (own / how.temperature).log_softmax(-1)
            said, agreed = _log_probability(own, targets), own.argmax(-1) == logits.argmax(-1)
        return Compared(divergence(softened, (logits / how.temperature).log_softmax(-1), how), said, agreed)

    @torch.no_grad()
    def numbers(self, targets: torch.Tensor) -> torch.Tensor:
        """As `Teacher.numbers`."""
        assert self.teacher.how.top_k is not None
        logits = self._logits()
        ids, logs = likeliest(logits / self.teacher.how.temperature, self.teacher.how.top_k)
        rest = logs.new_zeros(len(logs), ids.shape[-1] + 1 - logs.shape[-1])
        return torch.cat([ids.float(), logs, rest, _log_probability(logits, targets)[:, None]], -1)

    @torch.no_grad()
    def _logits(self) -> torch.Tensor:
        """[n, W] float32"""
        return self.teacher.policy.logits(self.states)[:, : self.teacher.words].float()


class _Kept:
    """Of what is kept of the teacher, [n, 2 K + 2] as `Teacher.numbers` has it."""

    def __init__(self, teacher: Teacher, numbers: torch.Tensor) -> None:
        self.teacher, self.kept = teacher, numbers

    def split(self, sizes: Sequence[int]) -> Sequence[Lesson]:
        return [_Kept(self.teacher, part) for part in torch.split(self.kept, list(sizes))]

    def compared(self, logits: torch.Tensor, targets: torch.Tensor) -> Compared:
        del targets
        how, kept, logits = self.teacher.how, self.kept.to(logits.device), logits[:, : self.teacher.words]
        half = kept.shape[-1] // 2
        ids, logs, said = torch.split(kept, [half - 1, half, 1], -1)
        ids = ids.long()
        own = parted(logits / how.temperature, ids)
        agreed = ids[:, 0] == logits.detach().argmax(-1)
        return Compared(divergence(logs[:, : own.shape[-1]], own, how), said[:, 0], agreed)


def _log_probability(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return -torch.nn.functional.cross_entropy(logits, targets, reduction="none")


def padded(batch: MicroBatch) -> MicroBatch:
    """A flat micro-batch with a document a row, padded on the right. The trained positions keep their order."""

    def rows(whole: torch.Tensor, fill: int) -> torch.Tensor:
        parts = list(torch.split(whole[0], batch.lengths))
        return torch.nn.utils.rnn.pad_sequence(parts, batch_first=True, padding_value=fill)

    return replace(
        batch,
        input_ids=rows(batch.input_ids, 0),
        position_ids=rows(batch.position_ids, 0),
        targets=rows(batch.targets, NO_TARGET),
        rows=rows(batch.rows, 0),
        layout="padded",
    )
