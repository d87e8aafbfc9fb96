"""Templates are code from strangers: what they may not do, and what they may cost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from luthier.data.chat import template as module
from luthier.data.chat.renderer import ChatRenderer
from luthier.data.chat.template import Request, Template
from luthier.errors import EnvironmentProblem, UserError
from luthier.types import Conversation, Message
from tests.helpers import tokenizers
from tests.helpers.processes import ENVIRONMENT

HELLO = Request((("user", "hello"),))
ASKED = Conversation((Message("user", "a b"), Message("assistant", "c d")), "x:1")


def render(source: str, *requests: Request) -> list[str | UserError]:
    with Template(source, "the tokenizer", {"bos_token": "<s>"}) as template:
        return template.render(list(requests) or [HELLO])


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__init__.__globals__ }}",
        "{{ ('%s' | attr('__class__')) }}{{ cycler.__init__.__globals__.os.system('true') }}",
        "{{ '{0.__class__.__init__.__globals__}'.format(raise_exception) }}",
        "{{ messages.append(1) }}",
        "{% set n = namespace() %}{% set n.__class__ = 1 %}",
        "{% include 'x' %}",
        "{{ range(10 ** 9) | list }}",
        "{{ undefined_function() }}",
        "{{ 1 / 0 }}",
        "{{ messages[9].content.x }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ raise_exception('not so') }}",
        "{{ 'a' * 3000000 }}",
        "{% for i in range(90000) %}{{ 'a' * 1000 }}{% endfor %}",
        "{{ 'a' * 9000000000 }}",
        "{{ '%9000000000d' | format(1) }}",
        "{{ '\\ud800' }}",
        "{{ raise_exception('\\ud800') }}",
    ],
)
def test_attacks_and_faults_are_errors(source: str) -> None:
    (answer,) = render(source)
    assert isinstance(answer, UserError)
    assert "data.chat_template" in answer.fix


def test_a_fault_in_one_conversation_leaves_the_others() -> None:
    raising = "{% if messages[0].content == 'bad' %}{{ raise_exception('bad one') }}{% endif %}"
    source = raising + "{{ bos_token }}{{ messages[0].content }}"
    answers = render(source, HELLO, Request((("user", "bad"),)), HELLO)
    assert answers[0] == answers[2] == "<s>hello"
    assert isinstance(answers[1], UserError)


def test_time_is_limited_and_the_process_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH_LIMIT_S", 0.5)
    template = Template("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "x", {})
    with pytest.raises(UserError, match=r"did not finish within"):
        template.render([HELLO])
    assert template._sandbox is not None
    assert template._sandbox.has_ended


def test_the_process_is_closed_and_starts_again() -> None:
    template = Template("{{ messages[0].content }}", "x", {})
    assert template.render([HELLO]) == ["hello"]
    assert template._sandbox is not None
    process = template._sandbox._process
    template.close()
    assert process.poll() == 0
    assert template.render([HELLO]) == ["hello"]
    assert template._sandbox is not None
    process = template._sandbox._process
    del template  # the finaliser ends it as well
    assert process.wait(timeout=5) == 0


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_process_that_somebody_ended_is_no_fault_of_the_template(number: int) -> None:
    template = Template("{{ messages[0].content }}", "x", {})
    assert template.render([HELLO]) == ["hello"]
    assert template._sandbox is not None
    os.kill(template._sandbox._process.pid, number)
    with pytest.raises(EnvironmentProblem, match=rf"was ended by signal {number:d} "):
        template.render([HELLO])
    assert template.render([HELLO]) == ["hello"]


def test_a_process_that_somebody_stopped_is_no_fault_of_the_template(monkeypatch: pytest.MonkeyPatch) -> None:
    template = Template("{{ messages[0].content }}", "x", {})
    assert template.render([HELLO]) == ["hello"]
    assert template._sandbox is not None
    os.kill(template._sandbox._process.pid, signal.SIGSTOP)
    monkeypatch.setattr(module, "BATCH_LIMIT_S", 0.5)
    with pytest.raises(EnvironmentProblem, match=r"was stopped for 0\.5 s"):
        template.render([HELLO])


@pytest.mark.prove
def test_a_pause_of_the_whole_program_is_not_counted(tmp_path: Path) -> None:
    """As when a container is paused."""
    program = """
