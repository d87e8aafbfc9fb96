"""An export, a page, a configuration and the encoding of data on a disk that fails: there is the whole of it or nothing, and
it is said.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.conftest import Small, Whole
from tests.faults.test_disk import ERRORS, told_wrongly
from tests.faults.test_odd_files import snapshot
from tests.helpers.faults import NOTHING, Ended, Plan, What

COMMANDS: dict[str, Callable[[Small, Whole, Path], list[object]]] = {
    "export": lambda small, whole, at: ["export", whole.run, "--to", "merged", "--output", at / "out", "--unproven"],
    "adapter": lambda small, whole, at: ["export", whole.run, "--to", "adapter", "--output", at / "out", "--unproven"],
    "page": lambda small, whole, at: ["data", small.folder / "mine.yaml", "output_dir=x", "--html", at / "out.html"],
    "init": lambda small, whole, at: [*_init(small), at / "out.yaml"],
}
PARTS = 4
HITS = (
    *((kind, What.KILL if kind == "before" else What.KILL_IN_THE_MIDDLE, 0) for kind in ("before", "in the middle")),
    *((name, What.FAIL_ONCE, number) for name, number in ERRORS.items()),
)
"""Each operation is hit by one of them, in turn."""
SPARED = ("/encoded/", "/reports", "/flat/", "unlink ", "rmdir ", "mkdir ")
"""Words of operations that may fail without a word: what is kept for the next time, and what is taken away."""


def _init(small: Small) -> tuple[object, ...]:
    return "init", small.folder / "held.jsonl", "--model", small.folder / "model", "--output"


def run(small: Small, arguments: list[object], at: Path, plan: Plan = NOTHING) -> Ended:
    """The cache of an export was filled by the run; a page fills its own."""
    cache = at / "cache" if "data" in arguments else Small.cache(at)
    return small.commands.run(*arguments, plan=plan, under=(at,), LUTHIER_CACHE=str(cache))


def results(at: Path) -> dict[str, bytes | str]:
    """What was written under a name, without the cache and what lies aside."""
    return {name: value for name, value in snapshot(at).items() if not name.startswith(("cache", ".luthier-"))}


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("page", 0),
        *(pytest.param(name, part, marks=pytest.mark.prove) for name in COMMANDS for part in range(1, PARTS + 1)),
    ],
)
def test_at_every_operation(name: str, part: int, small: Small, whole: Whole, tmp_path: Path) -> None:
    """Part 0 is a few of them."""
    at = tmp_path.resolve() / "place"
    at.mkdir()
    arguments = COMMANDS[name](small, whole, at)
    ended = run(small, arguments, at)
    assert ended.code == 0, ended.said
    made, wrong, count = results(at), list[str](), len(ended.operations)
    assert made
    assert count > 3
    for number in range(part, count + 1, PARTS) if part else range(7, count + 1, 41):
        shutil.rmtree(at)
        at.mkdir()
        kind, what, error = HITS[number % len(HITS)]
        ended = run(small, arguments, at, Plan(what, number, error))
        operation = " ".join(ended.operations[number - 1])
        found = problems(ended, kind, operation, at, made)
        again = run(small, arguments, at) if not results(at) else ended
        if results(at) != made:
            found.append(f"the same command again: {again.code} {again.said[-500:]}")
        found += [f"{path.name} was left" for path in at.glob(".luthier-*")]
        wrong += [f"{number}: {kind}: {operation}: {why}" for why in found]
    assert not wrong, "\n".join(wrong)


def problems(ended: Ended, kind: str, operation: str, at: Path, made: dict[str, bytes | str]) -> list[str]:
    found = [] if results(at) in ({}, made) else [f"half of it is there: {sorted(results(at))}"]
    if kind in ERRORS and (ended.code or not any(word in operation for word in SPARED)):
        found += told_wrongly(ended, kind, at)
    return found
