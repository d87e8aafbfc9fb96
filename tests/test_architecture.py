"""The rules of the code, as assertions."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from luthier.component import listing

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "luthier"
FILES = sorted(SOURCE.rglob("*.py"))
ALL_FILES = sorted(
    path for folder in ("src", "tests", "benchmarks", "examples") for path in (ROOT / folder).rglob("*.py")
)
MODULES = {
    path.relative_to(SOURCE).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__"): path
    for path in FILES
}
"""Dotted names below `luthier`."""
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}
MOST_LINES = 450

FAMILIES = ("formats", "objectives", "tuning", "quantization", "optimizers", "engines")
"""Folders of components, which never import each other."""

ORDER: tuple[tuple[str, ...], ...] = (
    ("types", "errors", "randomness"),
    ("system",),
    ("component",),
    ("kernels",),
    ("config",),
    FAMILIES,
    ("models",),
    ("export",),
    ("policy",),
    ("data",),
    ("planning",),
    ("runs",),
    ("inference",),
    ("training",),
    ("inspecting",),
    ("reporting",),
    ("api",),
    ("demo",),
    ("cli",),
    ("__main__",),
)
"""The folders of the house, from the ground up: imports go to an earlier one. The first and the fifth floor have several
rooms; those of the ground may know each other."""

MOST_MODULES_AT_THE_TOP = 8

MODEL_FAMILIES = (
    "llama",
    "qwen",
    "mistral",
    "mixtral",
    "gemma",
    "phi",
    "falcon",
    "bloom",
    "gpt_neox",
    "gptneox",
    "gpt2",
    "smollm",
    "lfm2",
    "granite",
    "nemotron",
    "deepseek",
    "baichuan",
    "chatglm",
    "glm",
    "internlm",
    "yi",
    "olmo",
    "opt",
    "mamba",
    "jamba",
    "cohere",
    "mpt",
    "starcoder",
    "gptj",
    "gpt_oss",
    "minicpm",
    "exaone",
    "stablelm",
    "rwkv",
    "xlnet",
    "bert",
    "dbrx",
    "zamba",
    "bamba",
)
ALLOWED_FAMILY_WORDS = {
    ("models/sources/package_index.py", "smollm"),  # the name of a package, with its pinned hash
    ("models/sources/resolve.py", "smollm"),  # the same, in a message
    ("models/sources/gguf.py", "gpt2"),  # a kind of tokenizer in GGUF's header
    ("models/gguf_tokenizer.py", "gpt2"),  # the same
    ("models/gguf_tokenizer.py", "llama"),  # GGUF's word for the plainest model, under any tokenizer
    ("models/flat.py", "mamba"),  # the beginning of a key in configurations of many families
    ("models/settings.py", "llama"),  # an example in a message
}


def name_of(path: Path) -> str:
    return path.relative_to(SOURCE).as_posix()


def folder_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """luthier's modules that a file imports, as dotted names below `luthier`; those for type checkers too."""
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "luthier":
            base = node.module.partition(".")[2]
            for alias in node.names:
                full = f"{base}.{alias.name}".strip(".")
                yield (full if full in MODULES else base), node.lineno
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("luthier."):
                    yield alias.name.partition(".")[2], node.lineno


def test_every_folder_has_its_place() -> None:
    there = {folder_of(path) for path in FILES} - {"__init__"}
    known = {name for floor in ORDER for name in floor}
    assert there <= known, f"give these a place in ORDER: {sorted(there - known)}"
    top = [path.name for path in FILES if path.parent == SOURCE]
    assert len(top) <= MOST_MODULES_AT_THE_TOP, top


def test_imports_run_one_way() -> None:
    floors = {name: number for number, floor in enumerate(ORDER) for name in floor}
    wrong = []
    for path in FILES:
        if (here := folder_of(path)) == "__init__":
            continue  # the face of the package hands on what lies above
        for target, line in imports(path):
            there = target.split(".")[0]
            same_floor = floors[here] == floors[there] and here != there and here not in ORDER[0]
            if floors[there] > floors[here] or same_floor:
                wrong.append(f"{name_of(path)}:{line} imports {target}")
    assert not wrong, "\n".join(wrong)


