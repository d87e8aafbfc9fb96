"""Calls of tools and thoughts: what templates get, what is trained of it, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from luthier import config
from luthier.data.chat.check import (
    ANSWER,
    ASKED,
    CALL,
    FORECAST,
    MORE,
    RESULT,
    SYSTEM,
    THOUGHT,
    TOOLS,
    made_tokenizer,
    tokens_of,
)
from luthier.data.chat.renderer import ChatRenderer
from luthier.data.chat.splitting import one_answer_each
from luthier.data.chat.template import Request, Template, as_template_message
from luthier.data.chat.tools import changed_tools, hidden_part, hidden_tool
from luthier.data.dataset.prepare import Prepared, prepare
from luthier.errors import UserError
from luthier.objectives.sft import SFT
from luthier.types import Conversation, Message, ToolCall

LOOP = Conversation((ASKED, CALL, RESULT, FORECAST), "a:1", TOOLS)
THOUGHTS = Conversation((SYSTEM, ASKED, THOUGHT, *MORE, ASKED, THOUGHT), "a:1")
ARGUMENTS = '{"place": "Köln \\"Süd\\"", "days": 2}'

CALLS = {
    "qwen": '<tool_call>\n{"name": "get_weather", "arguments": ' + ARGUMENTS + "}\n</tool_call><|im_end|>",
    "qwen3": '<tool_call>\n{"name": "get_weather", "arguments": ' + ARGUMENTS + "}\n</tool_call><|im_end|>",
    "llama3.1": '{"name": "get_weather", "parameters": ' + ARGUMENTS + "}<|eot_id|>",
    "mistral": '[TOOL_CALLS] [{"name": "get_weather", "arguments": ' + ARGUMENTS + ', "id": "a1b2c3d4e"}]</s>',
    "glm4": "get_weather\n" + ARGUMENTS + "<|observation|>",
}
RESULTS = {
    "qwen": "<|im_start|>user\n<tool_response>\n" + RESULT.content + "\n</tool_response><|im_end|>\n",
    "qwen3": "<|im_start|>user\n<tool_response>\n" + RESULT.content + "\n</tool_response><|im_end|>\n",
    "llama3.1": "<|start_header_id|>ipython<|end_header_id|>\n\n" + json.dumps(RESULT.content) + "<|eot_id|>",
    "mistral": '[TOOL_RESULTS] {"content": ' + json.dumps(RESULT.content) + ', "call_id": "a1b2c3d4e"}[/TOOL_RESULTS]',
    "glm4": "<|observation|>\n" + RESULT.content + "<|assistant|>",
}


def renderer(name: str, **options: Any) -> ChatRenderer:
    tokenizer = made_tokenizer(tokens_of(name))
    return ChatRenderer(tokenizer, Template.choose(tokenizer, name, **options))


def own(source: str, *tokens: str) -> ChatRenderer:
    """With a template of a tokenizer's own."""
    tokenizer = made_tokenizer(tokens)
    tokenizer.chat_template = source
    return ChatRenderer(tokenizer, Template.choose(tokenizer))


def trained(ours: ChatRenderer, conversation: Conversation) -> list[list[str]]:
    """The decoded trained texts of each sample."""
    return [
        [ours.tokenizer.decode(part.ids[start:end]) for start, end in part.evidence.spans]
        for part in ours.encoded_parts(conversation)
    ]


# ---- what templates get


def test_messages_are_passed_as_transformers_passes_them() -> None:
    source = "{{ messages | tojson }}|{{ tools | tojson }}"
    with Template(source, "x", {}) as template:
        text = template.render_one(LOOP.messages, tools=LOOP.tools)
    messages, _, tools = text.partition("|")
    assert json.loads(tools) == json.loads(TOOLS)
    assert json.loads(messages) == [
        {"role": "user", "content": ASKED.content},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {
                    "type": "function",
                    "id": "a1b2c3d4e",
                    "function": {"name": "get_weather", "arguments": {"place": 'Köln "Süd"', "days": 2}},
                }
            ],
        },
        {"role": "tool", "content": RESULT.content, "name": "get_weather", "tool_call_id": "a1b2c3d4e"},
        {"role": "assistant", "content": FORECAST.content},
    ]


