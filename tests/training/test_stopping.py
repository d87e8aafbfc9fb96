"""ctrl-c: the first one finishes the step and saves, and says so at once; the second one stops, and harms nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from luthier.system.files import verify
from tests.helpers.tiny_models import tiny_llama

SLOW_SAVE = """
import sys, time
from luthier.runs import checkpoint
whole = checkpoint.save_file
def save_file(tensors, path):
    if "step-000004" in str(path):
        path.write_bytes(b"half")
        print("saving", flush=True)
        time.sleep(60)
    whole(tensors, path)
checkpoint.save_file = save_file
from luthier.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def config_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stopping")
    tiny_llama(folder / "model")
    rows = [{"instruction": f"Say {number}.", "output": f"{number}!"} for number in range(8)]
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    path = folder / "mine.yaml"
    path.write_text(
        f"model: {folder / 'model'}\ndata: {folder / 'train.jsonl'}\n"
        "training: {max_steps: 100000, save_steps: 2, global_batch_size: 4}\noutput_dir: unused\n"
    )
    return path


def start(code: str, config_file: Path, folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", code, "train", str(config_file), f"output_dir={folder}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        # A shell's background job ignores SIGINT, and so would its children: the test may run in one.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    threading.Timer(120, process.kill).start()
    return process


def until(lines: Iterator[str], words: str) -> str:
    return next(line for line in lines if words in line)


@pytest.mark.prove
def test_the_first_one_finishes_the_step_and_says_so_at_once(config_file: Path, tmp_path: Path) -> None:
    plain = "import sys; from luthier.cli import main; sys.exit(main(sys.argv[1:]))"
    process = start(plain, config_file, tmp_path / "run")
    assert process.stdout is not None
    until(process.stdout, "step      3/")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130
    assert "finishing " in errors
    assert "press ctrl-c again to stop now" in errors
    assert "stopped by ctrl-c; the state is saved" in errors
    assert errors.rstrip().endswith("run/config.yaml --resume")
    assert "Traceback" not in errors


@pytest.mark.prove
def test_the_second_one_stops_in_the_middle_of_a_save(config_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = start(SLOW_SAVE, config_file, folder)
    assert process.stdout is not None
    assert process.stderr is not None
    until(process.stdout, "saving")
    process.send_signal(signal.SIGINT)
    assert "press ctrl-c again" in until(process.stderr, "finishing")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130
    assert "stopping now" in errors
    assert "Traceback" not in errors
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step-000002"]
    assert verify(folder / "checkpoints" / "step-000002") is None
    assert json.loads((folder / "manifest.json").read_text())["state"] == "stopped"
