"""Every template that comes with luthier: what it writes, what it refuses, what is trained of it."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from luthier.data.chat.check import Outcome, check_template, made_tokenizer, shapes, tokens_of
from luthier.data.chat.library import FOLDER, NAMED_TOKENS, Facts, facts_of, find, library, missing_tokens, names
from luthier.data.chat.renderer import ChatRenderer
from luthier.data.chat.template import Template, read_template
from luthier.errors import UserError
from luthier.types import NO_TARGET, Conversation, Message
from tests.helpers import tokenizers

NEWEST = {
    "alpaca": "alpaca@stanford",
    "baichuan2": "baichuan2@chat",
    "chatml": "chatml@plain",
    "deepseek": "deepseek@v3",
    "gemma": "gemma@transformers",
    "llama2": "llama2@every-turn-bos",
    "mistral": "mistral@v3",
    "qwen": "qwen@2.5",
    "qwen3": "qwen3@think",
    "vicuna": "vicuna@fastchat",
    "yuan": "yuan@2026-08",
}
ONE_VERSION = {"baichuan", "default", "glm4", "guanaco", "llama3", "llama3.1", "phi3", "zephyr"}
SPLIT = {
    "deepseek@r1": {"several turns", "system, several turns", "thoughts, several turns"},
    "mistral@v3": {"tools, system, several turns"},
    "qwen3@think": {"thoughts, several turns"},
    "yuan@fastchat": {"several turns", "system, several turns"},
}
"""Shapes that a template writes otherwise once they are history: trained one answer at a time."""


# ---- the laws, over every template and every shape


def refusal(facts: Facts, shape: str, conversation: Conversation, adds_bos: bool) -> str | None:
    """Why a template must refuse a conversation, by what its header says; None where it must not."""
    called = any(message.tool_calls or message.role == "tool" for message in conversation.messages)
    if facts.system == "refused" and conversation.messages[0].role == "system":
        return "no turn for the role system"
    if not facts.tools and called:
        return "no turn for the role tool|the tool 'get_weather' is not shown|the first token is not BOS"
    if facts.bos == "unless-added" and adds_bos:
        return "the first token is not BOS"
    if not facts.tools and conversation.tools:
        return "the tool 'get_weather' is not shown"
    if facts.thinking == "no" and any(message.thinking for message in conversation.messages):
        return r"the thoughts of message \d are not shown"
    return None


@pytest.mark.parametrize("adds_bos", [False, True], ids=["plain", "adds BOS"])
@pytest.mark.parametrize("name", library())
def test_every_template_keeps_the_laws_or_refuses_with_the_reason(name: str, adds_bos: bool) -> None:
    facts = library()[name].facts
    tokenizer = made_tokenizer(tokens_of(name), adds_bos=adds_bos)
    with Template.choose(tokenizer, name) as template:
        renderer = ChatRenderer(tokenizer, template)
        conversations = shapes(sorted(renderer.encoder.control))
        for outcome in check_template(renderer, conversations):
            conversation = conversations[outcome.shape]
            wanted = refusal(facts, outcome.shape, conversation, adds_bos)
            assert outcome.passed == (wanted is None), outcome
            claimed = refusal(facts, outcome.shape, conversation, adds_bos=False) is None
            assert outcome.claimed == claimed or (facts.inner_stop == "no" and not outcome.claimed), outcome
            if wanted is not None:
                assert re.search(wanted, outcome.reason), outcome
                continue
            assert (outcome.samples > 1) == (outcome.shape in SPLIT.get(name, ())), outcome
            trained_is_what_the_assistant_says(renderer, conversation, outcome)


def trained_is_what_the_assistant_says(renderer: ChatRenderer, conversation: Conversation, outcome: Outcome) -> None:
    """The decoded trained tokens are the answers with their stop tokens, and nothing else of the conversation."""
    tokenizer, texts = renderer.tokenizer, []
    stops = {tokenizer.convert_ids_to_tokens(index) for index in renderer.stop_ids}
    for part, sample in zip(renderer.encoded_parts(conversation), renderer.encode(conversation, 0), strict=True):
        for start, end in part.evidence.spans:
            ids = sample.input_ids[start:end]
            texts.append(tokenizer.decode(ids))
            assert (sample.targets[start - 1 : end - 1] == ids).all()
        inside = sum(end - start for start, end in part.evidence.spans) + len(part.stop_targets)
        assert sample.trained_tokens == inside
    answers = [message for message in conversation.messages if message.role == "assistant" and message.train]
    assert len(texts) == len(answers)
    for text, message in zip(texts, answers, strict=True):
        words = message.content.strip()
        if "<think>" in words and "<think>" not in text:  # the prompt's last words
            words = words.removeprefix("<think>\n")
        assert words in text, outcome
        rest = text.replace(words, "", 1) if words else text
        if not (message.tool_calls or message.thinking):
            rest = rest.replace("<think>\n\n</think>\n\n", "").replace("\n</think>\n\n", "")
            assert rest.strip() in {*stops, ""}, outcome


@pytest.mark.parametrize("name", library())
def test_a_header_says_what_is_true(name: str) -> None:
    shipped = library()[name]
    assert shipped.path.stem == shipped.facts.full_name == name
    assert shipped.facts.source
    assert shipped.facts.stop
    facts = shipped.facts
    assert all((facts.inner_stop, facts.bos, facts.system, facts.thinking))
    body = shipped.text.partition("#}")[2]
    for token in shipped.facts.tokens:
        role = re.fullmatch(r"<\|(\w+)\|>", token)  # written as '<|' + message.role + '|>'
        assert token in body or (role and "message.role + '|>" in body), token
    for word in NAMED_TOKENS[1:]:
        assert (word in body) == (word in shipped.facts.tokens)
    assert ("bos_token" in body) == (shipped.facts.bos in ("first", "every-turn"))
    assert "generation" in body


def test_names_and_their_newest_versions() -> None:
    assert {name: find(name).facts.full_name for name in names() if "@" not in name} == NEWEST | {
        name: name for name in ONE_VERSION
    }
    assert len(library()) == len(list(FOLDER.glob("*.jinja")))
    for name in NEWEST:
        assert sum(one.facts.default for one in library().values() if one.facts.name == name) == 1


# ---- what they write

DIALOGUE = (
    Message("system", "Sys."),
    Message("user", "Q1"),
    Message("assistant", "A1"),
    Message("user", "Q2"),
    Message("assistant", "A2"),
)
CHATML = (
    "<|im_start|>system\nSys.<|im_end|>\n<|im_start|>user\nQ1<|im_end|>\n<|im_start|>assistant\nA1<|im_end|>\n"
    "<|im_start|>user\nQ2<|im_end|>\n<|im_start|>assistant\nA2<|im_end|>\n"
)
GEMMA = (
    "{}<start_of_turn>user\n{}Q1<end_of_turn>\n<start_of_turn>model\nA1<end_of_turn>\n"
    "<start_of_turn>user\nQ2<end_of_turn>\n<start_of_turn>model\nA2<end_of_turn>\n"
)
ALPACA = "{}Sys.{}### Instruction:\nQ1\n\n### Response:{}A1</s>\n\n### Instruction:\nQ2\n\n### Response:{}A2</s>\n\n"
LLAMA_3 = (
    "<|start_header_id|>user<|end_header_id|>\n\nQ1<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nA1<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nQ2<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nA2<|eot_id|>"
)
SYS = "<<SYS>>\nSys.\n<</SYS>>\n\n"

TEXTS = {
    "chatml": CHATML,
    "chatml@bos": "<s>" + CHATML,
    "qwen": CHATML,
    "qwen3@nothink": CHATML,
    "qwen3": CHATML.replace("assistant\nA2", "assistant\n<think>\n\n</think>\n\nA2"),
    "llama2": f"<s>[INST] {SYS}Q1 [/INST] A1 </s><s>[INST] Q2 [/INST] A2 </s>",
    "llama2@one-bos": f"<s>[INST] {SYS}Q1 [/INST] A1 </s>[INST] Q2 [/INST] A2 </s>",
    "llama2@llamafactory": f"<s>[INST] {SYS}Q1 [/INST]A1</s><s>[INST] Q2 [/INST]A2</s>",
    "llama3": "<s><|start_header_id|>system<|end_header_id|>\n\nSys.<|eot_id|>" + LLAMA_3,
    "llama3.1": "<s><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
    "Today Date: 26 Jul 2024\n\nSys.<|eot_id|>" + LLAMA_3,
    "mistral": "<s>[INST] Sys.\n\nQ1[/INST] A1</s>[INST] Q2[/INST] A2</s>",
    "mistral@v1": "<s>[INST] Sys.\n\nQ1 [/INST] A1</s>[INST] Q2 [/INST] A2</s>",
    "gemma": None,
    "gemma@llamafactory": GEMMA.format("<s>", "Sys.\n\n"),
    "gemma@ms-swift": "<s><start_of_turn>system\nSys.<end_of_turn>\n" + GEMMA.format("", ""),
    "gemma@self-llm": "<start_of_turn>system\nSys.<end_of_turn>\n" + GEMMA.format("", ""),
    "vicuna": "<s>Sys. USER: Q1 ASSISTANT: A1</s>USER: Q2 ASSISTANT: A2</s>",
    "vicuna@llamafactory": "Sys.USER: Q1 ASSISTANT:A1</s>USER: Q2 ASSISTANT:A2</s>",
    "alpaca": ALPACA.format("<s>", "\n\n", "", ""),
    "alpaca@axolotl": ALPACA.format("<s>", "\n\n", "\n", "\n"),
    "alpaca@qlora": ALPACA.format("<s>", "\n\n", " ", " "),
    "alpaca@llamafactory": ALPACA.format("", "", "\n", "\n"),
    "guanaco": None,
    "default": "System: Sys.</s>\nHuman: Q1</s>\nAssistant:A1</s>\nHuman: Q2</s>\nAssistant:A2</s>\n",
    "zephyr": "<|system|>\nSys.</s>\n<|user|>\nQ1</s>\n<|assistant|>\nA1</s>\n<|user|>\nQ2</s>\n<|assistant|>\nA2</s>\n",
    "phi3": "<|system|>\nSys.<|end|>\n<|user|>\nQ1<|end|>\n<|assistant|>\nA1<|end|>\n<|user|>\nQ2<|end|>\n"
    "<|assistant|>\nA2<|end|>\n</s>",
    "yuan": "Sys.Q1<sep>A1<eod>\nQ2<sep>A2<eod>\n",
    "yuan@2024-03": "Sys.Q1<sep>A1<eod>\nQ2<sep>A2<eod>",
    "yuan@fastchat": "Sys.\nQ1<n>A1<n>Q2<sep>A2<eod>",
    "baichuan": "Sys.<reserved_102>Q1<reserved_103>A1<reserved_102>Q2<reserved_103>A2</s>",
    "baichuan2": "Sys.<reserved_106>Q1<reserved_107>A1<reserved_106>Q2<reserved_107>A2</s>",
    "baichuan2@self-llm": "<|im_start|>system\nSys.<|im_end|>\n<|im_start|>user\nQ1<|im_end|>\n\nAssistant: A1</s>\n"
    "<|im_start|>user\nQ2<|im_end|>\n\nAssistant: A2</s>\n",
    "deepseek": "<s>Sys.<｜User｜>Q1<｜Assistant｜>A1</s><｜User｜>Q2<｜Assistant｜>A2</s>",
    "deepseek@r1": "<s>Sys.<｜User｜>Q1<｜Assistant｜>A1</s><｜User｜>Q2<｜Assistant｜><think>\n\n</think>\n\nA2</s>",
    "deepseek@v2": "<s>Sys.\n\nUser: Q1\n\nAssistant: A1</s>User: Q2\n\nAssistant: A2</s>",
    "glm4": "[gMASK]<sop><|system|>\nSys.<|user|>\nQ1<|assistant|>\nA1<|user|>\nQ2<|assistant|>\nA2<|user|>",
}
"""What a dialogue of two turns with a system text is; <s> and </s> are the tokenizer's own BOS and end."""

