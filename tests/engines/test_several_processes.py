"""A whole run on two processes: killed and resumed to the same bits, and the mathematics of the run on one."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from luthier.runs.manifest import sealed
from tests.helpers.killing import (
    STEPS,
    STEPS_PER_EPOCH,
    Worker,
    differences,
    kill,
    kill_and_resume,
    noted,
    outcome,
    rows_of,
    steps_in,
    write_config,
)
from tests.helpers.processes import ENVIRONMENT, ROOT, torchrun, torchrun_command

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def config_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of its own, as its data must not have been encoded before."""
    return write_config(tmp_path_factory.mktemp("several"))


@pytest.fixture(scope="module")
def uninterrupted(worker: Worker, config_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    worker.run(config_file, folder, "new", processes=2)
    assert steps_in(folder) == len(rows_of(folder)) == STEPS
    return folder


def metrics(folder: Path, key: str) -> dict[int, float]:
    """step -> value."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line[key] for line in lines if key in line}


def test_the_processes_agree_on_what_the_first_one_found(uninterrupted: Path) -> None:
    """Data are encoded once; the type and the layout are the same although each process measures for itself."""
    first, second = noted(uninterrupted, 0), noted(uninterrupted, 1)
    assert (first[0], second[0]) == ({"from_cache": False}, {"from_cache": True})
    assert first[1] == second[1]
    assert first[1]["dtype"] == "torch.float32"
    assert first[1]["decisions"] == json.loads((uninterrupted / "manifest.json").read_text())["decisions"]
    assert first[2:] == second[2:]


def test_two_processes_do_the_mathematics_of_one(
    worker: Worker, config_file: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    worker.run(config_file, tmp_path, "new")
    assert rows_of(tmp_path) == rows_of(uninterrupted)
    for key in ("loss", "eval_loss", "eval_token_accuracy", "trained_tokens"):
        assert metrics(uninterrupted, key) == pytest.approx(metrics(tmp_path, key), abs=1e-5)
    want, got = (load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (tmp_path, uninterrupted))
    assert want.keys() == got.keys()
    assert max(float((want[name] - got[name]).abs().max()) for name in want) < 5e-5


@pytest.mark.prove
def test_torchrun_and_the_command_give_the_same_bits(config_file: Path, uninterrupted: Path, tmp_path: Path) -> None:
    done = torchrun("luthier", "train", str(config_file), f"output_dir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr[-3000:]
    assert outcome(tmp_path / "run") == outcome(uninterrupted)
    assert done.stdout.count("method: ") == 1


@pytest.mark.prove
@pytest.mark.parametrize("which", [0, 1])
def test_torchrun_with_one_process_killed(which: int, config_file: Path, uninterrupted: Path, tmp_path: Path) -> None:
    """The other ends as well, within a minute, and the same command goes on to the same bits."""
    run = tmp_path / "run"
    command = torchrun_command("luthier", "train", str(config_file), f"output_dir={run}")
    with subprocess.Popen(
        command,
        env={**os.environ, **ENVIRONMENT},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as started:
        while not (run / "metrics.jsonl").is_file() or steps_in(run) < 7:
            assert started.poll() is None
            time.sleep(0.01)
        children = Path(f"/proc/{started.pid}/task/{started.pid}/children").read_text().split()
        ranks = {Path(f"/proc/{pid}/environ").read_bytes().split(b"\0RANK=")[1][:1]: int(pid) for pid in children}
        os.kill(ranks[str(which).encode()], signal.SIGKILL)
        said, _ = started.communicate(timeout=60)
    assert started.returncode != 0, said
    again = torchrun("luthier", "train", str(config_file), f"output_dir={run}", "--resume")
    assert again.returncode == 0, again.stderr[-3000:]
    assert outcome(run) == outcome(uninterrupted)


@pytest.mark.parametrize(
    ("kills", "seed"), [(1, 1), *(pytest.param(5, seed, marks=pytest.mark.prove) for seed in range(2, 6))]
)
def test_kills(kills: int, seed: int, worker: Worker, config_file: Path, uninterrupted: Path, tmp_path: Path) -> None:
    """Of both processes, or of one, whose end is the other's."""
    killed_at = kill_and_resume(worker, config_file, tmp_path, uninterrupted, kills=kills, seed=seed, processes=2)
    assert min(killed_at) >= STEPS_PER_EPOCH
    cuts = [[line["cut_back"] for line in noted(tmp_path / "chain-0", rank) if "cut_back" in line] for rank in (0, 1)]
    assert cuts[0]
    assert not cuts[1]
    assert rows_of(tmp_path / "chain-0", rank=1) == rows_of(uninterrupted)


@pytest.mark.prove
def test_a_signal_to_one_process_stops_both(
    worker: Worker, config_file: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    pids = worker.start(config_file, folder, "new", processes=2)
    while steps_in(folder) < 7:
        time.sleep(0.001)
    kill(pids[1:], signal.SIGTERM)
    assert worker.exit_codes() == [143, 143]
    assert json.loads((folder / "manifest.json").read_text())["state"] == "stopped"
    worker.run(config_file, folder, "resume", processes=2)
    assert not differences(folder, uninterrupted)


@pytest.mark.prove
def test_a_run_goes_on_with_another_number_of_processes(
    worker: Worker, config_file: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    pids = worker.start(config_file, folder, "new", processes=2)
    while steps_in(folder) < 20:
        time.sleep(0.001)
    kill(pids)
    worker.exit_codes()
    worker.run(config_file, folder, "resume", processes=1)
    assert rows_of(folder) == rows_of(uninterrupted)
    assert metrics(folder, "loss") == pytest.approx(metrics(uninterrupted, "loss"), abs=1e-5)


def test_bad_rows_end_both_processes(worker: Worker, config_file: Path, tmp_path: Path) -> None:
    """The first says why, the second that it was the first."""
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"instruction": "Say.", "output": ""}\n')
    other = tmp_path / "bad.yaml"
    other.write_text(config_file.read_text().replace(str(config_file.parent / "train.jsonl"), str(bad)))
    worker.start(other, tmp_path / "run", "new", processes=2)
    assert worker.exit_codes() == [2, 3]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("times", [1, pytest.param(50, marks=pytest.mark.prove)])
def test_changed_data_end_both_processes(
    times: int, worker: Worker, config_file: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    """One by what it found, the other because the first is gone. Fifty times, as one in twenty once waited for ever: for a thread
    of gloo's that waited for the interpreter's lock.
    """
    folder = tmp_path / "run"
    shutil.copytree(uninterrupted, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    data = manifest["fingerprints"] | {"data": "of other rows"}
    (folder / "manifest.json").write_text(json.dumps(sealed(manifest | {"state": "stopped", "fingerprints": data})))
    for _ in range(times):
        worker.start(config_file, folder, "resume", processes=2)
        assert worker.exit_codes() == [2, 3]
