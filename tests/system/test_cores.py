"""How threads wait is set before torch is there, and what the user set stays; a busy machine is noticed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from luthier import config
from luthier.runs.recorder import read_lines
from luthier.runs.screen import speed
from luthier.system import cores as module
from luthier.system.cores import MOST_CORES, SETTINGS, SPINS, pressure_s, waiting
from luthier.training import run
from tests.helpers.breaking import Broken, break_after
from tests.helpers.tiny_models import tiny_llama

FEW = sys.platform == "linux" and len(os.sched_getaffinity(0)) <= MOST_CORES
LOOK = "import os, luthier; print(os.environ.get('GOMP_SPINCOUNT'))"


def spins_of(program: str, **environment: str) -> str:
    clean = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    done = subprocess.run(
        [sys.executable, "-c", program], env=clean | environment, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.mark.skipif(FEW is False, reason="elsewhere, and on more cores, OpenMP's own way is kept")
def test_threads_spin_briefly_unless_the_user_says_how_they_wait() -> None:
    assert spins_of(LOOK) == SPINS
    assert spins_of(LOOK, GOMP_SPINCOUNT="7") == "7"
    assert spins_of(LOOK, OMP_WAIT_POLICY="active") == "None"


def test_nothing_is_claimed_where_openmp_was_loaded_before() -> None:
    assert spins_of(f"import sys; sys.modules['torch'] = sys; {LOOK}") == "None"


def test_the_record_says_how_threads_wait() -> None:
    assert waiting({"GOMP_SPINCOUNT": "500", "HOME": "/"}) == "GOMP_SPINCOUNT=500"
    assert waiting({"HOME": "/"}) == "as OpenMP does"


@pytest.mark.skipif(pressure_s() is None, reason="the system does not say for how long tasks wait for a core (no PSI)")
def test_more_busy_processes_than_cores_are_noticed() -> None:
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range((os.cpu_count() or 1) + 1)]
    try:
        before = pressure_s()
        time.sleep(2)
        after = pressure_s()
    finally:
        for process in busy:
            process.kill()
            process.wait()
    assert before is not None
    assert after is not None
    assert after - before > 0.5


def test_what_the_system_does_not_say_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd, told = tmp_path / "odd", tmp_path / "told"
    odd.write_text("")
    told.write_text("some avg10=1.00 avg60=0.50 avg300=0.10 total=2500000\nfull avg10=0.00 total=7\n")
    monkeypatch.setattr(module, "PRESSURE", (tmp_path / "absent", odd))
    assert pressure_s() is None
    monkeypatch.setattr(module, "PRESSURE", (tmp_path / "absent", odd, told))
    assert pressure_s() == 2.5


def test_the_line_of_a_step_says_that_the_machine_is_shared() -> None:
    assert speed({"tokens_per_s": 1234.0}) == "1,234 tok/s"
    assert speed({"tokens_per_s": 107.0, "cpu_pressure": 0.01}) == "107 tok/s"
    assert speed({"tokens_per_s": 64.0, "cpu_pressure": 0.36}).startswith("64 tok/s (busy machine: 36%")


def test_a_run_records_how_its_threads_waited_and_for_how_long_tasks_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it was at the last start, also where that was a resume."""
    (tmp_path / "rows.jsonl").write_text('{"prompt": "Say 1.", "completion": "1!"}\n' * 2)
    keys = [
        f"model={tiny_llama(tmp_path / 'model')}",
        f"data={tmp_path / 'rows.jsonl'}",
        f"output_dir={tmp_path / 'run'}",
    ]
    chosen = config.load(None, [*keys, "max_steps=2", "save_steps=1", "dtype=float32"])
    monkeypatch.setenv("GOMP_SPINCOUNT", "500")
    with monkeypatch.context() as patch:
        break_after(1, patch)
        with pytest.raises(Broken):
            run.execute(chosen, say=lambda _: None)
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    folder = run.execute(chosen, resume=True, say=lambda _: None)
    assert json.loads((folder / "manifest.json").read_text())["decisions"]["waiting"].startswith("GOMP_SPINCOUNT=7")
    timings = read_lines(folder / "timings.jsonl")
    assert len(timings) == 2
    assert all((pressure_s() is not None) == (timing.get("cpu_pressure", -1.0) >= 0.0) for timing in timings)