WITHOUT_SYSTEM = {
    "gemma": GEMMA.format("<s>", ""),
    "guanaco": "<s>### Human: Q1### Assistant: A1### Human: Q2### Assistant: A2</s>",
    "qwen": CHATML.replace("Sys.", "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."),
    "chatml": CHATML.partition("<|im_end|>\n")[2],
    "vicuna@llamafactory": "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions.USER: Q1 ASSISTANT:A1</s>USER: Q2 ASSISTANT:A2</s>",
    "alpaca@llamafactory": ALPACA.format("", "", "\n", "\n").replace(
        "Sys.",
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n",
    ),
    "llama2": "<s>[INST] Q1 [/INST] A1 </s><s>[INST] Q2 [/INST] A2 </s>",
}


@cache
def tokenizer_for(name: str) -> Any:
    return made_tokenizer(tokens_of(name))


@pytest.mark.parametrize("name", TEXTS)
def test_what_a_template_writes(name: str) -> None:
    with Template.choose(tokenizer_for(name), name) as template:
        if (text := TEXTS[name]) is not None:
            assert template.render_one(DIALOGUE) == text
        if name in WITHOUT_SYSTEM:
            assert template.render_one(DIALOGUE[1:]) == WITHOUT_SYSTEM[name]


def test_no_template_is_left_out() -> None:
    assert {find(name).facts.full_name for name in TEXTS} == set(library())