from luthier.data.chat import template
template.BATCH_LIMIT_S = 5.0
spins = "{% for i in range(1500) %}{% for j in range(9999) %}{% endfor %}{% endfor %}{{ messages[0].content }}"
made = template.Template(spins, "x", {})
print(made._started()._process.pid, flush=True)
print(made.render([template.Request((("user", "hello"),))]))
"""
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **ENVIRONMENT}) as process:
        assert process.stdout is not None
        both = process.pid, int(process.stdout.readline())
        time.sleep(0.1)  # it renders, for half a second
        try:
            for pid in both:
                os.kill(pid, signal.SIGSTOP)
            time.sleep(6)
            for pid in both:
                os.kill(pid, signal.SIGCONT)
            assert process.stdout.read() == "['hello']\n"
        finally:
            process.kill()


def test_the_clock_stands_still() -> None:
    assert render("{{ strftime_now('%d %b %Y') }}") == ["01 Jan 2026"]


@pytest.mark.parametrize(
    ("source", "saved"),
    [
        ("{{ strftime_now('%d %b %Y') }}", '{{ "01 Jan 2026" }}'),
        ('{% set day = strftime_now( "%Y" ) %}', '{% set day = "2026" %}'),
        (
            "{% if strftime_now is defined %}a{% elif strftime_now is not defined %}b{% endif %}",
            "{% if true %}a{% elif false %}b{% endif %}",
        ),
    ],
)
def test_the_clock_of_training_stands_in_the_saved_template(source: str, saved: str) -> None:
    template = Template(source, "x", {})
    assert template.saved_source == saved
    assert template.render([HELLO]) == Template(saved, "x", {}).render([HELLO])


def test_what_transformers_gives_to_templates_is_there() -> None:
    source = (
        "{%- for m in messages -%}{%- if loop.index0 == 1 -%}{%- break -%}{%- endif -%}{{ m | tojson }}{%- endfor -%}"
        "{% set n = namespace(x=1) %}{% set n.x = 2 %}{{ n.x }}{{ tools is none }}{{ documents is none }}"
    )
    assert render(source, Request((("user", "ä<"), ("assistant", "b")))) == [
        '{"role": "user", "content": "ä<"}2TrueTrue'
    ]


def test_saved_templates_carry_no_marks_and_write_the_same() -> None:
    source = (
        "{% for m in messages -%}  {%- if m.role == 'assistant' %}\n"
        "  {%- generation -%} {{ m.content }}<|im_end|> {%- endgeneration %} x\n"
        "{% else %}{{ m.content }}\n{% endif %}{% endfor %}"
    )
    template = Template(source, "x", {})
    assert "generation" not in template.saved_source
    messages = (("user", "a"), ("assistant", "b"))
    with template:
        marked, plain = template.render([Request(messages, marked=True), Request(messages)])
    assert isinstance(marked, str)
    text, spans, _ = template.unmark(marked)
    assert text == plain
    assert [text[slice(*span)] for span in spans] == ["b<|im_end|>"]


def test_which_template_is_chosen(tmp_path: Path) -> None:
    tokenizer = tokenizers.chatml()
    tokenizer.chat_template = {"default": "{{ 1 }}", "tool_use": "{{ 2 }}"}
    assert Template.choose(tokenizer).source == "{{ 1 }}"
    tokenizer.chat_template = {"a": "{{ 1 }}"}
    with pytest.raises(UserError, match="none named default"):
        Template.choose(tokenizer)
    (tmp_path / "own.jinja").write_text("{{ 3 }}")
    own = Template.choose(tokenizer, str(tmp_path / "own.jinja"))
    assert (own.source, own.from_file) == ("{{ 3 }}", True)
    (tmp_path / "own.jinja").write_bytes(b"\xff\xff")
    with pytest.raises(UserError, match=r"own\.jinja"):
        Template.choose(tokenizer, str(tmp_path / "own.jinja"))


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (tokenizers.CHATML.replace("message['content']", "message['content'] | upper"), "marks_change_nothing"),
        (
            tokenizers.CHATML.replace(
                "{% for message in messages %}", "{{ messages | length }}{% for message in messages %}"
            ),
            "not prefix-stable",
        ),
        (
            tokenizers.CHATML.replace("assistant\n' }}{% endif %}", "assistant\n<think>' }}{% endif %}"),
            "not prefix-stable",
        ),
        (
            tokenizers.MARKED.replace("assistant\n' }}{% endif %}", "assistant\n<think>' }}{% endif %}"),
            "served_prompt_is_trained_prefix",
        ),
        (
            tokenizers.MARKED.replace(
                "'<|im_end|>' }}{% endgeneration %}{{ ", "'' }}{% endgeneration %}{{ '<|im_end|>' + "
            ),
            "no stop token",
        ),
        (
            tokenizers.MARKED.replace("{% generation %}", "").replace("{% endgeneration %}", "")
            + "{% generation %}{% endgeneration %}{% generation %}{% endgeneration %}",
            "2 parts marked",
        ),
        (
            tokenizers.CHATML.replace("message['content']", "message['content'] | replace('im_end', 'IM_END')"),
            "every_message_is_shown|taken apart",
        ),
    ],
)
def test_templates_that_would_train_something_else_are_refused(source: str, words: str) -> None:
    tokenizer = tokenizers.chatml(template=source)
    example = Conversation((Message("user", "a <|im_end|> b"), Message("assistant", "c d")), "x:1")
    with Template.choose(tokenizer) as template, pytest.raises(UserError) as caught:
        ChatRenderer(tokenizer, template).encoded(example)
    assert any(word in str(caught.value) for word in words.split("|")), str(caught.value)


def test_a_template_that_changes_a_message_is_refused() -> None:
    tokenizer = tokenizers.chatml(
        template=tokenizers.CHATML.replace("message['content']", "message['content'] | upper")
    )
    with Template.choose(tokenizer) as template, pytest.raises(UserError, match="every_message_is_shown"):
        ChatRenderer(tokenizer, template).encoded(ASKED)
