"""The hub's client, for real: `luthier download` in its own process, against a server on loopback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from luthier.models.sources.hub import is_name, is_wanted
from tests.helpers.hub_server import HubServer, Repo, files_of
from tests.helpers.tiny_models import tiny_llama

NAME = "org/tiny"
WEIGHTS = "model.safetensors"


class Machine:
    """A user's machine: its own caches, and a hub."""

    def __init__(self, home: Path, hub: HubServer) -> None:
        self.home = home
        self.hub = hub

    def run(self, code: str, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        environment = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("HF_", "LUTHIER_")) and "proxy" not in key.lower()
        }
        environment |= {
            "HF_ENDPOINT": self.hub.url,
            "HF_HOME": str(self.home / "hf"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "LUTHIER_CACHE": str(self.home / "luthier"),
            **env,
        }
        return subprocess.run(
            [sys.executable, "-c", code, *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def download(self, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        done = self.run("import sys; from luthier.cli import main; sys.exit(main())", "download", *arguments, **env)
        assert "Traceback" not in done.stderr
        return done

    def get(self, *arguments: str, **env: str) -> dict[str, Any]:
        done = self.download(*arguments, "--json", **env)
        assert done.returncode == 0, done.stderr
        return dict(json.loads(done.stdout))


@pytest.fixture(scope="module")
def model_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return files_of(tiny_llama(tmp_path_factory.mktemp("model")))


@pytest.fixture
def machine(tmp_path: Path, model_files: dict[str, bytes]) -> Iterator[Machine]:
    with HubServer() as hub:
        hub.repos[NAME] = Repo()
        hub.repos[NAME].commit(model_files, "main")
        yield Machine(tmp_path, hub)


def test_a_model_is_fetched_whole_and_its_commit_is_known(machine: Machine, model_files: dict[str, bytes]) -> None:
    facts = machine.get(NAME)
    assert facts["commit"] == machine.hub.repos[NAME].refs["main"]
    assert facts["model"] == f"hf:{NAME}"
    assert facts["dtype"] == "F32"
    assert facts["parameters"] == 139_584
    assert files_of(Path(facts["folder"])) == model_files


@pytest.mark.prove
def test_a_second_download_fetches_no_file_again(machine: Machine) -> None:
    machine.get(NAME)
    machine.hub.requests.clear()
    machine.get(NAME)
    assert [path for _, path, _ in machine.hub.requests] == [f"/api/models/{NAME}"]


@pytest.mark.prove
def test_only_files_that_are_needed_and_safe_are_fetched(machine: Machine, model_files: dict[str, bytes]) -> None:
    others = {
        "pytorch_model.bin": b"pickle",
        "modeling_tiny.py": b"print(1)",
        "original/params.json": b"{}",
        "a.onnx": b"x",
        "consolidated.safetensors": b"x",
        "README.md": b"hello",
        "tf_model.h5": b"x",
    }
    machine.hub.repos[NAME].commit({**model_files, **others}, "main")
    plain = machine.get(NAME)
    assert set(files_of(Path(plain["folder"]))) == set(model_files)
    trusted = machine.get(f"{NAME}@{plain['commit']}", "--trust-remote-code")
    assert set(files_of(Path(trusted["folder"]))) == {*model_files, "modeling_tiny.py"}


@pytest.mark.prove
def test_a_broken_download_is_resumed_where_it_broke(machine: Machine, tmp_path: Path) -> None:
    files = files_of(tiny_llama(tmp_path / "larger", intermediate_size=12_000))  # the client writes pieces of 10 MB
    machine.hub.repos[NAME].commit(files, "main")
    machine.hub.break_once_after[WEIGHTS] = 15_000_000
    facts = machine.get(NAME)
    first, second = machine.hub.fetched(WEIGHTS)
    assert first is None
    assert second is not None
    assert int(second.removeprefix("bytes=").removesuffix("-")) >= 10_000_000
    assert files_of(Path(facts["folder"])) == files


@pytest.mark.prove
def test_a_download_that_breaks_for_good_leaves_nothing_that_is_used(
    machine: Machine, model_files: dict[str, bytes]
) -> None:
    machine.hub.break_always_after[WEIGHTS] = 0
    done = machine.download(NAME)
    assert done.returncode == 3
    assert "broke off" in done.stderr
    assert f"luthier download hf:{NAME}" in done.stderr
    machine.hub.break_always_after.clear()
    machine.hub.requests.clear()
    facts = machine.get(NAME)
    assert files_of(Path(facts["folder"])) == model_files
    assert machine.hub.fetched(WEIGHTS) == [None]
    assert machine.hub.fetched("tokenizer.json") == []


@pytest.mark.prove
@pytest.mark.parametrize("file", [WEIGHTS, "config.json"])
def test_a_wrong_hash_is_found_and_the_file_is_not_kept(
    machine: Machine, model_files: dict[str, bytes], file: str
) -> None:
    machine.hub.corrupt.add(file)
    done = machine.download(NAME)
    assert done.returncode == 3
    assert "wrong hash" in done.stderr
    assert file in done.stderr
    machine.hub.corrupt.clear()
    assert files_of(Path(machine.get(NAME)["folder"])) == model_files


@pytest.mark.prove
def test_a_file_that_changed_on_disk_is_fetched_again(machine: Machine, model_files: dict[str, bytes]) -> None:
    weights = Path(machine.get(NAME)["folder"]) / WEIGHTS
    blob = weights.resolve()
    blob.write_bytes(blob.read_bytes()[:-4096])
    done = machine.download(NAME)
    assert done.returncode == 3
    assert "bytes instead of" in done.stderr
    assert files_of(Path(machine.get(NAME)["folder"])) == model_files


def test_revisions_are_resolved_to_commits(machine: Machine, model_files: dict[str, bytes]) -> None:
    old = machine.hub.repos[NAME].refs["main"]
    new = machine.hub.repos[NAME].commit({**model_files, "generation_config.json": b'{"top_p": 0.5}'}, "main", "v2")
    assert machine.get(NAME, "--revision", "v2")["commit"] == new
    facts = machine.get(NAME, "--revision", old)
    assert facts["commit"] == old
    assert files_of(Path(facts["folder"])) == model_files
    machine.hub.requests.clear()
    machine.get(NAME, "--revision", old)
    assert machine.hub.requests == []  # a commit never changes


def test_a_missing_revision_is_named(machine: Machine) -> None:
    done = machine.download(NAME, "--revision", "v9")
    assert done.returncode == 2
    assert "no revision 'v9'" in done.stderr


def test_a_missing_model_is_named(machine: Machine) -> None:
    done = machine.download("org/absent")
    assert done.returncode == 2
    assert "no such model" in done.stderr
    assert "hf auth login" in done.stderr


@pytest.mark.prove
def test_a_gated_model_says_what_to_do(machine: Machine) -> None:
    machine.hub.repos[NAME].gated = True
    done = machine.download(NAME)
    assert done.returncode == 3
    assert "gated" in done.stderr
    assert "accept the terms" in done.stderr
    assert "hf auth login" in done.stderr


def test_pickled_weights_are_refused_before_anything_is_fetched(
    machine: Machine, model_files: dict[str, bytes]
) -> None:
    files = {name: data for name, data in model_files.items() if name != WEIGHTS}
    machine.hub.repos[NAME].commit({**files, "pytorch_model.bin": b"pickle"}, "main")
    done = machine.download(NAME)
    assert done.returncode == 2
    assert "pickled (pytorch_model.bin)" in done.stderr
    assert not any("/resolve/" in path for _, path, _ in machine.hub.requests)


@pytest.mark.prove
def test_offline_mode_uses_the_earlier_download(machine: Machine) -> None:
    first = machine.get(NAME)
    machine.hub.requests.clear()
    done = machine.download(NAME, "--json", HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == first
    assert "offline mode" in done.stderr
    assert machine.hub.requests == []


@pytest.mark.prove
def test_offline_mode_takes_a_copy_that_another_tool_fetched(machine: Machine) -> None:
    done = machine.run(f"from huggingface_hub import snapshot_download; snapshot_download({NAME!r})")
    assert done.returncode == 0, done.stderr
    assert machine.get(NAME, HF_HUB_OFFLINE="1")["commit"] == machine.hub.repos[NAME].refs["main"]


@pytest.mark.prove
def test_offline_mode_without_a_copy_says_so(machine: Machine) -> None:
    done = machine.download(NAME, HF_HUB_OFFLINE="1")
    assert done.returncode == 3
    assert "no whole copy of main" in done.stderr
    assert "HF_HUB_OFFLINE" in done.stderr


@pytest.mark.prove
def test_a_hub_that_is_down_is_no_obstacle_to_a_model_that_is_here(machine: Machine) -> None:
    first = machine.get(NAME)
    machine.hub.down = True
    done = machine.download(NAME, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == first
    assert "using the copy of commit" in done.stderr


def test_a_hub_out_of_reach_is_an_environment_problem(machine: Machine) -> None:
    done = machine.download(NAME, HF_ENDPOINT="http://127.0.0.1:9")
    assert done.returncode == 3
    assert "out of reach" in done.stderr


@pytest.mark.parametrize(
    ("text", "yes"),
    [
        ("org/name", True),
        ("org/name-1.5_b", True),
        ("name", False),
        ("a/b/c", False),
        ("../name", False),
        ("org/..", False),
        ("org/na me", False),
        ("/org/name", False),
    ],
)
def test_names_of_the_hub(text: str, yes: bool) -> None:
    assert is_name(text) is yes


@pytest.mark.parametrize(
    ("file", "plain", "trusted"),
    [
        ("model-00001-of-00002.safetensors", True, True),
        ("tokenizer.model", True, True),
        ("merges.txt", True, True),
        ("chat_template.jinja", True, True),
        ("additional_chat_templates/tool.jinja", True, True),
        ("pytorch_model.bin", False, False),
        ("code.py", False, True),
        ("sub/code.py", False, True),
        ("model.pt", False, False),
        ("onnx/model.onnx", False, False),
    ],
)
def test_which_files_are_wanted(file: str, plain: bool, trusted: bool) -> None:
    assert is_wanted(file, False) is plain
    assert is_wanted(file, True) is trusted