@pytest.mark.parametrize("name", library())
def test_what_is_saved_writes_the_same_in_transformers(name: str) -> None:
    """Without marks, and with what transformers gives to a template."""
    tokenizer = made_tokenizer(tokens_of(name))
    for prompt in (False, True):
        asked = DIALOGUE[1:4] if prompt else DIALOGUE[1:]
        with Template.choose(tokenizer, name) as template:
            ours = template.render_one(asked, add_generation_prompt=prompt)
            tokenizer.chat_template = template.saved_source
        assert "generation" not in template.saved_source.replace("add_generation_prompt", "").partition("#}")[2]
        chat = [{"role": message.role, "content": message.content} for message in asked]
        assert tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=prompt) == ours
        with Template.choose(tokenizer) as again:  # whoever opens the model knows what the header says
            assert again.facts == template.facts


# ---- how they are chosen


def test_an_unknown_name_is_named_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"data\.chat_template=alpaca@stanford") as caught:
        Template.choose(tokenizers.chatml(), "alpaca@standford")
    assert caught.value.exit_code == 2
    with pytest.raises(UserError, match="cannot be read"):
        Template.choose(tokenizers.chatml(), "nowhere/alpaca.jinja")


def test_a_tokenizer_without_the_tokens_is_refused_and_fitting_templates_are_named() -> None:
    tokenizer = tokenizers.gemma_like()
    with pytest.raises(UserError, match=r"it writes <\|im_start\|> <\|im_end\|>, which") as caught:
        Template.choose(tokenizer, "chatml")
    assert "gemma@self-llm" in caught.value.expected
    assert missing_tokens(find("llama2").facts, tokenizers.chatml()) == ["bos_token"]


