"""Prompts with the answers to other ones: what some objectives measure how far the policy has gone from its beginning by.

They are put together of what is encoded, so that they cost no room: a prompt and an answer are encoded apart, and their ids are
what they would be if the pair stood in the data.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np

from luthier.data.dataset.samples import SampleSet
from luthier.data.dataset.workers import truncated
from luthier.errors import UserError
from luthier.randomness import permutation
from luthier.types import NO_TARGET, Ints, Sample


def mismatched_of(sets: Mapping[str, SampleSet], seed: int, limit: int | None) -> dict[str, SampleSet]:
    """For each set what is surveyed in its place. Raises UserError: all answers of one are the same."""
    found = dict[str, SampleSet]()
    for purpose, samples in sets.items():
        try:
            found[purpose] = Mismatched(samples, seed, limit)
        except UserError as error:
            fix = error.fix or ""
            fix = fix if purpose == "train" else f"a larger data.eval, or {fix}"
            raise UserError(f"data.{purpose}", error.found, error.expected, fix) from None
    return found


class Mismatched(SampleSet):
    """One sample for each of others, at the same place: its prompt, then the answer of its partner, as far as both fit.

    Whose answer it is depends on the seed and the data alone; see `partners`.
    """

    def __init__(self, whole: SampleSet, seed: int, limit: int | None) -> None:
        """Reads all samples once.

        Args:
            limit: tokens of the longest sample that fits; None for no bound.

        Raises:
            UserError: all answers are the same.
        """
        self._whole, self._seed, self._limit = whole, seed, limit
        first, prompts, answers = (np.empty(len(whole), dtype=np.int64) for _ in range(3))
        for place, sample in enumerate(whole):
            first[place] = start = int((sample.targets != NO_TARGET).argmax())
            prompts[place] = _digest(sample.input_ids[: start + 1])
            answers[place] = _digest(sample.input_ids[start + 1 :])
        self._first, self._partners = first, partners(prompts, answers, seed)
        self.lengths = first + (whole.lengths - first)[self._partners]
        self.trained = np.array(whole.trained[self._partners])
        if limit is not None and (cut := np.flatnonzero(self.lengths > limit)).size:
            self.lengths[cut] = limit
            self.trained[cut] = [self.at(int(place)).trained_tokens for place in cut]
        self.groups, self.roles, self.first_samples = whole.groups, whole.roles, whole.first_samples
        # What answers to one prompt share of it: each prompt stands here too, up to its last token, and no answer begins alike.
        lenders = np.maximum.accumulate(np.where(whole.shared == 0, np.arange(len(whole)), 0))
        self.shared = np.minimum(whole.shared, first[lenders] + 1)
        self.prompt_keys, self.row_lines = whole.prompt_keys, whole.row_lines

    @property
    def fingerprint(self) -> str:
        return f"mismatched by {self._seed} up to {self._limit} of {self._whole.fingerprint}"

    def row(self, example: int) -> str:
        return self._whole.row(example)

    def at(self, index: int) -> Sample:
        partner = int(self._partners[index])
        asked, answered, start = self._whole.at(index), self._whole.at(partner), int(self._first[partner])
        before = int(self._first[index])
        ids = np.concatenate([asked.input_ids[: before + 1], answered.input_ids[start + 1 :]])
        targets = np.concatenate([np.full(before, NO_TARGET), answered.targets[start:]])
        sample = Sample(ids, targets, asked.row, asked.example, asked.group, asked.role)
        return sample if self._limit is None else truncated(sample, self._limit)


def partners(prompts: Ints, answers: Ints, seed: int) -> Ints:
    """[N] for each sample the one whose answer it gets: the next one, in an order drawn once, with another answer and another
    prompt; with another answer alone where all that have one share the prompt. Never itself.

    Args:
        prompts, answers: [N] equal numbers for equal ones.

    Raises:
        UserError: all answers are the same.
    """
    order = permutation(len(prompts), seed, "mismatched")
    asked, answered = prompts[order], answers[order]
    to_prompt, to_answer = _to_another(asked), _to_another(answered)
    count = len(order)
    if not count or int(to_answer[0]) == count:
        raise UserError(
            "data",
            "all answers are the same" if count > 1 else "there is one answer alone",
            "different answers: z of the loss kto is measured on prompts with the answers to others",
            "objective.loss=apo_zero_unpaired",
        )
    away = np.zeros(count, dtype=np.int64)
    looking = np.arange(count)
    while looking.size:  # past all that has the same prompt or answer, run by run
        there = (looking + away[looking]) % count
        same_prompt, same_answer = asked[there] == asked[looking], answered[there] == answered[looking]
        jump = np.maximum(np.where(same_prompt, to_prompt[there], 0), np.where(same_answer, to_answer[there], 0))
        away[looking] += jump
        looking = looking[(jump > 0) & (away[looking] < count)]
    away = np.where(away < count, away, to_answer)
    found = np.empty(count, dtype=np.int64)
    found[order] = order[(np.arange(count) + away) % count]
    return found


def _to_another(values: Ints) -> Ints:
    """[N] how far it is from each place, in a circle, to the next with another value than its own; N where there is none."""
    count = len(values)
    twice = np.concatenate([values, values])
    edges = np.append(np.flatnonzero(twice[1:] != twice[:-1]) + 1, 2 * count)
    places = np.arange(count)
    found: Ints = np.minimum(edges[np.searchsorted(edges, places, side="right")] - places, count)
    return found


def _digest(ids: Ints) -> int:
    return int.from_bytes(
        hashlib.blake2b(np.ascontiguousarray(ids).tobytes(), digest_size=8).digest(), "little", signed=True
    )
