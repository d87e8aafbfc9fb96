"""luthier's code as nodes, walked once for all tests of this folder."""

from __future__ import annotations

import ast
from functools import cache
from typing import Any

from tests.test_architecture import TREES, name_of


@cache
def _everything() -> list[tuple[str, ast.AST]]:
    return [(name_of(path), node) for path, tree in TREES.items() for node in ast.walk(tree)]


@cache
def nodes(*kinds: type[ast.AST]) -> list[tuple[str, Any]]:
    """(file, node) of all nodes of these kinds."""
    return [(name, node) for name, node in _everything() if isinstance(node, kinds)]


def calls(*functions: str) -> list[tuple[str, ast.Call]]:
    """Those of a function, by the last word of its name."""
    return [(name, node) for name, node in nodes(ast.Call) if _last(node.func) in functions]


def _last(function: ast.expr) -> str:
    return (
        function.attr if isinstance(function, ast.Attribute) else function.id if isinstance(function, ast.Name) else ""
    )


def imported() -> list[tuple[str, str]]:
    """(file, dotted name) of what is imported, with the packages above it."""
    out: list[tuple[str, str]] = []
    for file, node in nodes(ast.Import, ast.ImportFrom):
        names = [alias.name for alias in node.names]
        if isinstance(node, ast.ImportFrom):
            names = [node.module or "", *(f"{node.module}.{name}" for name in names)]
        out += [(file, name) for name in {*names, *(name.partition(".")[0] for name in names)}]
    return out