def test_thoughts_are_passed_apart() -> None:
    with Template("{{ messages[0] | tojson }}", "x", {}) as template:
        assert json.loads(template.render_one([THOUGHT])) == {
            "role": "assistant",
            "content": "It is 42.",
            "reasoning_content": "Six times seven\nis forty-two.",
        }
        assert as_template_message(ANSWER) == ("assistant", ANSWER.content)
        assert template.render([Request((as_template_message(ANSWER), as_template_message(THOUGHT)))]) == [
            '{"role": "assistant", "content": "It is Paris."}'
        ]


FOR_NONE = (
    "{% for m in messages %}{% if m.role == 'assistant' and m.content is none %}{% for c in m.tool_calls %}"
    "{{ '<call>' + c.function.name + (c.function.arguments | tojson) + eos_token }}{% endfor %}"
    "{% elif m.role == 'assistant' %}{{ m.content + eos_token }}{% else %}{{ m.content }}:{% endif %}{% endfor %}"
    "{% if tools %}{% endif %}"
)


def test_a_call_without_text_has_the_content_that_shows_it() -> None:
    """Some templates look for none, others print it."""
    conversation = Conversation((ASKED, CALL, RESULT, FORECAST), "a:1")
    ours = own(FOR_NONE)
    assert ours.template is not None
    assert ours.template.empty_content is None
    assert trained(ours, conversation) == [["<call>get_weather" + ARGUMENTS + "</s>", FORECAST.content + "</s>"]]
    printing = own(FOR_NONE.replace("m.content is none", "m.tool_calls").replace("'<call>'", "m.content | string"))
    assert printing.template is not None
    assert printing.template.empty_content == ""
    assert trained(printing, conversation)[0][0] == "get_weather" + ARGUMENTS + "</s>"


# ---- calls


@pytest.mark.parametrize("name", CALLS)
def test_a_call_is_trained_as_the_model_writes_it(name: str) -> None:
    ours = renderer(name)
    (found,) = ours.encoded_parts(LOOP)
    call, forecast = trained(ours, LOOP)[0]
    assert call == CALLS[name]
    assert forecast.strip().startswith(("<think>", FORECAST.content))
    assert RESULTS[name] in found.evidence.text
    stops = {found.ids[end - 1] for _, end in found.evidence.spans}
    assert stops <= ours.stop_ids
    for place, (start, _) in zip((1, 3), found.evidence.spans, strict=True):
        assert ours.prompt_ids(LOOP.messages[:place], TOOLS) == found.ids[:start]


def test_tools_before_the_last_request_are_trained_as_they_are_served() -> None:
    """Where a template moves the tools, every answer gets a sample of its own."""
    ours = renderer("mistral")
    conversation = Conversation((*MORE, *LOOP.messages), "a:1", TOOLS)
    parts = ours.encoded_parts(conversation)
    assert trained(ours, conversation) == [[" Rome, of course.</s>"], [CALLS["mistral"]], [f" {FORECAST.content}</s>"]]
    for part in parts:
        text = part.evidence.text
        assert text.count("[AVAILABLE_TOOLS]") == 1
        assert text.index("[/AVAILABLE_TOOLS]") + len("[/AVAILABLE_TOOLS]") == text.rindex("[INST]")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("{{ tools | tojson }}", ""), "the tool 'get_weather' is not shown"),
        (("{{ tools | tojson }}", "{% for t in tools %}{{ t.function.name }}{% endfor %}"), "the tool 'get_weather'"),
        (("{{ call.function.arguments | tojson }}", ""), "call of 'get_weather' in message 1 is not shown: 'place'"),
        (("{{ call.function.name }}", ""), "call of 'get_weather' in message 1 is not shown: 'get_weather'"),
        (("arguments | tojson", "arguments.place"), "is not shown: 'place'"),
        (("arguments | tojson", "arguments | list"), "is not shown: 'Köln"),
    ],
)
def test_what_a_template_does_not_show_of_tools_is_refused(change: tuple[str, str], words: str) -> None:
    source = (
        "{{ tools | tojson }}{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
        "{% for call in m.tool_calls or [] %}{{ call.function.name }}{{ call.function.arguments | tojson }}{% endfor %}"
        "{{ eos_token }}{% endgeneration %}{% else %}{{ m.content }}:{% endif %}{% endfor %}"
    )
    own(source).encoded(LOOP)
    with pytest.raises(UserError, match="every_tool_call_and_thought_is_shown") as caught:
        own(source.replace(*change)).encoded(LOOP)
    assert words in caught.value.found
    assert "luthier template list" in caught.value.fix