def test_the_template_says_where_generation_stops() -> None:
    tokenizer = tokenizers.gemma_like()
    stop = tokenizer.convert_tokens_to_ids("<end_of_turn>")
    with Template.choose(tokenizer, "gemma") as template:
        renderer = ChatRenderer(tokenizer, template)
        assert renderer.stop_ids == {tokenizer.eos_token_id, stop}
        renderer.encoded(Conversation(DIALOGUE[1:], "a:1"))
        tokenizer.chat_template = template.saved_source
    with Template.choose(tokenizer) as template:  # as a run's folder is opened
        assert stop in ChatRenderer(tokenizer, template).stop_ids


def test_a_header_with_a_wrong_word_is_an_error_in_a_file_and_a_comment_elsewhere(tmp_path: Path) -> None:
    wrong = "{#- name: mine\ncolour: red -#}\n" + tokenizers.CHATML
    (tmp_path / "mine.jinja").write_text(wrong, encoding="utf-8")
    with pytest.raises(UserError, match="colour: red"):
        Template.choose(tokenizers.chatml(), str(tmp_path / "mine.jinja"))
    assert Template.choose(tokenizers.chatml(template=wrong)).facts == Facts()
    with pytest.raises(ValueError, match="inner_stop: perhaps"):
        facts_of("{#- name: mine\ninner_stop: perhaps -#}")
    for line in ("tools: true", "default: yes, it is"):
        with pytest.raises(ValueError, match=line):
            facts_of(f"{{#- name: mine\n{line} -#}}")
    assert facts_of("{# just a comment #}") == Facts()


