"""S6: a chat template is a stranger's program. It runs in a sandbox, and in a process with limits of its own: on its time, its memory,
its output, and without the user's secrets (S14). More of it: tests/data/chat/test_sandbox.py."""

from __future__ import annotations

import builtins
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from luthier.data.chat import sandbox
from luthier.data.chat import template as module
from luthier.data.chat.template import Request, Template
from luthier.errors import UserError

HELLO = Request((("user", "hello"),))
REACHES = (
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ ''['__class__'] }}",
    "{{ '' | attr('__class__') }}",
    "{{ '' | attr('__cla' + 'ss__') }}",
    "{{ ['']  | map(attribute='__class__') | list }}",
    "{{ [''] | map('attr', '__class__') | list }}",
    "{{ '{0.__class__}'.format('') }}",
    "{{ '{x.__class__}'.format_map({'x': ''}) }}",
    "{{ ('{0.__class__}' | string).format('') }}",
    "{% set f = '{0.__class__}'.format %}{{ f('') }}",
    "{{ messages.__class__.__base__ }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ joiner.__init__.__globals__ }}",
    "{{ lipsum.__globals__['os'].system('true') }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ raise_exception.__globals__ }}",
    "{{ strftime_now.__self__.__class__ }}",
    "{{ self.__init__.__globals__ }}",
    "{{ self._TemplateReference__context }}",
    "{% macro m() %}{{ caller.__globals__ }}{% endmacro %}{% call m() %}{% endcall %}",
    "{{ (messages | first).update({'role': 'system'}) }}",
    "{{ messages.clear() }}",
    "{% set n = namespace() %}{% set n.__dict__ = {} %}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}{{ os.system('true') }}",
    "{% extends '/etc/passwd' %}",
    "{% from '/etc/passwd' import root %}",
    "{{ open('/etc/passwd').read() }}",
    "{{ (range(3) | list).__reduce_ex__(2) }}",
    "{{ (messages | map('string') | first).translate.__self__ }}",
)
"""Ways out of the sandbox, into Python, into a file, or into the messages."""
COSTS = (
    "{{ range(10 ** 9) | list }}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{% for i in range(90000) %}{{ 'a' * 1000 }}{% endfor %}",
    "{{ 'a' * 3000000 }}",
    "{% for i in range(99) recursive %}{{ loop([i]) }}{% endfor %}",
    "{{ 'a' ~ messages[5] ~ 1 / 0 }}",
)
HEAVY = (
    "{{ 'a' * 9000000000 }}",
    "{{ 'a' | center(9000000000) }}",
    "{{ '%9000000000d' | format(1) }}",
    "{{ (['a' * 999999] * 99999) | join }}",
    "{{ 9 ** (9 ** 9) }}",
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{{ " + "(" * 100_000 + "1" + ")" * 100_000 + " }}",
)
"""What Jinja's sandbox does not bound; the process does."""


@pytest.mark.parametrize("payload", [*REACHES, *COSTS])
def test_s6_a_template_reaches_nothing(payload: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, where it could be seen: nothing is opened and nothing started. Undefined values are empty texts."""

    def refuse(*_args: object, **_keys: object) -> None:
        raise AssertionError("was called")

    for where, name in ((os, "system"), (os, "popen"), (subprocess, "Popen")):
        monkeypatch.setattr(where, name, refuse)
    messages = [{"role": "user", "content": "hello"}]
    made = sandbox.environment("", "", "2026-01-01")
    opened: Callable[..., object] = builtins.open
    try:
        template = made.from_string(payload)
        monkeypatch.setattr(builtins, "open", refuse)
        answer = sandbox.render(template, {"messages": messages, "add_generation_prompt": False}, {})
    except sandbox.TEMPLATE_FAULTS as error:
        answer = {"error": str(error)}
    monkeypatch.setattr(builtins, "open", opened)
    text = answer.get("text", "")
    assert "error" in answer or len(text) < 20, answer
    assert not any(word in text for word in ("<class", "<built-in", "<module", "<function", "root:", "{'"))
    assert messages == [{"role": "user", "content": "hello"}]


@pytest.mark.prove
@pytest.mark.parametrize("payload", HEAVY)
def test_s6_what_a_template_costs_is_bounded(payload: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH_LIMIT_S", 3.0)
    template = Template(payload, "x", {})
    try:
        (answer,) = template.render([HELLO])
    except UserError as error:
        answer = error
    assert isinstance(answer, UserError)
    assert template._sandbox is None or template._sandbox.has_ended or template.close() is None


def test_s6_the_sandbox_has_no_loader_and_changes_nothing() -> None:
    made = sandbox.environment("", "", "2026-01-01")
    assert made.loader is None
    assert type(made).__name__ == "ImmutableSandboxedEnvironment"
    assert "resource.setrlimit(resource.RLIMIT_AS" in Path(sandbox.__file__).read_text(encoding="utf-8")
