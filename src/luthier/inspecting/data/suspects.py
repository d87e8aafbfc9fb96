"""Rows whose answer probably belongs to another prompt: the run's model is asked how much the prompt helps it.

For each row the answer is scored twice: behind its own prompt, and behind that of another row. The difference is the
pointwise mutual information of prompt and answer under the model. An answer that fits is much likelier behind its own
prompt; one that belongs elsewhere is not. The loss alone would name long and hard answers instead.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from luthier.data.dataset.samples import SampleSet
from luthier.inference.scoring import score_rows
from luthier.randomness import permutation
from luthier.runs.run_folder import SUSPECTS
from luthier.system.faults import faults_told
from luthier.system.files import MANIFEST, as_json, write_file
from luthier.types import NO_TARGET, Ints, Sample

METHOD = 1
"""Of the score: another one makes kept figures void."""
ANSWER_TOKENS = 64
"""Trained tokens of a row that are scored: by then an answer has shown what it is about."""
MOST_PROMPT_TOKENS = 1_024
"""Rows with a longer prompt are not examined: it would be put before another row's answer."""
SCORED_TOKENS = 2_048
"""Most tokens of one forward pass."""
ROWS_AT_A_TIME = 64

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Examined:
    """What the model says of some rows. Each array has one entry an examined row."""

    rows: Ints
    """indices of examples"""
    tokens: Ints
    """answer tokens that were scored"""
    own: Floats
    """- log p(answer | its own prompt), in nats"""
    other: Floats
    """- log p(answer | the prompt of another row)"""

    @property
    def scores(self) -> Floats:
        """The higher, the more suspicious."""
        return suspicion(self.own, self.other, self.tokens)


def suspicion(own: Floats, other: Floats, tokens: Ints) -> Floats:
    """How little the own prompt helps: minus the mutual information of prompt and answer, by the noise of so many tokens.

    The sum over an answer's tokens has a noise that grows with the root of their number. (Chosen by
    benchmarks/planted_faults.py among this, the mean, the sum and the ratio, on another seed than the one reported.)
    """
    return (own - other) / np.sqrt(np.maximum(tokens, 1))


def candidates(samples: SampleSet, losses: Floats, most: int) -> Ints:
    """The rows to examine: all that have a prompt, or of more than `most` those with the highest loss for their length. None
    where all have the same prompt: no other one could be put in its place.

    Args:
        losses: of each row at its last pass, nats per trained token, [examples]; NaN where it was not seen.
    """
    starts = np.array([prompt_tokens(samples[int(first)]) for first in samples.first_samples])
    able = np.flatnonzero((starts > 1) & (starts <= MOST_PROMPT_TOKENS) & ~np.isnan(losses))
    if len(able) > most:
        able = _most_unusual(samples, losses, able, most)
    prompts = {asked(samples, int(row)).input_ids[: starts[row]].tobytes() for row in able}
    return able if len(prompts) > 1 else able[:0]


def _most_unusual(samples: SampleSet, losses: Floats, able: Ints, most: int) -> Ints:
    lengths = np.log1p(samples.by_example(samples.trained)[able].astype(np.float64))
    slope, level = np.polyfit(lengths, losses[able], 1) if len(np.unique(lengths)) > 1 else (0.0, 0.0)
    unusual = losses[able] - (slope * lengths + level)
    return np.sort(able[np.argsort(-unusual, kind="stable")[:most]])


def asked(samples: SampleSet, row: int) -> Sample:
    """The sample that is examined of a row: the first one, whose answer is the first one too."""
    return samples[int(samples.first_samples[row])]


def prompt_tokens(sample: Sample) -> int:
    """Tokens before the first one that is trained."""
    return int((sample.targets != NO_TARGET).argmax()) + 1


