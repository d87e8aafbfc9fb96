"""S14: tokens, keys and passwords of the user are in nothing that luthier writes, prints, or starts."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.table import Table

from luthier.config import load
from luthier.data.chat.template import Template
from luthier.errors import UserError
from luthier.system.console import Screen
from luthier.system.secrets import held_in, redacted, secrets, without_secrets
from luthier.system.streams import show
from tests.helpers.command_line import luthier as command
from tests.helpers.killing import write_config
from tests.helpers.processes import ENVIRONMENT, ROOT
from tests.security.code import calls

FAKE = {
    "HF_TOKEN": "hf_" + "aQ3" * 12,
    "HUGGING_FACE_HUB_TOKEN": "old-hub-token-0123456789",
    "WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567",
    "MLFLOW_TRACKING_PASSWORD": "correct-horse-battery",
    "OPENAI_API_KEY": "sk-proj-0123456789abcdefghij",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEY",
    "COMET_API_KEY": "comet-0123456789-abcdef",
    "GITHUB_TOKEN": "ghp_" + "0aB" * 12,
    "AZURE_STORAGE_KEY": "/abcdefghij0123456789abcdefghij0123456789abcdefghij0123456789abcdefghij0123456789ab==",
    "GITHUB_PAT": "github-pat-by-another-form",
    "PGPASSWORD": "post-gres-password",
    "OPENAI_KEY": "sk-of-some-other-form-0123",
}
KEPT = "token-that-hf-auth-login-keeps"


@pytest.fixture
def seeded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in FAKE.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "token").write_text(KEPT + "\n")
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "token"))


def test_s14_what_is_a_secret(tmp_path: Path) -> None:
    plain = {
        "PWD": "/home/somebody/work",
        "PASSWORD_STORE_DIR": "/home/somebody/.password-store",
        "TOKENIZERS_PARALLELISM": "false-false",
        "HF_TOKEN_PATH": "/home/somebody/token",
        "SECRET_SANTA_LIST_NAMES": "alice, bob, carol",
        "MY_TOKEN": "true",
        "XDG_SESSION_KEYRING": "0123456789abc",
        "GOOGLE_APPLICATION_CREDENTIALS": str(tmp_path),
        "EOS_TOKEN": "<|endoftext|>",
        "MY_PAD_TOKEN": "[padding-token]",
        "ROLE_TOKEN": "<|start_of_role|>",
        "STOP_TOKEN": "the end of it",
        "SORT_KEY": "created_at_date",
        "HF_HOME": str(tmp_path),
    }
    assert secrets(plain) == {}
    assert set(secrets(plain | FAKE).values()) == set(FAKE)


NAMES = (
    "data/opus-en-sk-sentences-2024-cleaned.jsonl",
    "hf:org/sk-wikipedia-instructions-2024",
    "sk-Wikipedia-Instructions-2024-and-2025-cleaned",
    "sk-WikipediaInstructionsCleaned2024",
    "sk-" + "a-" * 200_000,
)


@pytest.mark.parametrize("name", NAMES)
def test_s14_names_are_no_tokens(name: str) -> None:
    assert held_in(name) == ""
    assert redacted(name) == name


@pytest.mark.parametrize("begin", ["sk-", "sk-proj-", "sk-proj-a_b-", "sk-ant-api03-", "sk-svcacct-"])
def test_s14_tokens_that_no_variable_holds(begin: str) -> None:
    key = begin + "aB3dE5fG7hJ9kL1mN2pQ" + "-_xY4zA6"
    assert redacted(f"see {key}: no") == "see [token]: no"
    assert held_in(key) == "a token"


def test_s14_the_login_lies_where_the_hub_library_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for place, environment in (
        ("xdg/huggingface", {"XDG_CACHE_HOME": str(tmp_path / "xdg")}),
        ("hub", {"HF_HOME": "~/hub"}),
        ("other", {"HF_HOME": "$HOME/other"}),
        (".cache/huggingface", {}),
    ):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "token").write_text(f"kept-by-{place}")
        assert secrets(environment) == {f"kept-by-{place}": "the hub's token"}


def test_s14_results_and_tables_are_redacted(seeded: None, capfd: pytest.CaptureFixture[str]) -> None:
    value = FAKE["WANDB_API_KEY"]
    show(f"a result with {value}")
    table = Table("column")
    table.add_row(f"with {value}")
    Screen(width=80).print(table, f"[bold]{value}")
    shown = capfd.readouterr().out
    assert value not in shown
    assert shown.count("[WANDB_API_KEY]") == 3


def test_s14_errors_and_progress_are_redacted(seeded: None, capfd: pytest.CaptureFixture[str]) -> None:
    for value in (*FAKE.values(), KEPT):
        assert command("download", f"hf:{value}") == 2
        assert command("download", f"no/such/{value}/place") == 2
        assert command("train", "model=m", f"data=https://me:{value}@host/x") == 2
    shown = "".join(capfd.readouterr())
    assert not [value for value in (*FAKE.values(), KEPT) if value in shown]
    assert "[HF_TOKEN]" in shown
    assert redacted("https://me:secret@host/x") == "https://[password]@host/x"
    assert redacted("hf_" + "x" * 34) == "[token]"


@pytest.mark.prove
def test_s14_a_traceback_is_redacted(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "luthier", "chat", f"hf:{FAKE['HF_TOKEN']}", "--debug"],
        env={**os.environ, **ENVIRONMENT, **FAKE}, capture_output=True, text=True, cwd=tmp_path, check=False, timeout=60,
    )  # fmt: skip
    assert "Traceback" in done.stderr
    assert "[HF_TOKEN]" in done.stderr
    assert FAKE["HF_TOKEN"] not in done.stderr + done.stdout


@pytest.mark.parametrize("key", ["model", "data", "output_dir", "training.sample_prompts", "data.system"])
def test_s14_a_configuration_holds_none(key: str, seeded: None, tmp_path: Path) -> None:
    """It is kept in the run's folder, shown to trackers, and compared line by line at a resume."""
    base = ["model=m", "data=d", f"output_dir={tmp_path / 'run'}"]
    for name, value in FAKE.items():
        with pytest.raises(UserError) as caught:
            load(None, [*base, f"{key}=[a, 'see {value}']" if "prompts" in key else f"{key}=x/{value}"])
        assert name in str(caught.value)
        assert value not in str(caught.value)
    assert held_in("Say https://a:b@c") == "", "a text that speaks of an address is none"
    assert held_in("https://a:b@c") == "a password"


