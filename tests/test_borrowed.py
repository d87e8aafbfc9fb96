"""What is borrowed: names inside the libraries that are not public, or whose meaning changed between versions.

Each has a probe, which tries what we rely on and fails with a sentence that says what would have to change. The scan finds
what is borrowed in the source, so that nothing is borrowed without a probe. `make newest` runs them against the newest releases.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.helpers import probes_others, probes_transformers
from tests.helpers.probes import PROBES

SOURCE = Path(__file__).parent.parent / "src" / "luthier"
LIBRARIES = (
    "accelerate",
    "bitsandbytes",
    "datasets",
    "gguf",
    "huggingface_hub",
    "peft",
    "torch",
    "transformers",
    "typer",
)

PUBLIC = {
    "datasets.exceptions",
    "huggingface_hub.errors",
    "torch.nn",
    "torch.nn.parallel",
    "torch.nn.utils",
    "torch.utils.checkpoint",
    "transformers.generation",
    "transformers.utils",
}
"""Modules below a library's top whose names its documentation gives as its own."""

PROBED = (probes_transformers, probes_others)
"""The pages on which the probes stand."""


def borrowed() -> dict[str, str]:
    """Name -> a place: what the source imports from modules that are not public, and what it reads that begins with `_` and is
    not its own."""
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(SOURCE.rglob("*.py"))}
    nodes = [(path, node) for path, tree in trees.items() for node in ast.walk(tree)]
    own = {node.name for _, node in nodes if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    own |= {node.attr for _, node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)}
    own |= {node.id for _, node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    own -= {"_attn_implementation", "_tied_weights_keys", "_can_record_outputs", "_weight_conversions"}
    found: dict[str, str] = {}
    for path, node in nodes:
        place = path.relative_to(SOURCE).as_posix()
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in LIBRARIES:
            module = node.module or ""
            if "." in module and module not in PUBLIC:
                found |= {f"{module}.{alias.name}": place for alias in node.names}
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            mine = ast.unparse(node.value) in ("self", "cls", "os", "super()")
            if node.attr not in own and (not mine or node.attr == "_attn_implementation"):
                found[node.attr] = place
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr", "setattr"):
            name = node.args[1].value if isinstance(node.args[1], ast.Constant) else ""
            if isinstance(name, str) and name.startswith("_") and not name.startswith("__") and name not in own:
                found[name] = place
    return found


def test_everything_borrowed_has_a_probe() -> None:
    found = borrowed()
    assert {name: place for name, place in found.items() if name not in PROBES} == {}
    assert sorted(PROBES.keys() - found.keys()) == [], "these probes are of names that are not used any more"


@pytest.mark.parametrize("name", PROBES)
def test_what_is_borrowed_is_still_there(name: str) -> None:
    tries, sentence = PROBES[name]
    try:
        holds = tries()
    except (ImportError, AttributeError, TypeError, ValueError, KeyError, RuntimeError) as error:
        pytest.fail(f"{name}: {sentence}. {type(error).__name__}: {error}")
    assert holds, f"{name}: {sentence}"
