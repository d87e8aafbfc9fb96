"""A process that has everything imported and forks a `luthier ...` for each line of JSON that it reads: `arguments`, `said` (a
file for what it prints), `plan` (of faults, or null), `variables`, `folder` (where it is run).

Imports take seconds; a fork takes none, so a test can afford hundreds of commands that a fault hits. Prints the id of
each child, and its exit code when it has ended.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import pkgutil
import sys
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM, PreTrainedTokenizerFast  # noqa: F401  (imported lazily)

import luthier
from luthier.cli import main as command
from luthier.training import result

NOT_ARMED = 99
ANSWER_TOKENS = 4
"""Of a sample answer: that it is written is looked at here, not what it says."""


def child(order: dict[str, Any]) -> int:
    os.setpgid(0, 0)
    os.chdir(order["folder"])
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
