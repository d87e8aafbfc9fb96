"""A process that has everything imported and forks a training run for each line `CONFIG FOLDER new|resume PROCESSES`.

Imports take seconds; a fork takes none, so a test can afford many kills. Several processes find each other by a store of
this one's, as torchrun does it. Each child notes what it began with and the rows of every step that it begins.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from luthier import config
from luthier.errors import LuthierError
from luthier.training import build, loop, resume, run
from luthier.training.step import Step
from luthier.training.stop_signal import StopSignal


class Notes:
    """What a process did, beside what it is known for: wraps some functions of the spine, which do as ever."""

    def __init__(self, folder: str, rank: int) -> None:
        self.file, self.rank = Path(folder) / f"noted-{rank}.jsonl", rank
        for owner, name in (
            (loop, "optimizer_step"),
            (build, "prepare"),
            (run, "choose_dtype"),
            (build, "tokens_per_micro_batch"),
            (build, "build_policy"),
            (resume, "cut_back"),
        ):
            setattr(owner, name, getattr(self, name)(getattr(owner, name)))

    def write(self, **what: Any) -> None:
        with self.file.open("a") as file:
            file.write(json.dumps(what) + "\n")

    def optimizer_step(self, whole: Any) -> Any:
        def noted(job: loop.Job, step: Step, stop: StopSignal) -> Any:
            self.write(step=step.number, rows=list(step.examples))
            return whole(job, step, stop)

        return noted

    def prepare(self, whole: Any) -> Any:
        def noted(*arguments: Any, **named: Any) -> Any:
            data = whole(*arguments, **named)
            self.write(from_cache=data.from_cache)
            return data

        return noted

    def choose_dtype(self, whole: Any) -> Any:
        """Each process measures its own machine; here no second one finds what the first does."""

        def other(*arguments: Any) -> Any:
            found, why = whole(*arguments)
            return (torch.bfloat16 if found == torch.float32 else torch.float32) if self.rank else found, why

        return other

    def tokens_per_micro_batch(self, whole: Any) -> Any:
        def other(*arguments: Any) -> int:
            return int(whole(*arguments)) + self.rank

        return other

    def build_policy(self, whole: Any) -> Any:
        def noted(*arguments: Any, **named: Any) -> Any:
            policy, what = whole(*arguments, **named)
            self.write(dtype=str(policy.compute_dtype), decisions=arguments[4])
            return policy, what

        return noted

    def cut_back(self, whole: Any) -> Any:
        def noted(folder: Path, step: int) -> None:
            self.write(cut_back=step)
            whole(folder, step)

        return noted


def child(config_file: str, folder: str, resume: bool, rank: int) -> int:
    Notes(folder, rank)
    try:
        run.execute(config.load(config_file, [f"output_dir={folder}"]), resume=resume, say=lambda text: None)
    except LuthierError as error:
        print(f"[{rank}] {error}", file=sys.stderr, flush=True)
        return error.exit_code
    return 0


def start(config_file: str, folder: str, resume: bool, rank: int, variables: dict[str, str]) -> int:
    """The id of a new process."""
    pid = os.fork()
    if pid:
        return pid
    os.environ.update(variables)
    os.dup2(2, 1)
    code = 1
    try:
        code = child(config_file, folder, resume, rank)
    finally:
        os._exit(code)


def rendezvous(store: distributed.TCPStore, processes: int) -> dict[str, str]:
    """What torchrun tells its processes."""
    return {
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(store.port),
        "WORLD_SIZE": str(processes),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
    }


def wait_for(pids: list[int]) -> list[int]:
    """Exit codes; where one process was killed the others are too, as torchrun does it."""
    codes: dict[int, int] = {}
    while len(codes) < len(pids):
        pid, status = os.wait()
        codes[pid] = os.waitstatus_to_exitcode(status)
        for other in set(pids) - set(codes) if codes[pid] < 0 else ():
            os.kill(other, signal.SIGKILL)
    return [codes[pid] for pid in pids]


def main() -> None:
    for line in sys.stdin:
        config_file, folder, how, count = line.split()
        ranks, places = range(int(count)), [dict[str, str]()]
        if int(count) > 1:
            store = distributed.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
            found = rendezvous(store, int(count))
            places = [{**found, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in ranks]
        pids = [start(config_file, folder, how == "resume", rank, places[rank]) for rank in ranks]
        print(*pids, flush=True)
        print(*wait_for(pids), flush=True)


if __name__ == "__main__":
    main()
