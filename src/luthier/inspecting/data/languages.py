"""Languages and scripts of what is trained, by a random sample of rows.

Languages are told by py3langid (Lui and Baldwin 2012), whose model comes with the package. It is sure of sentences, not of
single words, and knows no programming languages; scripts are counted and need no guess.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from luthier.data.dataset.samples import SampleSet
from luthier.inspecting.data.duplicates import Decode
from luthier.randomness import permutation
from luthier.types import NO_TARGET

SAMPLED_ROWS = 2_000
MOST_CHARACTERS = 2_000
"""Of one answer: more tell nothing new."""
FEWEST_LETTERS = 12
SURE = 0.5
"""Probability from which a language is named: more likely than all others together."""
UNSURE, TOO_SHORT = "unsure", "too short"


@dataclass(frozen=True)
class LanguageMix:
    """Of the answers of a sample of rows."""

    rows: int
    rows_looked_at: int
    languages: dict[str, int]
    """ISO 639 code, `unsure` or `too short` -> rows, the most frequent first"""
    scripts: dict[str, float]
    """script -> share of all letters"""


def language_mix(samples: SampleSet, decode: Decode, rows: int = SAMPLED_ROWS) -> LanguageMix:
    """Looks at the trained tokens of at most `rows` rows, drawn at random (the same ones each time)."""
    chosen = [int(row) for row in permutation(samples.examples, 0, "languages")[:rows]]
    texts = [text[:MOST_CHARACTERS] for text in decode([_trained_ids(samples, row) for row in sorted(chosen)])]
    scripts = Counter(script for text in texts for character in text if (script := script_of(character)))
    letters = sum(scripts.values())
    return LanguageMix(
        rows=samples.examples,
        rows_looked_at=len(chosen),
        languages=dict(Counter(map(language_of, texts)).most_common()),
        scripts={script: count / letters for script, count in scripts.most_common()},
    )


def _trained_ids(samples: SampleSet, row: int) -> list[int]:
    """What is learned of a row, in all samples that it gave."""
    own = (samples[index].targets for index in samples.members_of([row]))
    return [int(target) for targets in own for target in targets if target != NO_TARGET]


@lru_cache(maxsize=1 << 16)
def script_of(character: str) -> str:
    """`Latin`, `CJK`, `Cyrillic` and so on: the first word of a letter's Unicode name; "" for what is no letter."""
    plain = unicodedata.normalize("NFKC", character)[:1]
    if not plain.isalpha():
        return ""
    name = unicodedata.name(plain, "").partition(" ")[0]
    return name if name == "CJK" else name.capitalize()


def language_of(text: str) -> str:
    """The code of the language of a text, or that it cannot be told."""
    if sum(map(str.isalpha, text)) < (FEWEST_LETTERS if text.isascii() else FEWEST_LETTERS // 3):
        return TOO_SHORT
    label, probability = _identifier().classify(text)
    return str(label) if probability >= SURE else UNSURE


@lru_cache(maxsize=1)
def _identifier() -> Any:
    """Loaded once: it takes a second."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