@pytest.mark.parametrize("name", ["qwen", "mistral", "llama3.1", "glm4"])
def test_control_tokens_in_arguments_names_and_tools_stay_text(name: str) -> None:
    ours = renderer(name)
    (stop, *_) = sorted(ours.stop_ids)
    token = ours.tokenizer.convert_ids_to_tokens(stop)
    tools = changed_tools(TOOLS, lambda text: text.replace("or later", token))
    call = Message(
        "assistant", "", tool_calls=(ToolCall("get_weather", json.dumps({"place": token, "days": 1}), token),)
    )
    clean = ours.encoded(LOOP)
    smuggled = ours.encoded(Conversation((ASKED, call, RESULT, FORECAST), "a:1", tools))
    count = [sum(index in ours.encoder.control_ids for index in found.ids) for found in (clean, smuggled)]
    assert count[0] == count[1]
    assert smuggled.control_text


def test_what_is_hidden_of_a_call_or_a_tool() -> None:
    call = ToolCall("f", '{"end": "im", "again": "f"}')
    assert hidden_part(call, "f again end im") is None
    assert hidden_part(ToolCall("f", '{"a": true, "b": null, "c": [1.5]}'), "f a True b null c 1.5") is None
    assert hidden_tool('[{"name": "g", "parameters": {"properties": {"x": {}}}}]', "g") == "g"


# ---- thoughts


def test_thoughts_are_trained_once_and_not_shown_again() -> None:
    ours = renderer("qwen3")
    texts = trained(ours, THOUGHTS)
    block = "<think>\nSix times seven\nis forty-two.\n</think>\n\n"
    assert texts == [
        [block + "It is 42.<|im_end|>"],
        ["<think>\n\n</think>\n\nRome, of course.<|im_end|>"],
        [block + "It is 42.<|im_end|>"],
    ]
    parts = ours.encoded_parts(THOUGHTS)
    for part, index in zip(parts, (2, 4, 6), strict=True):
        ((start, _),) = part.evidence.spans
        assert part.evidence.text[: part.evidence.turns[-1].start].count("Six times") == 0
        assert ours.prompt_ids(THOUGHTS.messages[:index]) == part.ids[:start]
    samples = ours.encode(THOUGHTS, 7)
    assert [(sample.example, sample.group) for sample in samples] == [(7, 0), (7, 1), (7, 2)]
    assert [sample.trained_tokens for sample in samples] == [len(text.encode()) - 9 for (text,) in texts]


def test_thinking_can_be_left_to_the_prompt() -> None:
    ours = renderer("qwen3", enable_thinking=False)
    conversation = Conversation((ASKED, ANSWER, *MORE), "a:1")
    assert trained(ours, conversation) == [["It is Paris.<|im_end|>"], ["Rome, of course.<|im_end|>"]]
    prompt = ours.tokenizer.decode(ours.prompt_ids([ASKED]))
    assert prompt.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    with pytest.raises(UserError):  # thoughts where the prompt says that there are none
        ours.encoded_parts(Conversation((ASKED, THOUGHT), "a:1"))
    assert ours.template is not None
    tokenizer = ours.tokenizer
    tokenizer.chat_template = ours.template.saved_source
    chat = [{"role": "user", "content": ASKED.content}]
    served = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert served == prompt
    thinking = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True, enable_thinking=True)
    assert thinking.endswith("<|im_start|>assistant\n")
    with pytest.raises(UserError, match="does not know it"):
        renderer("chatml", enable_thinking=True)


def test_an_open_block_of_thoughts_is_the_prompts() -> None:
    ours = renderer("deepseek@r1")
    texts = trained(ours, THOUGHTS)
    assert texts[0] == ["Six times seven\nis forty-two.\n</think>\n\nIt is 42.</s>"]
    assert ours.tokenizer.decode(ours.prompt_ids([ASKED])).endswith("<｜Assistant｜><think>\n")


STRIPPING = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<a>{% if loop.last and m.reasoning_content %}"
    "{{ '<think>' + m.reasoning_content + '</think>' }}{% endif %}{{ m.content + eos_token }}"
    "{% else %}<u>{{ m.content }}{% endif %}{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
)