def test_s14_what_strangers_wrote_runs_without_them(seeded: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process of a chat template: its environment, as the system shows it."""
    monkeypatch.setenv("OF_NO_KNOWN_NAME", "some-value-of-the-users")
    monkeypatch.setenv("LUTHIER_DATABASE", "postgres://me:secret@host/x")
    with Template("{{ messages[0].content }}", "x", {}) as template:
        template._started()
        assert template._sandbox is not None
        environment = Path(f"/proc/{template._sandbox._process.pid}/environ").read_bytes()
    assert b"PATH=" in environment
    assert not [
        name for name, value in FAKE.items() if f"{name}=".encode() in environment or value.encode() in environment
    ]
    assert b"some-value-of-the-users" not in environment
    assert b"postgres" not in environment
    assert without_secrets().keys() & FAKE.keys() == set()


def test_s14_no_child_inherits_them_by_chance() -> None:
    """Each process that is started says with which environment."""
    ours = {
        "models/sources/package_index.py": "pip, which may need the index's token",
        "demo/flow.py": "luthier itself",
    }
    assert [
        f"{file}:{call.lineno}"
        for file, call in calls("Popen", "run")
        if ast.unparse(call.func).startswith("subprocess.") and file not in ours
        if "env" not in {keyword.arg for keyword in call.keywords}
    ] == []


RUN = """
import os, sys
log = open(sys.argv.pop(1), "a")
sys.addaudithook(lambda event, given: event == "subprocess.Popen" and print(given[1], file=log, flush=True))
from luthier.cli import main
sys.exit(main())
"""


@pytest.mark.prove
def test_s14_a_whole_run_with_trackers(tmp_path: Path) -> None:
    """Nothing of eight secrets in all that a run, a failed run, an export and a page write and print, wandb's files among it."""
    pytest.importorskip("wandb")
    config = write_config(tmp_path)
    (tmp_path / "token").write_text(KEPT)
    variables = {
        **os.environ,
        **ENVIRONMENT,
        **FAKE,
        "HF_TOKEN_PATH": str(tmp_path / "token"),
        "HF_HUB_OFFLINE": "1",
        "WANDB_MODE": "offline",
        "LUTHIER_CACHE": str(tmp_path / "cache"),
        "HOME": str(tmp_path),
        "PYTHONPATH": str(ROOT),
    }
    run, shown = tmp_path / "run", ""
    keys = ["training.num_train_epochs=1", "training.max_steps=2", "save_steps=1"]
    for arguments, code in (
        (["train", config, f"output_dir={run}", *keys, "report_to=[wandb, tensorboard, mlflow]"], 0),
        (["train", config, f"output_dir={tmp_path / 'failed'}", "model=org/not-here"], 3),
        (["export", run, "--to", "merged", "--output", tmp_path / "merged", "--unproven"], 0),
        (["data", config, "--html", tmp_path / "page.html"], 0),
        (["doctor", "--json"], 0),
    ):
        done = subprocess.run(
            [sys.executable, "-c", RUN, tmp_path / "started", *map(str, arguments)],
            env=variables, capture_output=True, text=True, check=False, timeout=300, cwd=tmp_path,
        )  # fmt: skip
        assert done.returncode == code, done.stderr
        shown += done.stdout + done.stderr
    assert list((run / "wandb").rglob("*.wandb")), "a tracker has written"
    files = [path for path in tmp_path.rglob("*") if path.is_file() and path != tmp_path / "token"]
    assert (tmp_path / "started") in files
    for value in (*FAKE.values(), KEPT):
        assert value not in shown
        assert not [str(path) for path in files if value.encode() in path.read_bytes()], value
