"""The maps are true: a file that a page, a docstring or a comment names is there, and what it says to be in a file is in it."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "luthier"
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
CODE = sorted(path for folder in ("src", "tests", "benchmarks", "docs") for path in (ROOT / folder).rglob("*.py"))

EXTEND = ROOT / "docs" / "extend.md"
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
PLACE = r"(?:\[[^\]]*\]\((?P<link>[^)#\s]+\.py)\)|`(?P<path>[\w./-]+\.py)`)"
PAIR = re.compile(
    rf"(?P<symbols>`[A-Za-z_][\w.]*(?:\(\))?`(?:,\s`[A-Za-z_][\w.]*(?:\(\))?`)*),?\s+\(?(?:stands |is |lies |lie )?in\s+{PLACE}"
)
"""`Steps` in [data/steps/order.py](...), `Start` (in `tuning/__init__.py`)"""
DOTTED = re.compile(r"`(luthier(?:\.\w+)+)`|(?<![\w.])(luthier(?:\.\w+){2,})(?![\w(]|\.\w)")
FILE = re.compile(r"(?<![\w/.{*@-])((?:[\w.-]+/)*[\w-]+\.(?:py|md|jinja))(?![\w*])")
MARKED = re.compile(r"`([A-Za-z_][\w.]*)(?:\(\))?`")
OF_LIBRARIES = {
    "batch_decode",
    "core_model_loading",
    "convert_and_load_state_dict_in_model",
    "fsspec",
    "ijson",
    "split_torch_state_dict_into_shards",
    "xopen",
}
SUPERLATIVE = re.compile(
    r"[^.:;]*\b(?:the|this\s+is\s+the)\s+(?:one|only|single)\s+(?:place|file|module|table|dynamic\s+import)\b[^.:;]*"
)

EXAMPLES = {
    "mine.jinja",
    "NAME.jinja",
    "VERSION.jinja",
    "a_b.py",
    "losses.py",
    "my_package/short_answers.py",
    "luthier/tuning/lora.py",
}
"""Names of files that a reader may have, or would write."""
ARCHITECTURE = {"config.py", "model.py", "tokenizer.py", "_parts.py"}
"""What the page on extending calls files of any architecture."""
RECIPES = set(re.findall(r"^`([\w/]+\.(?:py|jinja))`\n\n```", EXTEND.read_text(encoding="utf-8"), re.MULTILINE))

SEARCHED: dict[str, tuple[str, set[str]]] = {
    "the only place of luthier that opens a pickle": (r"\btorch\.load\(", {"models/sources/pickled_child.py"}),
}
"""What says of itself that it is the only one: a pattern, and the files of luthier in which it is found."""


def texts(path: Path) -> Iterator[str]:
    """What a file says to its readers: of code, comments and docstrings."""
    content = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        yield FENCE.sub("", content)
        return
    comments = [
        token.string
        for token in tokenize.generate_tokens(io.StringIO(content).readline)
        if token.type == tokenize.COMMENT
    ]
    yield "\n".join(comments)
    for node in ast.walk(ast.parse(content)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.value.value


def found(name: str, path: Path) -> list[Path]:
    """Files that are meant by a name in `path`: beside it, or from the root of the repository or of the package."""
    homes = (path.parent, path.parent / "architectures", ROOT, SOURCE, SOURCE / "templates")
    return [home / name for home in homes if (home / name).is_file()]


@cache
def defined(path: Path) -> frozenset[str]:
    """Names that a module makes or hands on, and `Class.name` for what is in its classes."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return frozenset(names)


@pytest.mark.parametrize("path", [*PAGES, *CODE], ids=lambda path: path.relative_to(ROOT).as_posix())
def test_files_that_are_named_are_there(path: Path) -> None:
    wrong = []
    for text in texts(path):
        for name in FILE.findall(re.sub(r"\[[^\]]*\]\([^)]*\)|https?://\S+", "", text)):
            known = EXAMPLES | (ARCHITECTURE | RECIPES if path.name == "extend.md" else set())
            if path.parent.name == "architectures":
                known |= ARCHITECTURE
            if name not in known and not found(name, path):
                wrong.append(name)
    assert not wrong


