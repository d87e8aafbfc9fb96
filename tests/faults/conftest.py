"""A small run on a disk that fails: what it needs, and what it must come to."""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.faults import COMPILER, NOTHING, Commands, Ended, Plan
from tests.helpers.killing import WORDS
from tests.helpers.tiny_models import tiny_llama

OWN_TIME = ("timings.jsonl", "report.html")
"""Files of a run that have the time in them."""
OF_THIS_START = ("id", "began", "run", "seal", "config")
"""What a manifest has that no other run's has: its own name and time, and hashes with its folder's in them."""


@dataclass(frozen=True)
class Small:
    """A run of six steps with checkpoints, evaluations and samples, and the commands that come after it."""

    folder: Path
    commands: Commands

    def command(self, run: Path, *more: str) -> tuple[object, ...]:
        return ("train", self.folder / "mine.yaml", f"output_dir={run}", *more)

    def train(self, run: Path, *more: str, plan: Plan = NOTHING, cache: Path | None = None, **how: Any) -> Ended:
        place = str(cache or self.cache(run))
        command = self.command(run, *more)
        return self.commands.run(*command, plan=plan, under=(run.parent,), LUTHIER_CACHE=place, **how)

    @staticmethod
    def cache(run: Path) -> Path:
        """Each run has a cache of its own, so that writing it is part of the run."""
        return run.parent / "cache"


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Small]:
    if COMPILER is None:
        pytest.skip("no C compiler, which builds the injector of faults: apt-get install gcc")
    folder = tmp_path_factory.mktemp("small").resolve()
    tiny_llama(folder / "model")
    rng = random.Random(0)
    rows = [
        {
            "instruction": " ".join(rng.choices(WORDS, k=rng.randint(2, 12))),
            "output": " ".join(rng.choices(WORDS, k=rng.randint(1, 20))),
        }
        for _ in range(14)
    ]
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, rows)) + '\n{"instruction": 7}\n')
    (folder / "held.jsonl").write_text("\n".join(map(json.dumps, rows[:3])) + "\n")
    (folder / "mine.yaml").write_text(f"""
model: {{path: {folder / "model"}, dtype: float32}}
data: {{train: {folder / "train.jsonl"}, eval: {folder / "held.jsonl"}, on_bad_row: drop}}
tuning: {{kind: lora, r: 4, lora_dropout: 0.1}}
training: {{max_steps: 6, global_batch_size: 4, learning_rate: 1e-3, save_steps: 2, save_total_limit: 2, eval_steps: 3,
  max_tokens_per_micro_batch: 60, sample_prompts: [the capital]}}
output_dir: unused
""")
    commands = Commands(folder)
    yield Small(folder, commands)
    commands.close()


@dataclass(frozen=True)
class Whole:
    """A command that nothing hit."""

    run: Path
    operations: list[tuple[str, str]]
    """what it asked of the disk, in order"""

    def first(self, name: str, end: str) -> int:
        """The number, from 1, of the first such operation on a path that ends so."""
        return next(at for at, (one, path) in enumerate(self.operations, 1) if one == name and path.endswith(end))


def unhit(small: Small, folder: Path) -> Whole:
    """The run that nothing hits."""
    run = folder.resolve() / "run"
    ended = small.train(run)
    assert ended.code == 0, ended.said
    return Whole(run, ended.operations)


@pytest.fixture(scope="session")
def whole(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    return unhit(small, tmp_path_factory.mktemp("whole"))


def content(run: Path) -> dict[str, Any]:
    """Every file below a run's folder, without what is of this start alone: times, and the run's own id."""
    found: dict[str, Any] = {}
    for path in sorted(run.rglob("*")):
        name = path.relative_to(run).as_posix()
        if path.is_dir() or path.name in OWN_TIME:
            found[name] = ""
        elif path.name == "manifest.json":
            manifest = json.loads(path.read_text())
            found[name] = {key: value for key, value in manifest.items() if key not in OF_THIS_START}
        elif name == "config.yaml":
            found[name] = re.sub(r"^output_dir:.*$", "", path.read_text(), flags=re.MULTILINE)
        else:
            found[name] = path.read_bytes()
    return found


def different(run: Path, whole: Whole) -> list[str]:
    """The files that one has and the other has not, or has otherwise."""
    one, other = content(run), content(whole.run)
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def emptied(run: Path) -> None:
    shutil.rmtree(run.parent, ignore_errors=True)
    run.parent.mkdir()