def test_no_files_import_each_other_in_a_circle() -> None:
    arrows = {name: {target for target, _ in imports(path)} & MODULES.keys() for name, path in MODULES.items()}
    open_ends = dict(arrows)
    while leaves := {name for name, targets in open_ends.items() if not targets & open_ends.keys()}:
        open_ends = {name: targets for name, targets in open_ends.items() if name not in leaves}
    assert not open_ends, {name: sorted(targets & open_ends.keys()) for name, targets in open_ends.items()}


def test_no_component_imports_another_of_its_family() -> None:
    wrong = [
        f"{name_of(path)}:{line} imports {target}"
        for path in FILES
        if (parts := path.relative_to(SOURCE).parts)[0] in (*FAMILIES, "export")
        for target, line in imports(path)
        if target.split(".")[0] == parts[0] and "." in target and not target.split(".")[1].startswith("_")
    ]
    assert not wrong, "\n".join(wrong)


def test_what_lies_in_an_underscore_is_its_own_folders() -> None:
    """Such a file is for those beside it (and below them); what others use has a public place."""
    wrong = [
        f"{name_of(path)}:{line} imports {target}"
        for path in FILES
        for target, line in imports(path)
        for parts in [target.split(".")]
        for depth, part in enumerate(parts)
        if part.startswith("_") and list(path.relative_to(SOURCE).parts[:depth]) != parts[:depth]
        if target not in IMPORTED_ALL_THE_SAME
    ]
    assert not wrong, "\n".join(wrong)


IMPORTED_ALL_THE_SAME = {"data.readers._bytes", "export._parts"}
"""Of these `data/files.py` opens what the readers read, and `inference/verified_export.py` is the only one who exports."""


def documentation(tree: ast.AST) -> set[int]:
    """Ids of the strings that only say something to a reader: docstrings, and strings that stand alone."""
    return {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }


def code_words(path: Path) -> Iterator[tuple[str, int]]:
    """Names and strings of the code, without documentation."""
    skipped = documentation(TREES[path])
    for node in ast.walk(TREES[path]):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in skipped:
            yield node.value, line
        for field in ("id", "attr", "name", "arg"):
            if isinstance(word := getattr(node, field, None), str):
                yield word, line


def test_model_families_are_named_only_in_their_folders() -> None:
    """A word with a version after it is one too (`qwen3`); demo/ writes the requests of people, who name models.
    llama.cpp is an engine.
    """
    families = r"(?<![a-z])(" + "|".join(MODEL_FAMILIES) + r")(?:[-_]?\d[\w.]*)?(?![a-z])(?![.-]cpp)"
    pattern = re.compile(families, re.IGNORECASE)
    wrong = set()
    for path in FILES:
        name = name_of(path)
        if name.startswith(("models/architectures/", "models/patches/", "demo/")):
            continue
        for text, line in code_words(path):
            for match in pattern.finditer(text):
                if (name, match[1].lower()) not in ALLOWED_FAMILY_WORDS:
                    wrong.add(f"{name}:{line} names {match[0]}: {text[:60]!r}")
    assert not wrong, "\n".join(sorted(wrong))


KINDS = {
    kind: {path for path in FILES if path.parts[-2:] == (family, f"{kind}.py")}
    for family in (*FAMILIES, "export")
    for kind in listing(family)
    if kind not in ("text", "messages", "adapter", "merged")
}
"""The kinds of all families and their files, but for those that are everyday words of the code as well."""

MAY_NAME_KINDS = {
    "config/components.py": "what is meant where nothing is said",
    "config/other_tools.py": "our words for another tool's",
    "config/foreign_values.py": "the same of its values",
    "config/foreign_files.py": "the same of its data sets",
    "data/columns.py": "what columns with names of their own are proposed to be read as",
    "data/registry.py": "our words for LLaMA-Factory's registry, some of whose words are like ours",
    "demo/requests.py": "writes configurations, as a person does",
    "inference/chat.py": "whose context is full: no kind",
}


def test_no_kind_is_named_outside_of_its_own_file() -> None:
    """So a new kind is one file: what there is to know of it, its class says."""
    assert {"lora", "full", "sft", "adamw", "ddp", "nf4", "alpaca"} <= KINDS.keys()
    wrong = [
        f"{name_of(path)}:{node.lineno} names {node.value!r}"
        for path in FILES
        if name_of(path) not in MAY_NAME_KINDS
        for skipped in [documentation(TREES[path])]
        for node in ast.walk(TREES[path])
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in skipped
        if node.value in KINDS and path not in KINDS[node.value]
    ]
    assert not wrong, "\n".join(wrong)
    assert MAY_NAME_KINDS.keys() <= {name_of(path) for path in FILES}