def pairs() -> Iterator[tuple[Path, str, str]]:
    for path in [*PAGES, *CODE]:
        for text in texts(path):
            for match in PAIR.finditer(text):
                symbols = re.findall(r"[A-Za-z_][\w.]*", match["symbols"])
                yield from ((path, symbol, match["link"] or match["path"]) for symbol in symbols)


def test_what_is_said_to_be_in_a_file_is_in_it() -> None:
    looked_at = list(pairs())
    assert len(looked_at) > 15
    wrong = []
    for path, symbol, name in looked_at:
        if not any(symbol.rpartition(".")[2] in defined(file) for file in found(name, path)):
            wrong.append(f"{path.relative_to(ROOT)}: `{symbol}` in {name}")
    assert not wrong, "\n".join(wrong)


def test_dotted_names_lead_to_something() -> None:
    """`luthier.training.loop.run_steps`: a module, or a name in one."""
    looked_at, wrong = 0, []
    for path in [*PAGES, *CODE]:
        for text in texts(path):
            text = re.sub(r"[\w.]+\.(?:json|jinja|yaml)\b", "", text)
            for match in DOTTED.finditer(text):
                looked_at += 1
                if not leads_somewhere((match[1] or match[2]).split(".")[1:]):
                    wrong.append(f"{path.relative_to(ROOT)}: {match[0]}")
    assert looked_at >= 5
    assert not wrong, "\n".join(wrong)


def leads_somewhere(parts: list[str]) -> bool:
    place = SOURCE
    for number, part in enumerate(parts):
        if (place / part).is_dir():
            place /= part
            continue
        file = place / f"{part}.py"
        rest = parts[number + 1 :] if file.is_file() else parts[number:]
        file = file if file.is_file() else place / "__init__.py"
        return not rest or rest[0] in defined(file) or rest[0] in file.read_text(encoding="utf-8")
    return True


def words_of_code() -> set[str]:
    """All words of the code but for those in comments and docstrings, and of the code on the page on extending."""
    words = set()
    for path in CODE:
        words |= set(re.findall(r"\w+", path.relative_to(ROOT).as_posix()))
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                node.value.value = ""  # a docstring
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                words |= set(re.findall(r"\w+", node.value))
            for field in ("id", "attr", "name", "arg", "module", "asname"):
                if isinstance(word := getattr(node, field, None), str):
                    words |= set(word.split("."))
    others = [EXTEND, *(SOURCE / "templates").glob("*.jinja"), *(ROOT / "examples").rglob("*.yaml")]
    return words.union(*(re.findall(r"\w+", code_of(path)) for path in others))


def code_of(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    return "\n".join(FENCE.findall(text)) if path.suffix == ".md" else text


def test_words_in_code_marks_are_words_of_the_code() -> None:
    """A name that is gone, or has become another, is told of nowhere."""
    known = words_of_code() | OF_LIBRARIES
    wrong = [
        f"{path.relative_to(ROOT)}: `{marked}`"
        for path in [*PAGES, *CODE]
        for text in texts(path)
        for marked in MARKED.findall(text)
        if not set(marked.removesuffix("KIND").split(".")) - {""} <= known
    ]
    assert not wrong, "\n".join(wrong)


def test_what_is_said_to_be_the_only_one_is() -> None:
    """A sentence that says so is known here, with the search that shows it."""
    claims = [
        (path.relative_to(ROOT), " ".join(match[0].split()))
        for path in [*PAGES, *SOURCE.rglob("*.py")]
        for text in texts(path)
        for match in SUPERLATIVE.finditer(text)
    ]
    unknown = [claim for claim in claims if not any(known in claim[1] for known in SEARCHED)]
    assert not unknown
    for sentence, (pattern, files) in SEARCHED.items():
        assert any(sentence in text for _, text in claims), f"nobody says any more: {sentence}"
        there = {
            path.relative_to(SOURCE).as_posix()
            for path in SOURCE.rglob("*.py")
            if re.search(pattern, path.read_text(encoding="utf-8"))
        }
        assert there == files, sentence


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_a_link_that_looks_like_a_file_leads_to_it(path: Path) -> None:
    links = re.findall(r"\[([\w/.\\-]+\.(?:py|md))\]\(([^)#\s]+)\)", path.read_text(encoding="utf-8"))
    assert not [(text, target) for text, target in links if not f"/{target}".endswith("/" + text.replace("\\", ""))]
