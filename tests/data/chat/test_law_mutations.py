"""Each law is the only one to catch something: with it, a certain input is refused by its name; without it, the same
input passes. And every place in the laws and in the ledger that refuses has an input that trips it.
"""

from __future__ import annotations

import ast
import functools
import inspect
import json
import sys
from types import ModuleType
from typing import Any

import pytest

from luthier.data.chat import laws, renderer
from luthier.data.chat.encoded import Evidence
from luthier.data.chat.laws import LawBroken
from luthier.data.dataset import ledger
from luthier.data.dataset.ledger import Ledger
from tests.data.chat.law_cases import CASES, GOOD, MORE_CASES, TRIPS, Case

RENDERING_CHECKS = {
    laws.MARKS_CHANGE_NOTHING: ("if text != plain:", "if False:"),
    laws.TEMPLATE_ONLY_APPENDS: ("elif not before.own and not after.own:", "elif True:"),
}
"""Where `data/chat/renderer.py` checks a law, and the same line without the check."""


def mutated(module: ModuleType, source: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A copy of a module, made from other source code."""
    name = f"{module.__name__}_mutated"
    copy = ModuleType(name)
    monkeypatch.setitem(sys.modules, name, copy)  # dataclasses look their module up
    exec(compile(source, name, "exec"), copy.__dict__)  # noqa: S102 - our own code
    return copy


def refused_by(case: Case, renderer_class: Any = renderer.ChatRenderer) -> str | None:
    """The law that refuses a case; None where it passes."""
    with case.template() as template:
        try:
            renderer_class(case.tokenizer(), template, case.stop_ids).encoded(case.example)
        except LawBroken as error:
            return error.law
    return None


def test_every_law_has_its_case() -> None:
    assert CASES.keys() == set(laws.NAMES), "a law needs an input that only it refuses: tests/data/chat/law_cases.py"
    assert RENDERING_CHECKS.keys() == set(laws.NAMES) - laws.LAWS.keys()


@pytest.mark.parametrize(("law", "case"), [*CASES.items(), *MORE_CASES])
def test_a_law_refuses_what_it_is_for(law: str, case: Case) -> None:
    assert refused_by(case) == law


@pytest.mark.parametrize("law", laws.LAWS)
def test_without_a_law_its_case_passes(law: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(laws.LAWS, law)
    assert refused_by(CASES[law]) is None


@pytest.mark.parametrize("law", RENDERING_CHECKS)
def test_without_a_check_in_rendering_its_case_passes(law: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check, without = RENDERING_CHECKS[law]
    source = inspect.getsource(renderer)
    assert source.count(check) == 1, "the check was written anew: write it anew in RENDERING_CHECKS"
    copy = mutated(renderer, source.replace(check, without), monkeypatch)
    assert refused_by(CASES[law], copy.ChatRenderer) is None


# ---- every single place that refuses


def refusals(tree: ast.AST) -> list[ast.Return]:
    return [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Return) and node.value is not None and "Broken(" in ast.unparse(node.value)
    ]


def without(module: ModuleType, found: Any, number: int) -> str:
    """The source of a module without the statement at `number` among `found(tree)`."""
    tree = ast.parse(inspect.getsource(module))
    victim = found(tree)[number]

    class Remove(ast.NodeTransformer):
        def visit(self, node: ast.AST) -> Any:
            return ast.Pass() if node is victim else self.generic_visit(node)

    return ast.unparse(ast.fix_missing_locations(Remove().visit(tree)))


@functools.cache
def trips() -> tuple[Evidence, ...]:
    """What is to be refused: the cases of the laws as evidence, and those that no template brings about."""
    kept: list[Evidence] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(renderer, "check", lambda evidence, _row: kept.append(evidence))
        for case in (GOOD, *CASES.values()):
            refused_by(case)
    return (*kept[1:], *(change(kept[0]) for change in TRIPS))


def judged_by(module: ModuleType, evidence: Evidence) -> object:
    try:
        return module.check(evidence, "row")
    except KeyError as error:  # what follows a refusal may lean on it
        return error


@pytest.mark.prove
@pytest.mark.parametrize("number", range(len(refusals(ast.parse(inspect.getsource(laws))))))
def test_every_refusal_in_the_laws_is_tripped_by_something(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = ast.parse(inspect.getsource(laws))
    copy = mutated(laws, without(laws, refusals, number), monkeypatch)
    judged = [(laws.check(evidence, "row"), judged_by(copy, evidence)) for evidence in trips()]
    place = f"laws.py:{refusals(tree)[number].lineno}"
    assert any(str(with_it) != str(gone) for with_it, gone in judged), f"nothing trips {place}"


# ---- the ledger

BALANCED = Ledger(
    rows_in=10,
    rows_trained=5,
    rows_held_out=2,
    dropped={"unusable": ["a:1", "a:2"], "breaks the law no_double_bos": ["a:3"]},
    rows_cut=1,
    cut=["a:4"],
    tokens_in=100,
    tokens_trained=40,
    tokens_context=30,
    tokens_held_out=10,
    tokens_cut=15,
    tokens_dropped=5,
    answer_tokens_cut=15,
    laws={"no_double_bos": 1},
    sources=[{"name": "a", "rows": 10, "format": "text", "recognised": True, "purpose": "to learn from"}],
)
UNBALANCED = {
    "a row is missing": {"rows_in": 11},
    "a file is counted twice": {"sources": [{**BALANCED.sources[0], "rows": 5}] * 3},
    "a row was counted twice": {"rows_held_out": 3},
    "a token is missing": {"tokens_in": 101},
    "a token was counted twice": {"tokens_trained": 41},
    "more of the answers was cut than was cut": {"answer_tokens_cut": 16},
    "a cut row is not named": {"rows_cut": 2},
    "more rows were cut than kept": {"rows_cut": 8, "cut": list("abcdefgh")},
    "a broken law dropped nothing": {"laws": {"no_double_bos": 4}},
}


def balanced(**changes: Any) -> Ledger:
    return Ledger.from_dict(json.loads(json.dumps(BALANCED.as_dict())) | changes)


def conjuncts(tree: ast.AST) -> list[ast.expr]:
    """The conditions of Ledger.check."""
    (check,) = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == "check")
    (conditions,) = (node for node in ast.walk(check) if isinstance(node, ast.BoolOp))
    return conditions.values


def test_the_good_case_is_good() -> None:
    assert refused_by(GOOD) is None


def test_a_ledger_that_adds_up_passes() -> None:
    balanced().check()


@pytest.mark.parametrize("what", UNBALANCED)
def test_a_ledger_that_does_not_add_up_is_a_bug(what: str) -> None:
    with pytest.raises(RuntimeError, match="does not add up"):
        balanced(**UNBALANCED[what]).check()


@pytest.mark.parametrize("number", range(len(conjuncts(ast.parse(inspect.getsource(ledger))))))
def test_without_a_condition_of_the_ledger_something_passes(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = ast.parse(inspect.getsource(ledger))
    conditions = conjuncts(tree)
    conditions[number] = ast.Constant(True)
    copy = mutated(ledger, ast.unparse(ast.fix_missing_locations(tree)), monkeypatch)
    passed = []
    for what, changes in UNBALANCED.items():
        try:
            copy.Ledger.from_dict(balanced(**changes).as_dict()).check()
        except RuntimeError:
            continue
        passed.append(what)
    assert passed
