"""Judges written configurations by luthier's own parser, and says how sure one can be.

Exact: the answer parses and gives the same RunConfig as the reference, whatever the spelling or order. Fields: of all leaves that the
reference or the answer sets (`training.learning_rate`, `data.train.0.path`, ...), the share on which both agree; so a wish that was
missed counts, and so does one that was invented. An answer that is not a YAML map at all has no field right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from luthier.config import RunConfig, build
from luthier.config.documents import parse_yaml
from luthier.config.reading import normalise
from luthier.demo.requests import Pair
from luthier.errors import UserError
from luthier.inference.intervals import bootstrap_ratio, wilson


@dataclass(frozen=True, slots=True)
class Verdict:
    """One answer against its reference."""

    exact: bool
    right: int
    fields: int


@dataclass(frozen=True, slots=True)
class Share:
    """A share with its 95 % interval; all between 0 and 1."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Figures:
    """What a model did on one set of requests."""

    requests: int
    exact: Share
    fields: Share


@dataclass(frozen=True, slots=True)
class Target:
    """What the demo is held to, on one set of requests."""

    exact: float
    fields: float | None


BASE_MOST_EXACT = 0.05
TARGETS = {"unseen values": Target(0.85, 0.95), "unseen phrasings": Target(0.70, None)}


@dataclass(frozen=True, slots=True)
class Outcome:
    """One set of requests, answered by both models."""

    name: str
    pairs: list[Pair]
    before: list[str]
    after: list[str]
    base: Figures
    tuned: Figures

    @property
    def met(self) -> bool:
        """Whether every target of this set is reached."""
        target = TARGETS[self.name]
        return (
            self.base.exact.value <= BASE_MOST_EXACT
            and self.tuned.exact.value >= target.exact
            and (target.fields is None or self.tuned.fields.value >= target.fields)
        )


def strip_fences(answer: str) -> str:
    """The text between ``` fences where an answer has them, else the whole."""
    before, fence, rest = answer.partition("```")
    if not fence or before.strip():
        return answer.strip()
    first, newline, body = rest.partition("\n")
    body = body if newline and first.strip().lower() in ("", "yaml", "yml") else rest
    return body.partition("```")[0].strip()


def read_tree(answer: str) -> dict[str, Any] | None:
    """The answer as a tree of plain values; None where it is no YAML map."""
    try:
        return parse_yaml(strip_fences(answer), "answer").tree
    except UserError:
        return None


def read_config(answer: str) -> RunConfig | None:
    """The answer as a configuration; None where luthier would refuse it."""
    try:
        return build(parse_yaml(strip_fences(answer), "answer"))
    except UserError:
        return None


def leaves(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Every value of a tree by its dotted path, after luthier's own shorthands are written out and its default kinds filled in."""
    out: dict[str, Any] = {}

    def walk(node: Any, path: str) -> None:
        if not isinstance(node, (Mapping, list, tuple)):
            out[path] = node
            return
        for key, value in node.items() if isinstance(node, Mapping) else enumerate(node):
            walk(value, f"{path}.{key}" if path else str(key))

    walk(normalise(tree), "")
    # The kind of a component inside a section is a default of that section, as its other keys are.
    return {path: value for path, value in out.items() if path.count(".") < 2 or _stands_in(tree, path)}


def _stands_in(tree: Mapping[str, Any], path: str) -> bool:
    """Whether what holds a leaf was written, if as a shorthand."""
    node: Any = tree
    for part in path.split(".")[:-1]:
        if not isinstance(node, Mapping):
            return True
        if part not in node:
            return False
        node = node[part]
    return True


def _written(tree: Mapping[str, Any], found: Mapping[str, Any]) -> set[str]:
    """The leaves that stand in the tree itself: a section that was filled in whole by default is not counted, and `null` is no wish."""
    return {path for path, value in found.items() if path.partition(".")[0] in tree and value is not None}


def judge(reference: str, answer: str) -> Verdict:
    """Compares an answer with the YAML that was wanted.

    Raises:
        UserError: the reference itself is no configuration.
    """
    wanted_tree = parse_yaml(reference, "reference").tree
    wanted = leaves(wanted_tree)
    reference_config = build(parse_yaml(reference, "reference"))
    tree = read_tree(answer)
    if tree is None:
        return Verdict(False, 0, len(_written(wanted_tree, wanted)))
    found = leaves(tree)
    paths = _written(wanted_tree, wanted) | _written(tree, found)
    right = sum(path in wanted and path in found and _same(wanted[path], found[path]) for path in paths)
    return Verdict(read_config(answer) == reference_config, right, len(paths))


def _same(left: Any, right: Any) -> bool:
    """Equal values; a number never equals a truth value (in Python 1 == True)."""
    return isinstance(left, bool) == isinstance(right, bool) and bool(left == right)


def figures(verdicts: Sequence[Verdict], seed: int = 0) -> Figures:
    """Shares over a set of requests: Wilson's interval for exact answers; for fields a bootstrap over whole requests, because the
    fields of one answer hang together."""
    exact, right, fields = (
        np.array([getattr(verdict, name) for verdict in verdicts], dtype=np.int64)
        for name in ("exact", "right", "fields")
    )
    count = len(verdicts)
    return Figures(
        count,
        Share(float(exact.mean()), *wilson(int(exact.sum()), count)),
        Share(float(right.sum() / fields.sum()), *bootstrap_ratio(right, fields, seed)),
    )
