"""A process that has everything imported and forks a `luthier ...` for each line of JSON that it reads: `arguments`, `said` (a
file for what it prints), `plan` (of faults, or null), `variables`, `folder` (where it is run), `room_bytes` (of memory that it
may ask for beyond what it has, or null).

Imports take seconds; a fork takes none, so a test can afford hundreds of commands that a fault hits. Prints the id of
each child, and its exit code when it has ended.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import pkgutil
import resource
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM, PreTrainedTokenizerFast  # noqa: F401  (imported lazily)

import luthier
from luthier.cli import main as command
from luthier.data.dataset import workers
from luthier.training import result

NOT_ARMED = 99
ANSWER_TOKENS = 4
"""Of a sample answer: that it is written is looked at here, not what it says."""
PATIENCE_S = 0.5
"""Before it is looked whether workers work."""


def child(order: dict[str, Any]) -> int:
    os.setpgid(0, 0)
    os.chdir(order["folder"])
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # also where the tests run in the background, which ignores it
    os.environ.update(order["variables"])
    torch.set_num_threads(1)
    said = os.open(order["said"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(said, 1)
    os.dup2(said, 2)
    if order["plan"]:
        os.environ["LUTHIER_FAULTS"] = order["plan"]
        if ctypes.CDLL(os.environ["LD_PRELOAD"]).faults_arm(order["plan"].encode()):
            return NOT_ARMED
    if order["room_bytes"] is not None:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + order["room_bytes"]
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    code = command(order["arguments"])
    sys.stdout.flush()
    return code


def import_all() -> None:
    for module in pkgutil.walk_packages(luthier.__path__, "luthier."):
        if not module.name.endswith("__main__") and "_child" not in module.name:
            importlib.import_module(module.name)


def main() -> None:
    import_all()
    result.answers.__defaults__ = (ANSWER_TOKENS,)
    workers.PATIENCE_S = PATIENCE_S
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            code = 98
            try:
                code = child(order)
            finally:
                os._exit(code)
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