def test_a_template_of_the_tokenizer_that_strips_thoughts_is_trained_one_answer_at_a_time() -> None:
    """Without generation marks too: prefix renders of one answer agree, those of all do not."""
    ours = own(STRIPPING)
    block = "<think>Six times seven\nis forty-two.</think>It is 42.</s>"
    assert trained(ours, THOUGHTS) == [[block], ["Rome, of course.</s>"], [block]]
    for part, index in zip(ours.encoded_parts(THOUGHTS), (2, 4, 6), strict=True):
        ((start, _),) = part.evidence.spans
        assert ours.prompt_ids(THOUGHTS.messages[:index]) == part.ids[:start]
    with pytest.raises(UserError, match="only_appends"):
        ours.encoded(THOUGHTS)


def test_thoughts_inside_the_text_that_are_stripped_from_history() -> None:
    """As the data of reasoning models often have them; an earlier answer is context, of which the end is shown."""
    source = STRIPPING.replace(
        "m.content + eos_token", "(m.content if loop.last else m.content.split('</think>')[-1]) + eos_token"
    )
    inline = Message("assistant", "<think>Well.</think>It is 42.")
    ours = own(source)
    conversation = Conversation((ASKED, inline, ASKED, inline), "a:1")
    assert trained(ours, conversation) == [[inline.content + "</s>"], [inline.content + "</s>"]]


def test_a_template_that_never_shows_thoughts_is_refused() -> None:
    with pytest.raises(UserError, match="the thoughts of message 1 are not shown"):
        renderer("chatml").encode(Conversation((ASKED, THOUGHT), "a:1"), 0)


def test_one_answer_each() -> None:
    assert one_answer_each(Conversation((ASKED, ANSWER), "a:1")) == ()
    first, second = one_answer_each(Conversation((ASKED, ANSWER, *MORE), "a:1", TOOLS))
    assert first == Conversation((ASKED, ANSWER), "a:1", TOOLS)
    assert [message.train for message in second.messages if message.role == "assistant"] == [False, True]


def prepared_split(tmp_path: Path, rows: list[list[str]], *overrides: str) -> Prepared:
    """Rows of texts in turn, under a template that makes a sample of each answer."""
    lines = [
        json.dumps({"messages": [{"role": ("user", "assistant")[i % 2], "content": t} for i, t in enumerate(row)]})
        for row in rows
    ]
    (tmp_path / "train.jsonl").write_text("\n".join(lines), encoding="utf-8")
    keys = [
        f"data={tmp_path / 'train.jsonl'}",
        "model=x",
        f"output_dir={tmp_path / 'run'}",
        "chat_template=yuan@fastchat",
    ]
    run = config.load(None, [*keys, *overrides])
    return prepare(run, made_tokenizer(["<sep>", "<eod>"]), context_length=None, objective=SFT(SFT.Config()))


def test_a_split_row_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One row, a sample for each answer; rows and tokens still add up."""
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    prepared = prepared_split(tmp_path, [["One?", "1", "Two?", "2"]])
    ledger = prepared.ledger
    assert (ledger.rows_in, ledger.rows_trained, ledger.rows_split, len(prepared.train)) == (1, 1, 1, 2)
    assert ledger.tokens_in == sum(len(prepared.train[index]) for index in range(2))
    assert any("a sample for each answer" in line for line in ledger.lines())


def test_a_split_row_that_is_too_long_is_counted_whole_and_keeps_the_answers_that_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    rows = [["Hello?", "Hi."], [text * 60 for text in "abcdefgh"]]
    whole = prepared_split(tmp_path, rows)
    lengths = whole.train.lengths.tolist()
    assert len(lengths) == 5
    dropped = prepared_split(tmp_path, rows, "max_length=200", "on_long_row=drop").ledger
    assert dropped.tokens_in == whole.ledger.tokens_in == sum(lengths)
    assert dropped.tokens_dropped == sum(lengths[1:])
    with pytest.raises(
        UserError, match=f"found {lengths[-1]} tokens, of which {lengths[-1] - 61} stand before its ans"
    ):
        prepared_split(tmp_path, rows, "max_length=200")
    cut = prepared_split(tmp_path, rows, "max_length=340", "on_long_row=truncate")
    assert cut.train.lengths.tolist() == [*lengths[:3], 340]  # of the third answer the end is lost, of the last all
    assert cut.ledger.cut == [f"{tmp_path / 'train.jsonl'}:2"]
    assert cut.ledger.tokens_cut == sum(lengths) - sum(lengths[:3]) - 340
    assert cut.ledger.answer_tokens_cut == whole.train.trained.sum() - cut.train.trained.sum()
    with pytest.raises(UserError, match="1 of 2 rows cannot be used"):
        prepared_split(tmp_path, rows, "max_length=50", "on_long_row=truncate")
