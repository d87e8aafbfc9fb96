"""Answers are exact, independent of their batch, keyed in their draws, and stream whole characters."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, PreTrainedTokenizerFast

from luthier.inference import generation
from luthier.inference.generation import generate
from luthier.models.flat import use_flat_attention
from tests.helpers.properties import examples
from tests.helpers.tiny_models import VOCAB, tiny_tokenizer, twin

STOPS = {2}


def prompts_of(lengths: list[int]) -> list[list[int]]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(3, VOCAB, (length,), generator=generator).tolist() for length in lengths]


def alone(model: torch.nn.Module, prompt: list[int], new: int) -> list[int]:
    """Greedy decoding by definition: the whole text through the model for each token, no cache, no batch."""
    ids = list(prompt)
    for _ in range(new):
        with torch.no_grad():
            ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
        if ids[-1] in STOPS:
            break
    return [token for token in ids[len(prompt) :] if token not in STOPS]


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma3_text", "gpt2", "lfm2", "bloom"])
def test_greedy_is_exact_and_batched_equals_alone(name: str) -> None:
    model, tokenizer = twin(name), tiny_tokenizer()
    prompts = prompts_of([3, 17, 1, 9, 9, 30])
    together = generate(model, tokenizer, prompts, max_new_tokens=12, stop_ids=STOPS)
    assert [answer.ids for answer in together] == [alone(model, prompt, 12) for prompt in prompts]
    singles = [generate(model, tokenizer, [prompt], max_new_tokens=12, stop_ids=STOPS)[0] for prompt in prompts]
    assert singles == together


def test_answers_do_not_depend_on_how_batches_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = twin("llama"), tiny_tokenizer()
    prompts = prompts_of([5, 2, 40, 7, 23, 11, 4])
    whole = generate(model, tokenizer, prompts, max_new_tokens=6, stop_ids=STOPS, temperature=0.9, seed=3)
    monkeypatch.setattr(generation, "MAX_BATCH_TOKENS", 40)
    assert generate(model, tokenizer, prompts, max_new_tokens=6, stop_ids=STOPS, temperature=0.9, seed=3) == whole
    monkeypatch.setattr(generation, "MAX_BATCH", 1)
    assert generate(model, tokenizer, prompts, max_new_tokens=6, stop_ids=STOPS, temperature=0.9, seed=3) == whole


@given(st.lists(st.integers(1, 300), max_size=100), st.integers(1, 200))
def test_batches_hold_each_prompt_once_within_their_bounds(lengths: list[int], new: int) -> None:
    batches = list(generation._batches(lengths, new))
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) <= generation.MAX_BATCH
        assert len(batch) == 1 or len(batch) * (max(lengths[i] for i in batch) + new) <= generation.MAX_BATCH_TOKENS


def test_generation_uses_the_stock_attention_and_puts_the_flat_one_back() -> None:
    model, tokenizer = twin("llama"), tiny_tokenizer()
    prompts = prompts_of([3, 17, 9])
    before = generate(model, tokenizer, prompts, max_new_tokens=8, stop_ids=STOPS)
    use_flat_attention(model)
    name = model.config._attn_implementation
    assert generate(model, tokenizer, prompts, max_new_tokens=8, stop_ids=STOPS) == before
    assert model.config._attn_implementation == name


def test_stop_tokens_end_an_answer_and_are_not_in_it() -> None:
    model, tokenizer = twin("llama"), tiny_tokenizer()
    (prompt,) = prompts_of([7])
    full = generate(model, tokenizer, [prompt], max_new_tokens=10, stop_ids=())[0]
    assert len(full.ids) == 10
    assert not full.stopped
    stop = full.ids[4]
    first = full.ids.index(stop)
    cut = generate(model, tokenizer, [prompt], max_new_tokens=10, stop_ids={stop})[0]
    assert cut.stopped
    assert cut.ids == full.ids[:first]
    assert cut.text == tokenizer.decode(full.ids[:first], skip_special_tokens=True)
    exactly = generate(model, tokenizer, [prompt], max_new_tokens=first + 1, stop_ids={stop})[0]
    assert exactly.stopped


def test_modes_generation_config_and_generators_stay_as_they_were() -> None:
    model, tokenizer = twin("llama"), tiny_tokenizer()
    model.generation_config = GenerationConfig(
        repetition_penalty=5.0, do_sample=True, temperature=0.3, min_new_tokens=9, eos_token_id=7
    )
    config = model.generation_config
    model.train()
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    torch.manual_seed(11)
    state = torch.get_rng_state()
    prompts = prompts_of([4, 9])
    answers = generate(model, tokenizer, prompts, max_new_tokens=6, stop_ids=STOPS)
    generate(model, tokenizer, prompts, max_new_tokens=6, stop_ids=STOPS, temperature=1.0)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    assert model.generation_config is config
    assert [answer.ids for answer in answers] == [alone(model.eval(), prompt, 6) for prompt in prompts]


def test_sampling_follows_the_distribution_and_top_p_cuts_its_tail() -> None:
    model, tokenizer = twin("llama"), tiny_tokenizer()
    (prompt,) = prompts_of([6])
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt])).logits[0, -1].double()
    temperature, draws = 0.05, 2000
    probabilities = torch.softmax(logits / temperature, -1)
    drawn = [
        answer.ids[0]
        for answer in generate(
            model, tokenizer, [prompt] * draws, max_new_tokens=1, stop_ids=(), temperature=temperature
        )
    ]
    share = torch.bincount(torch.tensor(drawn), minlength=VOCAB).double() / draws
    likely = probabilities > 0.01
    error = (share - probabilities).abs() / (probabilities * (1 - probabilities) / draws).sqrt()
    assert likely.sum() >= 5
    assert float(error[likely].max()) < 4.5
    order = probabilities.argsort(descending=True)
    kept = int((probabilities[order].cumsum(0) < 0.5).sum()) + 1
    cut = generate(model, tokenizer, [prompt] * 400, max_new_tokens=1, stop_ids=(), temperature=temperature, top_p=0.5)
    assert {answer.ids[0] for answer in cut} == set(order[:kept].tolist())
    nearly_greedy = generate(model, tokenizer, [prompt], max_new_tokens=5, stop_ids=(), temperature=5.0, top_p=1e-9)[0]
    assert nearly_greedy == generate(model, tokenizer, [prompt], max_new_tokens=5, stop_ids=())[0]


def test_draws_are_keyed_by_seed_and_prompt() -> None:
    model, tokenizer = twin("llama"), tiny_tokenizer()
    first, second = prompts_of([6, 6])
    ask = {"max_new_tokens": 8, "stop_ids": (), "temperature": 1.0}
    a, b = generate(model, tokenizer, [first, second], seed=1, **ask)
    again_b, again_a, third = generate(model, tokenizer, [second, first, first], seed=1, **ask)
    assert (again_a, again_b) == (a, b)
    assert third != a
    assert generate(model, tokenizer, [first], seed=2, **ask)[0] != a


def test_bad_arguments_are_refused() -> None:
    model, tokenizer = twin("llama"), tiny_tokenizer()
    for bad in ({"max_new_tokens": 0}, {"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.5}):
        with pytest.raises(ValueError, match="max_new_tokens"):
            generate(model, tokenizer, [[3]], **{"max_new_tokens": 1, "stop_ids": (), **bad})
    with pytest.raises(ValueError, match="at least one token"):
        generate(model, tokenizer, [[3], []], max_new_tokens=1, stop_ids=())
    with pytest.raises(ValueError, match="for one prompt"):
        generate(model, tokenizer, [[3], [4]], max_new_tokens=1, stop_ids=(), on_text=print)
    assert generate(model, tokenizer, [], max_new_tokens=1, stop_ids=()) == []


def test_streamed_text_is_the_answer() -> None:
    model, tokenizer = twin("llama"), tiny_tokenizer()
    for seed, prompt in enumerate(prompts_of([6, 3, 11])):
        pieces: list[str] = []
        answer = generate(
            model,
            tokenizer,
            [prompt],
            max_new_tokens=40,
            stop_ids=STOPS,
            temperature=1.5,
            seed=seed,
            on_text=pieces.append,
        )[0]
        assert len(pieces) > 1
        assert answer.text.startswith("".join(pieces).rstrip(generation.BROKEN))
        assert "".join(pieces) == answer.text


def byte_fallback_tokenizer() -> PreTrainedTokenizerFast:
    """The decoder of SentencePiece models: one token a byte, and a space marker that is dropped at the start."""
    vocab = {f"<0x{byte:02X}>": byte for byte in range(256)} | {"▁": 256, "a": 257, "▁b": 258}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


TOKENIZERS = {"bytes": tiny_tokenizer(), "fallback": byte_fallback_tokenizer()}


def stream(tokenizer: PreTrainedTokenizerFast, ids: list[int], stopped: bool) -> tuple[list[str], str]:
    pieces: list[str] = []
    streamer = generation._TextStream(tokenizer, {10_000}, pieces.append)
    streamer.put(torch.tensor([[1, 2]]))
    for token in [*ids, 10_000] if stopped else ids:
        streamer.put(torch.tensor([token]))
    answer = generation._finish(tokenizer, [*ids, 10_000] if stopped else ids, {10_000})
    streamer.finish(answer)
    return pieces, answer.text


@pytest.mark.parametrize("kind", TOKENIZERS)
@examples(150)
@given(
    text=st.text(
        st.characters(exclude_categories=["Cs"], exclude_characters="\N{REPLACEMENT CHARACTER}▁"),
        min_size=1,
        max_size=20,
    ),
    cut=st.integers(0, 3),
)
def test_streaming_never_shows_a_broken_character(kind: str, text: str, cut: int) -> None:
    tokenizer = TOKENIZERS[kind]
    if kind == "fallback":
        ids = list(text.encode())
        cut = 0  # a cut run of byte tokens loses the whole run, see below
    else:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    whole = tokenizer.decode(ids, skip_special_tokens=True)
    pieces, answer = stream(tokenizer, ids[: len(ids) - cut] if cut < len(ids) else ids, stopped=cut == 0)
    assert "".join(pieces) == answer
    assert not any(generation.BROKEN in piece for piece in pieces)
    assert whole.startswith(answer)
    assert cut or answer == whole


def test_a_character_cut_by_the_limit_is_left_out() -> None:
    for tokenizer in TOKENIZERS.values():
        ids = (
            tokenizer("aé🎻", add_special_tokens=False)["input_ids"]
            if tokenizer is TOKENIZERS["bytes"]
            else list("aé🎻".encode())
        )
        pieces, answer = stream(tokenizer, ids[:-1], stopped=False)
        assert answer == "".join(pieces) == "aé"
