"""The command line: discovery, help, exit codes, and the commands that need no model."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from luthier import cli, config
from luthier.cli import main
from luthier.config.documents import Document
from luthier.data.chat import laws
from luthier.errors import UserError
from luthier.inspecting import first_config
from luthier.system import machine
from tests.helpers.tiny_models import save_twin

ALPACA = [{"instruction": f"Say {number}.", "input": "", "output": f"{number}!"} for number in range(120)]


def write_rows(path: Path, rows: list[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def run(*arguments: str, **kwargs: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "luthier", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        **kwargs,
    )  # type: ignore[call-overload,no-any-return]


# Discovery and help


def test_every_file_is_a_command_and_exports_a_function_of_its_name() -> None:
    files = {path.stem for path in cli.FOLDER.glob("*.py") if not path.stem.startswith("_")}
    assert {name.replace(" ", "_") for name in cli.command_names()} == files
    assert {"train", "explain", "config schema", "init", "doctor", "runs"} <= set(cli.command_names())


@pytest.mark.parametrize("name", cli.command_names())
def test_every_help_says_what_it_does_and_has_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*name.split(), "--help"]) == 0
    shown = capsys.readouterr().out
    assert f"luthier {name}" in shown.partition("Example")[2], "an example that calls the command"
    assert "--debug" in shown
    assert len(cli.short_help(name.replace(" ", "_"))) > 10


def test_the_overview_lists_every_command_with_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    for name in cli.command_names():
        assert name.partition(" ")[0] in shown
    assert "luthier train mine.yaml" in shown
    assert main(["config", "--help"]) == 0
    assert "schema" in capsys.readouterr().out


def test_an_unknown_command_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trian"]) == 2
    assert "train" in capsys.readouterr().err


def test_a_new_file_is_a_new_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "greet.py").write_text(
        '"""Greet."""\n\n\ndef greet(name: str) -> None:\n'
        '    """Greet someone.\n\n    Example:\n      luthier greet you\n    """\n    print("hello", name)\n'
    )
    monkeypatch.setattr(cli, "FOLDER", tmp_path)
    monkeypatch.setattr(cli, "__path__", [str(tmp_path)])
    assert main(["greet", "you"]) == 0
    assert capsys.readouterr().out == "hello you\n"


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("luthier 0.")


# How commands end


def test_an_error_of_the_user_is_one_screen_on_stderr(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("model: m\ndata: d.jsonl\noutput_dir: o\ntraining:\n  learnig_rate: 1\n")
    done = run("train", str(path))
    assert done.returncode == 2
    assert done.stdout == ""
    assert f"{path}:5" in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) < 10
    assert "Traceback" in run("train", str(path), "--debug").stderr


def test_wrong_words_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "nothing-there.yaml"]) == 2
    assert "no such file" in capsys.readouterr().err
    assert main(["train", "learning_rate"]) == 2
    assert "key=value" in capsys.readouterr().err
    assert main(["train", "learning_rate=1", "mine.yaml"]) == 2
    assert "before the overrides" in capsys.readouterr().err
    assert main(["train"]) == 2
    assert "model: missing" in capsys.readouterr().err


def add_command(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, body: str) -> None:
    (folder / f"{name}.py").write_text(f'"""{name}."""\n\n\ndef {name}() -> None:\n    """{name}."""\n    {body}\n')
    monkeypatch.setattr(cli, "FOLDER", folder)
    monkeypatch.setattr(cli, "__path__", [str(folder)])


def test_a_bug_says_that_it_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    add_command(tmp_path, monkeypatch, "breaks", "raise ZeroDivisionError('by zero')")
    assert main(["breaks"]) == 1
    shown = capsys.readouterr().err
    assert "ZeroDivisionError: by zero" in shown
    assert "bug of luthier" in shown
    with pytest.raises(ZeroDivisionError):
        main(["breaks", "--debug"])


def test_control_c_ends_with_130(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_command(tmp_path, monkeypatch, "interrupted", "raise KeyboardInterrupt")
    assert main(["interrupted"]) == 130


@pytest.mark.prove
def test_control_c_ends_a_process_without_a_traceback() -> None:
    code = (
        "import sys, time, luthier.cli._shared as s; "
        "s.print_json = lambda _: (print('on', flush=True), time.sleep(60)); "
        "from luthier.cli import main; sys.exit(main(['config', 'schema']))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background job ignores SIGINT, and so would its children: the test may run in one.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "on\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in errors


@pytest.mark.prove
def test_a_closed_pipe_is_quiet() -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "luthier", "explain"],
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        timeout=60,
    )
    os.close(write)
    assert done.returncode == 141
    assert done.stderr == ""


# explain, config schema


def test_explain_prints_keys_and_errors(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "on_long_row"]) == 0
    assert "error, drop, truncate" in capsys.readouterr().out
    assert main(["explain"]) == 0
    assert "training.learning_rate" in capsys.readouterr().out
    assert main(["explain", "learning_rate", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["key"] == "training.learning_rate"
    assert main(["explain", "learnig_rate"]) == 2
    assert 'did you mean "learning_rate"?' in capsys.readouterr().err
    assert main(["explain", "learnig_rate", "--json"]) == 2


def test_explain_takes_words_without_quotes_and_laws_by_the_names_that_are_printed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["explain", "exit", "4"]) == 0
    assert "exit code 4" in capsys.readouterr().out
    for law in laws.NAMES:  # as reports print them, and as messages about rows do
        for words in (law.replace("_", " ").split(), ["law", law]):
            assert main(["explain", *words]) == 0
            assert laws.meaning(law) in capsys.readouterr().out
    assert main(["explain"]) == 0
    assert "\n  marks change nothing: " in capsys.readouterr().out
    assert main(["explain", "marks", "chage", "nothing"]) == 2
    assert 'did you mean "marks change nothing"?' in capsys.readouterr().err
    assert main(["explain", "batch"]) == 2
    assert '"global_batch_size"' in capsys.readouterr().err


def test_config_schema_prints_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "schema"]) == 0
    assert json.loads(capsys.readouterr().out)["title"] == "luthier"


# init


def test_init_writes_a_configuration_that_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "train.jsonl", ALPACA)
    assert main(["init", "train.jsonl", "--model", "org/name"]) == 0
    shown = capsys.readouterr().out
    assert "120 rows, format alpaca" in shown
    assert shown.endswith("next: luthier data mine.yaml, then luthier train mine.yaml\n")
    assert config.load("mine.yaml").training.sample_prompts == ("Say 0.", "Say 1.")
    run_config = config.load("mine.yaml")
    assert (run_config.model.path, run_config.data.train[0].path, run_config.data.eval) == (
        "org/name",
        "train.jsonl",
        0.05,
    )
    assert run_config.training.global_batch_size == 4
    assert config.load("mine.yaml", ["tuning=full"]).training.learning_rate < run_config.training.learning_rate


def test_init_overwrites_nothing_and_writes_nothing_where_it_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "train.jsonl", ALPACA[:3])
    (tmp_path / "mine.yaml").write_text("mine\n")
    assert main(["init", "train.jsonl", "--model", "org/name"]) == 2
    assert "there already" in capsys.readouterr().err
    assert (tmp_path / "mine.yaml").read_text() == "mine\n"
    for arguments in (["nothing.jsonl", "--model", "m"], ["train.jsonl", "--model", "m", "--tuning", "lorra"]):
        assert main(["init", *arguments, "--output", "new.yaml"]) == 2
    assert not (tmp_path / "new.yaml").exists()


def test_init_of_a_small_file_with_bad_rows_says_so(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a: b #c.jsonl", [*ALPACA[:5], {"instruction": "x", "output": ""}])
    (look,) = first_config.look_at_data([str(path)])
    assert (look.rows, look.bad_rows, look.whole) == (6, 1, True)
    assert ":6" in look.first_bad_row
    text = first_config.draft("no", [look], output_dir="on")
    drafted = config.build(Document(first_config.parse_yaml(text, "x").tree, "x"))
    assert (drafted.model.path, drafted.data.train[0].path, drafted.output_dir, drafted.data.eval) == (
        "no",
        str(path),
        "on",
        None,
    )
    assert drafted.training.global_batch_size == 1
    named = write_rows(tmp_path / "qa.jsonl", [{"q": "x", "a": "y"}])
    entry = f"{{path: {named}, format: {{kind: alpaca, instruction: q, output: a}}}}"
    drafted = config.build(first_config.parse_yaml(first_config.draft("no", first_config.look_at_data([entry])), "x"))
    assert drafted.data.train == (config.data_file(entry),)
    assert drafted.output_dir.startswith("runs/qa")
    with pytest.raises(UserError, match="none of its"):
        first_config.look_at_data([str(write_rows(tmp_path / "bad.jsonl", [{"instruction": "x", "output": ""}]))])


# doctor, runs, machine


def test_machine_facts_are_those_of_this_machine() -> None:
    found = machine.look()
    assert 1 <= found.cores <= (os.cpu_count() or 1)
    assert found.memory_bytes is None or found.memory_bytes > 2**28
    assert "torch" in machine.versions()
    assert [machine.size(size) for size in (5, 2048, 5 * 2**20, 3 * 2**29)] == ["5 B", "2 KiB", "5 MiB", "1.5 GiB"]


def test_doctor_of_the_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {"machine", "versions", "device", "dtype", "dtype_reason"} <= set(found)
    assert main(["doctor", "./nothing-there"]) == 2


def test_doctor_says_what_the_suite_has_not_run_with(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert machine.untested() == []
    lines = ["transformers<5,>=4", "torch>=2", "a-package-that-is-not-there", "wandb<0; extra == 'tracking'"]
    monkeypatch.setattr(machine, "requires", lambda name: lines)
    assert main(["doctor"]) == 0
    shown = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("UNTESTED"))
    assert f"transformers {machine.versions()['transformers']} (<5,>=4)" in shown
    assert "a-package-that-is-not-there is not installed" in shown
    assert "torch" not in shown
    assert "wandb" not in shown


@pytest.mark.parametrize(("family", "layout"), [("llama", "flat"), ("lfm2", "padded")])
def test_doctor_proves_the_layout_and_the_invariances(
    family: str, layout: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_twin(tmp_path / "model", family)
    path = tmp_path / "mine.yaml"
    path.write_text(f"model: {tmp_path / 'model'}\ndata: d.jsonl\noutput_dir: o\ntuning: {{r: 2, lora_dropout: 0.2}}\n")
    assert main(["doctor", str(path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["layout"] == layout
    assert len(found["checks"]) == (3 if layout == "flat" else 1)
    assert all(check["passed"] for check in found["checks"])


def write_run(folder: Path, state: str, losses: list[float], evaluation: float | None = None) -> None:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("model: m\n")
    manifest = {"state": state, "base": {"name": "org/name"}, "method": "sft, lora", "total_steps": 9}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    lines = [{"step": step, "loss": loss} for step, loss in enumerate(losses, start=1)]
    lines += [{"step": len(losses), "eval_loss": evaluation}] if evaluation is not None else []
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_runs_lists_what_the_files_say(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "a", "finished", [3.0, 2.5], 2.25)
    write_run(tmp_path / "group" / "b", "running", [3.0])
    write_run(tmp_path / "c", "running", [])
    write_run(tmp_path / "d", "finished", [])
    (tmp_path / "d" / "manifest.json").write_text("{")
    with (tmp_path / "c" / ".luthier-lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert main(["runs", str(tmp_path), "--json"]) == 0
    found = {Path(line["run"]).name: line for line in json.loads(capsys.readouterr().out)}
    assert {name: line["state"] for name, line in found.items()} == {
        "a": "finished",
        "b": "interrupted",
        "c": "running",
        "d": "damaged",
    }
    assert (found["a"]["steps"], found["a"]["loss"], found["a"]["eval_loss"], found["b"]["eval_loss"]) == (
        2,
        2.5,
        2.25,
        None,
    )
    assert main(["runs", str(tmp_path / "a")]) == 0
    assert "2/9" in capsys.readouterr().out
    assert main(["runs", str(tmp_path / "nothing")]) == 2