def test_no_file_is_longer_than_a_reader_bears() -> None:
    long = {
        str(path.relative_to(ROOT)): lines
        for path in ALL_FILES
        if (lines := path.read_text(encoding="utf-8").count("\n")) > MOST_LINES
    }
    assert not long


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


OPENS_PICKLES = "models/sources/pickled_child.py"
"""Runs in a process of its own, where a user asks for it, with torch's loader for weights alone."""


def test_the_one_opener_of_pickles_takes_tensors_alone() -> None:
    calls_of_it = list(calls(SOURCE / OPENS_PICKLES))
    (load,) = [call for function, call in calls_of_it if function == "torch.load"]
    assert "weights_only=True" in ast.unparse(load)
    assert not [function for function, _ in calls_of_it if "pickle" in function]
    assert not [path for path in FILES for target, _ in imports(path) if target == "models.sources.pickled_child"]


def test_nothing_is_pickled_and_no_shell_is_used() -> None:
    wrong = []
    for path in FILES:
        if name_of(path) == OPENS_PICKLES:
            continue
        for node in ast.walk(TREES[path]):
            names = (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else []
            )
            wrong += [
                f"{name_of(path)}:{node.lineno} imports {name}"
                for name in names
                if name.split(".")[0] in ("pickle", "dill", "joblib", "cloudpickle", "shelve", "marshal")
            ]
        for function, call in calls(path):
            on = {
                keyword.arg
                for keyword in call.keywords
                if not (isinstance(keyword.value, ast.Constant) and keyword.value.value is False)
            }
            if function in ("torch.load", "torch.save", "os.system", "os.popen", "eval", "exec") or on & {
                "shell",
                "allow_pickle",
            }:
                wrong.append(f"{name_of(path)}:{call.lineno} calls {function}")
    assert not wrong, "\n".join(wrong)


def test_no_broad_except() -> None:
    """The exceptions are the top of the command line, which turns what is left into an exit code; where an exception is
    looked at, whether it is a fault of the machine or of a damaged file (libraries in Rust raise a bare one), and one of ours is
    raised in its place, or it is raised again; and where a stranger's module is imported, which may raise anything."""
    allowed = {
        "cli/__init__.py": ["Exception"],
        "system/faults.py": ["Exception", "BaseException"],
        "system/modules.py": ["Exception", "SystemExit"],
    }
    wrong = []
    for path in FILES:
        for node in ast.walk(TREES[path]):
            if isinstance(node, ast.ExceptHandler):
                caught = (
                    [] if node.type is None else node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
                )
                names = [ast.unparse(kind) for kind in caught]
                if (node.type is None or {"Exception", "BaseException"} & set(names)) and not (
                    names and set(names) <= set(allowed.get(name_of(path), ()))
                ):
                    wrong.append(f"{name_of(path)}:{node.lineno}")
    assert not wrong, "\n".join(wrong)
    assert all((SOURCE / name).read_text(encoding="utf-8").count("Exception") >= 1 for name in allowed)


def test_environment_variables_are_read_in_their_places_only() -> None:
    wrong = []
    for path in FILES:
        name = name_of(path)
        if name.startswith(("engines/", "system/", "cli/")):
            continue
        wrong += [
            f"{name}:{node.lineno}"
            for node in ast.walk(TREES[path])
            if (isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv", "putenv"))
            or (
                isinstance(node, ast.ImportFrom)
                and node.module == "os"
                and {alias.name for alias in node.names} & {"environ", "getenv"}
            )
        ]
    assert not wrong, "\n".join(wrong)


def test_functions_stay_short() -> None:
    long = [
        f"{name_of(path)}:{node.lineno} {node.name} has {lines} lines"
        for path in FILES
        for node in ast.walk(TREES[path])
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and (lines := (node.end_lineno or 0) - node.lineno + 1) > 60
    ]
    assert not long, "\n".join(long)


def test_nothing_is_left_to_do() -> None:
    words = re.compile(r"\b(" + "|".join(["TO" + "DO", "FIX" + "ME", "X" * 3, "H" + "ACK"]) + r")\b")
    wrong = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in ALL_FILES
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if words.search(line)
    ]
    assert not wrong, wrong
