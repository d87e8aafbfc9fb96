"""S16, S17: nothing is sent anywhere, and nothing listens, unless the user names a model, data or a tracker of a network."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from luthier.system.outgoing import DECLINED
from tests.helpers.command_line import luthier as command
from tests.helpers.faults import COMPILER
from tests.helpers.killing import write_config
from tests.helpers.processes import ENVIRONMENT, ROOT

SOURCE = Path(__file__).parent.parent / "helpers" / "connects.c"
OF_NETWORKS = (
    "socket.connect",
    "socket.bind",
    "socket.getaddrinfo",
    "socket.sendto",
    "socket.sendmsg",
    "urllib.Request",
)

heard: list[str] | None = None
"""What Python's sockets were asked for, while somebody listens."""


def hear(event: str, given: tuple[Any, ...]) -> None:
    if heard is not None and event in OF_NETWORKS and not isinstance(given[-1], (str, bytes)):
        heard.append(f"{event} {given[1:]}")


sys.addaudithook(hear)


def test_s16_a_look_at_data_asks_no_socket(tmp_path: Path) -> None:
    global heard
    config = write_config(tmp_path)
    heard = []
    try:
        assert command("data", config) == 0
        assert heard == []
    finally:
        heard = None


ALL = """
import json, sys
from luthier.cli import main
for arguments in json.loads(sys.argv[1]):
    print("*", *arguments, flush=True)
    if code := main(arguments):
        sys.exit(f"{arguments}: {code}")
"""


@pytest.mark.prove
@pytest.mark.skipif(COMPILER is None or sys.platform != "linux", reason="needs a C compiler, and Linux")
@pytest.mark.parametrize("without_network", [False, True])
def test_s16_all_commands_say_nothing_to_a_network(without_network: bool, tmp_path: Path) -> None:
    """Counted in the C library, so of every library and child; and all the same where there is no network at all."""
    unshare = shutil.which("unshare")
    alone = [unshare, "--net", "--map-root-user"] if unshare else []
    if without_network and subprocess.run([*alone, "true"], check=False, capture_output=True).returncode != 0:
        pytest.skip("no network namespaces here")
    library, log, config, run = (
        tmp_path / "connects.so",
        tmp_path / "connects",
        write_config(tmp_path),
        tmp_path / "run",
    )
    subprocess.run([COMPILER, "-shared", "-fPIC", "-O1", "-o", library, SOURCE, "-ldl"], check=True)
    export = ["export", str(run), "--output", str(tmp_path / "out")]
    commands = [
        ["doctor", str(tmp_path / "model")],
        [
            "init",
            str(tmp_path / "train.jsonl"),
            "--model",
            str(tmp_path / "model"),
            "--output",
            str(tmp_path / "new.yaml"),
        ],
        ["data", str(config), "--html", str(tmp_path / "page.html")],
        [
            "train",
            str(config),
            f"output_dir={run}",
            "training.max_steps=2",
            "training.num_train_epochs=1",
            "report_to=[tensorboard]",
        ],
        ["eval", str(run), "--data", str(tmp_path / "held.jsonl")],
        ["compare", str(run), "--prompt", "hello", "--max-new-tokens", "2"],
        ["chat", str(run), "--prompt", "hello", "--max-new-tokens", "2"],
        [*export, "--to", "merged", *(["--unproven"] if without_network else [])],  # the proof needs loopback
        ["runs", str(tmp_path)],
    ]
    variables = {
        key: value for key, value in os.environ.items() if key not in DECLINED and not key.startswith("HF_HUB_")
    }
    variables |= {
        **ENVIRONMENT,
        "LD_PRELOAD": str(library),
        "LUTHIER_CONNECTS": str(log),
        "LUTHIER_CACHE": str(tmp_path / "cache"),
    }
    done = subprocess.run(
        [*(alone if without_network else []), sys.executable, "-c", ALL, json.dumps(commands)],
        env=variables, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    said = sorted(set(log.read_text().splitlines())) if log.exists() else []
    # llama.cpp is asked about an export over loopback, in a child that ends with the question (S17).
    assert [line for line in said if line.split()[1] not in ("127.0.0.1", "localhost", "::1")] == []
    asked = not without_network and importlib.util.find_spec("xllamacpp") is not None
    assert ("bind 127.0.0.1" in said) is asked, "what is counted is counted"


def test_s16_telemetry_of_libraries_is_declined() -> None:
    assert all(os.environ[name] == value for name, value in DECLINED.items())
    from huggingface_hub import constants

    assert constants.HF_HUB_DISABLE_TELEMETRY
