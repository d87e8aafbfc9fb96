"""Every tracker of the `tracking` extra, run for real, on files, and read back. Nothing here reaches a network."""

from __future__ import annotations

import json
import sqlite3
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from luthier import config
from luthier.errors import EnvironmentProblem
from luthier.runs import trackers
from luthier.runs.recorder import Recorder

EXPECTED = {
    "train/loss": {1: 1.0, 2: 0.5, 3: 0.25},
    "eval/loss": {0: 2.0, 3: 1.5},
    "speed/tokens_per_s": {1: 300.0, 2: 300.0, 3: 300.0},
}
Found = dict[str, dict[int, float]]


@pytest.fixture(autouse=True)
def _no_accounts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As on a machine where nobody has set anything up; wandb is offline because the *user* says so."""
    for name in ("MLFLOW_TRACKING_URI", "WANDB_API_KEY", "TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))


def run_config(*report_to: str) -> config.RunConfig:
    tree = {"model": "org/name", "data": "train.jsonl", "output_dir": "runs/mine", "report_to": list(report_to)}
    return config.from_dict(tree)


def record(folder: Path, tracker: str, steps: range = range(1, 4), start: int = 0) -> None:
    with Recorder(folder, run_config(tracker), total_steps=3, start_step=start, quiet=True) as recorder:
        if start == 0:
            recorder.evaluation({"step": 0, "eval_loss": 2.0})
        for step in steps:
            line = {"step": step, "loss": 2.0 ** (1 - step), "grad_norm": None}
            recorder.step(line, {"step_s": 0.5, "tokens_per_s": 300.0, "memory_bytes": 10**9})
        recorder.evaluation({"step": steps[-1], "eval_loss": 1.5})


def chosen(found: Found) -> Found:
    return {name: found.get(name, {}) for name in EXPECTED}


def read_tensorboard(folder: Path) -> Found:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = reader.EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return {name: {event.step: event.value for event in events.Scalars(name)} for name in events.Tags()["scalars"]}


def test_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    record(tmp_path / "mine", "tensorboard")
    assert chosen(read_tensorboard(tmp_path / "mine")) == EXPECTED


def test_tensorboard_forgets_what_a_killed_run_logged_after_its_checkpoint(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    record(tmp_path / "mine", "tensorboard", range(1, 3))
    record(tmp_path / "mine", "tensorboard", range(2, 4), start=1)
    assert read_tensorboard(tmp_path / "mine")["train/loss"] == EXPECTED["train/loss"]
    assert read_tensorboard(tmp_path / "mine")["eval/loss"] == EXPECTED["eval/loss"], "that of step 2 is gone"


def wandb_records(path: Path) -> Iterator[Any]:
    """The records of a .wandb file: a log of LevelDB's form, blocks of 32 KiB, after a header of 7 bytes."""
    pb = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    raw, place, pieces = path.read_bytes(), 7, b""
    while place + 7 <= len(raw):
        rest = 32768 - place % 32768
        if rest < 7:
            place += rest
            continue
        _, length, kind = struct.unpack_from("<IHB", raw, place)
        pieces += raw[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or last piece
            record = pb.Record()
            record.ParseFromString(pieces)
            pieces = b""
            yield record


@pytest.mark.prove
def test_wandb_offline(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    record(tmp_path / "mine", "wandb")
    (log,) = (tmp_path / "mine" / "wandb").glob("offline-run-*/*.wandb")
    deadline = time.monotonic() + 60
    while not any(entry.HasField("exit") for entry in wandb_records(log)):  # its own process writes the file
        assert time.monotonic() < deadline
        time.sleep(0.1)
    found: Found = {}
    settings: set[str] = set()
    for entry in wandb_records(log):
        if entry.HasField("history"):
            items = {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in entry.history.item}
            for name, value in items.items():
                found.setdefault(name, {})[items["_step"]] = value
        for update in entry.run.config.update if entry.HasField("run") else entry.config.update:
            settings.add("/".join(update.nested_key) or update.key)
    assert chosen(found) == EXPECTED
    assert "training.learning_rate" in settings


@pytest.mark.prove
def test_mlflow_and_a_resumed_run_goes_on_in_the_same_place(tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    folder = tmp_path / "mine"
    try:
        record(folder, "mlflow", range(1, 3))
        record(folder, "mlflow", range(3, 4), start=2)
        client = mlflow.MlflowClient()
        (run,) = client.search_runs([client.get_experiment_by_name("luthier").experiment_id])
        found = {name: {point.step: point.value for point in client.get_metric_history(run.info.run_id, name)}
                 for name in run.data.metrics}  # fmt: skip
    finally:
        mlflow.set_tracking_uri(None)
    assert (folder / "mlflow.db").is_file(), "in the run's own folder, where nobody has chosen a server"
    assert (run.info.run_name, run.info.status) == ("mine", "FINISHED")
    assert run.data.params["tuning.kind"] == "lora"
    assert found["train/loss"] == EXPECTED["train/loss"]
    assert found["eval/loss"] == {0: 2.0, 2: 1.5, 3: 1.5}


def test_trackio(tmp_path: Path) -> None:
    trackio = pytest.importorskip("trackio")
    from trackio import utils

    record(tmp_path / "mine", "trackio")
    databases = list(Path(utils.TRACKIO_DIR).glob("luthier.db"))
    assert databases, "trackio reads its folder once, when it is imported"
    with sqlite3.connect(databases[0]) as connection:
        rows = connection.execute("SELECT step, metrics FROM metrics ORDER BY step").fetchall()
    found: Found = {}
    for step, metrics in rows:
        for name, value in json.loads(metrics).items():
            found.setdefault(name, {})[step] = value
    assert chosen(found) == EXPECTED
    assert trackio.__version__


def test_a_missing_package_is_named_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = trackers.importlib.util.find_spec
    gone = {"wandb", "swanlab"}
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None if name in gone else known(name))
    with pytest.raises(EnvironmentProblem) as problem:
        Recorder(tmp_path, run_config("wandb", "swanlab"), total_steps=1)
    assert problem.value.fix == "pip install wandb swanlab, or leave it out of report_to"
    assert "report_to: wandb and swanlab are not installed here" in str(problem.value)
    with pytest.raises(EnvironmentProblem, match="wandb is not installed here") as problem:
        trackers.check_trackers(["wandb"])
    assert problem.value.fix == "pip install wandb, or leave it out of report_to"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.prove
def test_wandb_without_a_login_is_told_before_torch_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys are looked for as wandb itself does, and no server is asked."""
    pytest.importorskip("wandb")
    for name in ("WANDB_MODE", "WANDB_IDENTITY_TOKEN_FILE", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    (tmp_path / "d.jsonl").write_text('{"instruction": "a", "output": "b"}\n')

    def done(code: str) -> subprocess.CompletedProcess[str]:
        given = [sys.executable, "-c", f"{code}; assert 'torch' not in sys.modules; sys.exit(found)"]
        return subprocess.run(given, capture_output=True, text=True, check=False, timeout=120, cwd=tmp_path)

    words = ["train", "model=model", "data=d.jsonl", "chat_template=chatml", "report_to=wandb", "output_dir=new"]
    told = done(f"import sys; from luthier.cli import main; found = main({words})")
    assert told.returncode == 3, told.stderr
    assert "report_to: wandb: it did not start: nobody is logged in" in told.stderr
    assert "fix: wandb login, or WANDB_MODE=offline before the command" in told.stderr
    assert not (tmp_path / "new").exists()
    asks = "import sys; from luthier.runs import trackers; found = trackers.check_logins(['wandb'])"
    for name, value in (("WANDB_MODE", "offline"), ("WANDB_API_KEY", "0" * 40)):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            assert done(asks).returncode == 0, name


def test_a_tracker_that_fails_on_the_way_does_not_end_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tensorboard")
    recorder = Recorder(tmp_path, run_config("tensorboard"), total_steps=2)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    recorder._trackers._trackers["tensorboard"].log = full
    for step in (1, 2):
        recorder.step({"step": step, "loss": 1.0}, {})
    recorder.close()
    assert capsys.readouterr().out.count("tensorboard failed and gets nothing more: [Errno 28]") == 1
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


def test_trackers_leave_the_process_as_it_was(tmp_path: Path) -> None:
    """accelerate's state would set thread counts and may start a process group: none is left behind."""
    pytest.importorskip("tensorboard")
    import torch
    from accelerate.state import PartialState

    before = (dict(PartialState._shared_state), torch.get_num_threads())
    record(tmp_path, "tensorboard")
    assert (dict(PartialState._shared_state), torch.get_num_threads()) == before
    assert not torch.distributed.is_initialized()


def test_nothing_is_sent_home(tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    from mlflow.telemetry.utils import is_telemetry_disabled

    assert is_telemetry_disabled()
    assert not [thread.name for thread in threading.enumerate() if "elemetry" in thread.name]
