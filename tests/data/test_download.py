"""`luthier download --data`, in a process of its own, against a hub on loopback: fetched once, then used without a network."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from luthier.cli import main
from tests.helpers.hub_server import HubServer, Repo
from tests.models.test_hub import Machine

NAME = "org/rows"
ROWS = [{"prompt": f"Say {number}.", "completion": f"{number}!"} for number in range(8)]


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    with HubServer() as hub:
        lines = [json.dumps(row) + "\n" for row in ROWS]
        files = {"train-0.jsonl": "".join(lines[:5]).encode(), "train-1.jsonl": "".join(lines[5:]).encode()}
        hub.repos[f"datasets/{NAME}"] = repo = Repo()
        repo.commit(files, "main")
        yield Machine(tmp_path, hub)


SHOWING_ALL = """
import sys
from luthier.cli import main
from luthier.system import progress
progress.FIRST_S = progress.LINE_EVERY_S = 0.0
sys.exit(main())
"""
COUNT = """
import sys
from luthier.config.reading import data_file
from luthier.data.files import sources
from luthier.errors import LuthierError
try:
    print(len(list(sources(data_file(sys.argv[1]), "data.train")[0].rows())))
except LuthierError as error:
    print(error)
"""


@pytest.mark.prove
def test_a_data_set_is_fetched_ahead_of_time(machine: Machine) -> None:
    before = machine.run(COUNT, f"hf:{NAME}", HF_HUB_OFFLINE="1")
    assert f"luthier download --data hf:{NAME}, where there is a network" in before.stdout
    done = machine.run(SHOWING_ALL, "download", "--data", f"hf:{NAME}", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["rows"], found["columns"]) == (8, "prompt, completion")
    size = sum(map(len, machine.hub.repos[f"datasets/{NAME}"].commits.popitem()[1].values()))
    assert found["bytes"] == size
    first, *told, last = done.stderr.splitlines()
    assert first == f"hf:{NAME}: downloading 2 files, {size} bytes"
    assert f"hf:{NAME}: 0 of 2 files, " in told[0]
    assert last == f"hf:{NAME}: 2 of 2 files, {size} bytes of {size} bytes, 100%"
    assert [len(machine.hub.fetched(f"train-{number}.jsonl")) for number in (0, 1)] == [1, 1]
    again = machine.run(COUNT, f"hf:{NAME}", HF_HUB_OFFLINE="1")
    assert again.stdout == "8\n", again.stderr


@pytest.mark.prove
def test_a_download_that_breaks_off_says_how_to_go_on(machine: Machine) -> None:
    machine.hub.break_always_after["train-1.jsonl"] = 10
    done = machine.download("--data", f"{{path: hf:{NAME}, revision: main}}")
    assert done.returncode == 3, done.stderr
    assert f"luthier download --data '{{path: hf:{NAME}, revision: main}}', where there is a network" in done.stderr


def test_what_download_is_given(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["download"]) == main(["download", "a/b", "--data", "hf:a/b"]) == 2
    assert main(["download", "--data", "org/rows"]) == 2
    assert "luthier download --data hf:org/rows" in capsys.readouterr().err