def test_a_file_beside_a_name_is_chosen_by_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "chatml").write_text("{{ 1 }}", encoding="utf-8")
    assert read_template("chatml")[0] != "{{ 1 }}"
    assert read_template("./chatml")[0] == "{{ 1 }}"


# ---- the policy for a system text


@pytest.mark.parametrize("header", ["", "{#- name: mine\nsource: here -#}\n\n", "{# name: mine\nsource: here #}\n"])
@pytest.mark.parametrize(
    "body", [tokenizers.TURNS, "\n  \n" + tokenizers.TURNS, "  {% if true %}x{% endif %}" + tokenizers.TURNS]
)
def test_a_folded_system_text_stands_in_the_first_request(header: str, body: str) -> None:
    tokenizer = tokenizers.gemma_like()
    tokenizer.chat_template = header + body
    folded = (Message("user", "Sys.\n\nQ1"), *DIALOGUE[2:])
    with Template.choose(tokenizer) as plain, Template.choose(tokenizer, on_system="fold") as template:
        with pytest.raises(UserError, match="System role not supported") as caught:
            plain.render_one(DIALOGUE)
        assert "data.on_system=fold" in caught.value.fix
        assert template.render_one(DIALOGUE) == plain.render_one(folded) == template.render_one(folded)
        assert plain.fingerprint != template.fingerprint
        tokenizer.chat_template = template.saved_source
        chat = [{"role": message.role, "content": message.content} for message in DIALOGUE]
        assert tokenizer.apply_chat_template(chat, tokenize=False) == plain.render_one(folded)
        renderer = ChatRenderer(tokenizer, template, {4})
        encoded = renderer.encoded(Conversation(DIALOGUE, "a:1"))
        assert renderer.prompt_ids(DIALOGUE[:2]) == encoded.ids[: encoded.evidence.spans[0][0]]


@pytest.mark.parametrize(
    "header", ["", "{#- name: mine\nsource: here -#}", "{# name: mine #}\n", "{#- name: a -#}\n\n\n"]
)
@pytest.mark.parametrize("options", [{}, {"on_system": "fold"}, {"enable_thinking": False}])
def test_the_line_of_an_error_is_that_of_the_file(tmp_path: Path, header: str, options: dict[str, Any]) -> None:
    text = header + "{{ enable_thinking }}\n{{ messages }\n"
    (tmp_path / "mine.jinja").write_text(text, encoding="utf-8")
    line = text[: text.index("{{ messages")].count("\n") + 1
    template = Template.choose(tokenizers.chatml(), str(tmp_path / "mine.jinja"), **options)
    with template, pytest.raises(UserError, match="no Jinja template") as caught:
        template.render_one(DIALOGUE)
    assert caught.value.where == f"{tmp_path}/mine.jinja:{line}"


def test_a_dropped_system_text_is_refused_and_folding_mends_it() -> None:
    source = "{% if messages[0].role == 'system' %}{% set messages = messages[1:] %}{% endif %}" + tokenizers.TURNS
    tokenizer = tokenizers.gemma_like()
    tokenizer.chat_template = source
    conversation = Conversation(DIALOGUE, "a:1")
    with Template.choose(tokenizer) as template, pytest.raises(UserError, match="every_message_is_shown") as caught:
        ChatRenderer(tokenizer, template, {4}).encoded(conversation)
    assert "data.on_system=fold" in caught.value.fix
    with Template.choose(tokenizer, on_system="fold") as template:
        ChatRenderer(tokenizer, template, {4}).encoded(conversation)


def test_a_system_text_alone_cannot_be_folded() -> None:
    with (
        Template.choose(tokenizers.chatml(), on_system="fold") as template,
        pytest.raises(UserError, match="no request"),
    ):
        template.render_one([DIALOGUE[0], DIALOGUE[2]])


def test_targets_outside_answers_are_none() -> None:
    with Template.choose(tokenizer_for("chatml"), "chatml") as template:
        (sample,) = ChatRenderer(tokenizer_for("chatml"), template).encode(Conversation(DIALOGUE, "a:1"), 3)
    assert sample.example == 3
    assert sample.targets[-1] == NO_TARGET
