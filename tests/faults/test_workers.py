"""Data that several processes encode: the disk fails, or one of them is stopped or killed."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.faults.conftest import Small, Whole, different, emptied, unhit
from tests.faults.test_disk import ERRORS, gone_on, told_wrongly
from tests.helpers.faults import Commands, Ended, Plan, What
from tests.helpers.killing import WORDS

ROWS = 7_000
"""Fourteen chunks: when half of them are written, two are not given to the two workers yet, however fast these are."""

pytestmark = pytest.mark.prove


@pytest.fixture(scope="module")
def large(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Small:
    """A run of one step with data for which two processes are started."""
    folder = tmp_path_factory.mktemp("large").resolve()
    rng = random.Random(1)
    rows = [{"instruction": " ".join(rng.choices(WORDS, k=6)), "output": rng.choice(WORDS)} for _ in range(ROWS)]
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    (folder / "mine.yaml").write_text(f"""
model: {{path: {small.folder / "model"}, dtype: float32}}
data: {{train: {folder / "train.jsonl"}, num_workers: 2}}
tuning: {{kind: lora, r: 4}}
training: {{max_steps: 1, global_batch_size: 4, learning_rate: 1e-3}}
output_dir: unused
""")
    return replace(small, folder=folder)


@pytest.fixture(scope="module")
def large_whole(large: Small, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    return unhit(large, tmp_path_factory.mktemp("large-whole"))


@pytest.mark.parametrize("part", [1, 2, 3, 4])
def test_encoding_at_any_operation(part: int, large: Small, large_whole: Whole, tmp_path: Path) -> None:
    run, wrong = tmp_path.resolve() / "place" / "run", list[str]()
    numbers = [at for at, (_, path) in enumerate(large_whole.operations, 1) if "/encoded/" in path]
    assert len(numbers) > 20
    for at in numbers[part - 1 :: 10]:
        emptied(run)
        hit = at % 3  # ten and three have no common measure, so each part has all three
        plan = (
            Plan(What.KILL, at),
            Plan(What.KILL_IN_THE_MIDDLE, at),
            Plan(What.FAIL_ONCE, at, ERRORS["ENOSPC"]),
        )[hit]
        ended = large.train(run, plan=plan)
        operation = large_whole.operations[at - 1]
        if hit < 2:
            assert ended.code == -signal.SIGKILL, ended.said
        elif ended.code:
            wrong += [f"{at}: {operation}: {why}" for why in told_wrongly(ended, "ENOSPC", run)]
        wrong += [f"{at}: {operation}: {why}" for why in gone_on(large, run, large_whole)]
    assert not wrong, "\n".join(wrong)


def begun(large: Small, whole: Whole, run: Path) -> tuple[int, list[int]]:
    """The process that encodes, stopped while it writes encoded rows, and those that work for it."""
    emptied(run)
    writes = [at for at, (name, path) in enumerate(whole.operations, 1) if name == "write" and "/encoded/" in path]
    at = writes[len(writes) // 2]  # the first are of the arrays' beginnings, before there are workers
    plan = Plan(What.SIGNAL, at, signal.SIGSTOP)
    pid = large.commands.start(large.command(run), plan, under=(run.parent,), LUTHIER_CACHE=str(large.cache(run)))
    Commands.wait_until_stopped(pid)
    workers = list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))
    assert len(workers) >= 2
    return pid, workers


def ended(large: Small) -> Ended:
    found = large.commands.ended()
    assert "Traceback" not in found.said, found.said
    return found


def waiting(large: Small, whole: Whole, run: Path) -> tuple[int, list[int]]:
    """As `begun`, and it waits for those who work for it, who are stopped; it has said so."""
    pid, workers = begun(large, whole, run)
    for worker in workers:
        os.kill(worker, signal.SIGSTOP)
    os.kill(pid, signal.SIGCONT)
    while "kill -CONT" not in large.commands.said():
        time.sleep(0.05)
    return pid, workers


def test_a_stopped_worker_is_told_of_and_goes_on(large: Small, large_whole: Whole, tmp_path: Path) -> None:
    run = tmp_path.resolve() / "place" / "run"
    _, workers = waiting(large, large_whole, run)
    for worker in workers:
        os.kill(worker, signal.SIGCONT)
    assert ended(large).code == 0
    assert not different(run, large_whole)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)])
def test_ctrl_c_ends_also_where_a_worker_is_stopped(
    number: int, code: int, large: Small, large_whole: Whole, tmp_path: Path
) -> None:
    run = tmp_path.resolve() / "place" / "run"
    pid, _ = waiting(large, large_whole, run)
    os.kill(pid, number)
    assert ended(large).code == code
    assert not gone_on(large, run, large_whole)


@pytest.mark.parametrize("which", ["one", "all"])
def test_a_killed_worker(which: str, large: Small, large_whole: Whole, tmp_path: Path) -> None:
    run = tmp_path.resolve() / "place" / "run"
    pid, workers = begun(large, large_whole, run)
    for worker in workers if which == "all" else workers[:1]:
        os.kill(worker, signal.SIGKILL)
    os.kill(pid, signal.SIGCONT)
    found = ended(large)
    assert found.code == 3, found.said
    assert "a process that encodes was ended" in found.said
    assert not gone_on(large, run, large_whole)