def pairs(samples: Sequence[Sample]) -> tuple[list[Sample], list[Sample]]:
    """Each row cut after ANSWER_TOKENS trained tokens; and the same answers, each behind the prompt of another row.

    Not all rows have the same prompt.
    """
    prompts = [sample.input_ids[: prompt_tokens(sample)] for sample in samples]
    own, other = [], []
    for sample, prompt, another in zip(samples, prompts, _other_prompts(prompts), strict=True):
        end = int(np.flatnonzero(sample.targets != NO_TARGET)[:ANSWER_TOKENS][-1]) + 2
        own.append(_behind(prompt, sample, len(prompt), end))
        other.append(_behind(another, sample, len(prompt), end))
    return own, other


def _other_prompts(prompts: Sequence[Ints]) -> list[Ints]:
    """For each prompt one that is not the same: the next such one in a random order."""
    order = [int(index) for index in permutation(len(prompts), 0, "other prompts")]
    out: dict[int, Ints] = {}
    for place, index in enumerate(order):
        following = (prompts[other] for other in order[place + 1 :] + order[:place])
        out[index] = next(prompt for prompt in following if not np.array_equal(prompt, prompts[index]))
    return [out[index] for index in range(len(prompts))]


def _behind(prompt: Ints, sample: Sample, start: int, end: int) -> Sample:
    """The answer `sample[start:end]` behind a prompt. The last token of a prompt is trained to begin the answer."""
    ids = np.concatenate([prompt, sample.input_ids[start:end]])
    targets = np.concatenate([np.full(len(prompt) - 1, NO_TARGET), sample.targets[start - 1 : end - 1], [NO_TARGET]])
    return replace(sample, input_ids=ids, targets=targets)


def examine(
    policy: nn.Module, samples: SampleSet, rows: Ints, progress: Callable[[int], None] = lambda done: None
) -> Examined:
    """Scores the answers of some rows behind their own and another prompt.

    Args:
        policy: the run's model, for padded batches.
        progress: gets the number of answers scored so far, of twice the rows.
    """
    own, other = pairs([asked(samples, row) for row in rows])
    scored: list[Floats] = []
    done = 0
    for side in (own, other):
        order = np.argsort([len(sample) for sample in side], kind="stable")
        nll = np.zeros(len(side))
        for start in range(0, len(side), ROWS_AT_A_TIME):
            part = order[start : start + ROWS_AT_A_TIME]
            chosen = [side[int(index)] for index in part]
            nll[part] = score_rows(policy, chosen, layout="padded", max_tokens=SCORED_TOKENS).nll
            done += len(part)
            progress(done)
        scored.append(nll)
    tokens = np.array([sample.trained_tokens for sample in own], dtype=np.int64)
    return Examined(rows, tokens, *scored)


def tokens_to_score(samples: SampleSet, rows: Ints) -> int:
    """How many tokens `examine` puts through the model."""
    return 2 * sum(len(sample) for sample in pairs([asked(samples, row) for row in rows])[0])


# ---- kept in the run's folder


def key_of(run: Path, fingerprint: str, rows: Ints) -> str:
    """A hash of what decides the figures: the result of the run, the data, the rows, the method."""
    results = [run / name / MANIFEST for name in ("adapter", "model")]
    files = [json.loads(path.read_text(encoding="utf-8")).get("files") for path in results if path.is_file()]
    parts = [METHOD, ANSWER_TOKENS, fingerprint, files, rows.tolist()]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def kept(run: Path, key: str) -> Examined | None:
    """The figures that were made before; None where there are none, or of something else."""
    try:
        found: Any = json.loads((run / SUSPECTS).read_text(encoding="utf-8"))
        if found["key"] != key:
            return None
        rows, tokens = (np.array(found[name], dtype=np.int64) for name in ("rows", "tokens"))
        own, other = (np.array(found[name], dtype=np.float64) for name in ("own", "other"))
    except (OSError, ValueError, KeyError, TypeError):  # not there, or cut off: made anew
        return None
    return Examined(rows, tokens, own, other)


def keep(run: Path, key: str, found: Examined) -> None:
    """Writes the figures into the run's folder, whole or not at all."""
    values = {name: getattr(found, name).tolist() for name in ("rows", "tokens", "own", "other")}
    with faults_told(
        run / SUSPECTS, "room for the figures, which are shown another time", "--suspects 0, or free space"
    ):
        write_file(run / SUSPECTS, as_json({"key": key, **values}))
