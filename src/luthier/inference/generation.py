"""Answers of a model: batched, exact, and a function of their prompt alone.

Greedy answers do not depend on what else is in the batch. Sampled ones are drawn with one number a token, keyed by
(seed, prompt, how often the prompt came before, position), so neither batching nor the global generators matter.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList
from transformers.generation import BaseStreamer

from luthier import randomness
from luthier.models.flat import stock_attention
from luthier.policy.policy import evaluating
from luthier.system.progress import Watch, unwatched
from luthier.system.words import counted

MAX_BATCH = 128
MAX_BATCH_TOKENS = 16_384
"""Prompts and answers of one batch together."""

BROKEN = "\N{REPLACEMENT CHARACTER}"
LONGEST_CHARACTER_BYTES = 4


@dataclass(frozen=True, slots=True)
class Generation:
    """One answer."""

    text: str
    """Without the stop token and other special tokens; a character that the limit cut in two is left out."""
    ids: list[int]
    """The tokens of the answer, without the stop token."""
    stopped: bool
    """Whether the model ended it; False when it had max_new_tokens."""


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[list[int]],
    *,
    max_new_tokens: int,
    stop_ids: Collection[int],
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    on_text: Callable[[str], None] | None = None,
    watch: Watch = unwatched,
) -> list[Generation]:
    """Answers `prompts`, in their order.

    Args:
        model: a transformers model, or a PEFT model around one. Its own generation config is not used: no penalties.
        prompts: the ids of each, at least one.
        max_new_tokens: most tokens of an answer.
        stop_ids: tokens that end an answer; empty for none.
        temperature: 0 takes the most likely token.
        top_p: draws only among the most likely tokens that together have this probability, in (0, 1].
        seed: of the draws.
        on_text: gets each new piece of text, never a broken character; only with one prompt.
        watch: is told with each token how many prompts are answered.

    Raises:
        ValueError: no token in a prompt, or arguments out of range.
    """
    if not all(prompts):
        raise ValueError("a prompt needs at least one token")
    if max_new_tokens < 1 or temperature < 0 or not 0 < top_p <= 1:
        raise ValueError(f"max_new_tokens {max_new_tokens}, temperature {temperature}, top_p {top_p}")
    if on_text is not None and len(prompts) != 1:
        raise ValueError(f"text is streamed for one prompt, not for {len(prompts)}")
    keys = _draw_keys(prompts, seed) if temperature > 0 else None
    core = model.get_base_model() if hasattr(model, "peft_config") else model  # LoRA's layers lie inside of it
    answers: list[Generation | None] = [None] * len(prompts)
    done = 0
    with torch.no_grad(), evaluating(core), stock_attention(model), _plain_generation_config(core):
        for indices in _batches([len(prompt) for prompt in prompts], max_new_tokens):
            draw = _KeyedSampling([keys[i] for i in indices], temperature, top_p) if keys is not None else None
            streamer = _TextStream(tokenizer, stop_ids, on_text) if on_text is not None else None
            clock = _Clock(watch, len(prompts), done, len(indices), max_new_tokens)
            new = _generate_batch(
                core, tokenizer, [prompts[i] for i in indices], max_new_tokens, stop_ids, draw, streamer, clock
            )
            done += len(indices)
            for index, ids in zip(indices, new, strict=True):
                answers[index] = _finish(tokenizer, ids, stop_ids)
            if streamer is not None:
                streamer.finish(answers[indices[0]])
    return [answer for answer in answers if answer is not None]


def _batches(lengths: list[int], max_new_tokens: int) -> Iterator[list[int]]:
    """Prompts by length, in batches bounded in rows and in tokens."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        tokens = (len(batch) + 1) * (lengths[index] + max_new_tokens)  # the newest is the longest
        if batch and (len(batch) == MAX_BATCH or tokens > MAX_BATCH_TOKENS):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _generate_batch(
    core: Any,
    tokenizer: Any,
    prompts: list[list[int]],
    max_new_tokens: int,
    stop_ids: Collection[int],
    draw: _KeyedSampling | None,
    streamer: BaseStreamer | None,
    clock: _Clock,
) -> list[list[int]]:
    """The new ids of each prompt, with what follows a stop token."""
    pad = next(
        (token for token in (tokenizer.pad_token_id, tokenizer.eos_token_id, *sorted(stop_ids)) if token is not None), 0
    )
    longest = max(map(len, prompts))
    ids = torch.tensor([[pad] * (longest - len(prompt)) + prompt for prompt in prompts], device=core.device)
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=core.device)
    if draw is not None:
        draw.prompt_tokens = longest
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        use_cache=True,
        pad_token_id=pad,
        eos_token_id=sorted(stop_ids) or None,
    )
    out = core.generate(
        input_ids=ids,
        attention_mask=mask,
        generation_config=config,
        streamer=streamer,
        logits_processor=LogitsProcessorList([draw, clock] if draw is not None else [clock]),
    )
    return out[:, longest:].tolist()  # type: ignore[no-any-return]


def _finish(tokenizer: Any, ids: list[int], stop_ids: Collection[int]) -> Generation:
    end = next((place for place, token in enumerate(ids) if token in stop_ids), None)
    kept = ids if end is None else ids[:end]
    text = _decode(tokenizer, kept) if end is not None else _whole_characters(tokenizer, kept)
    return Generation(text, kept, end is not None)


@contextmanager
def _plain_generation_config(core: Any) -> Iterator[None]:
    """The model's own generation config holds penalties and lengths that transformers would mix into ours."""
    before, core.generation_config = core.generation_config, GenerationConfig()
    try:
        yield
    finally:
        core.generation_config = before


def _decode(tokenizer: Any, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _whole_characters(tokenizer: Any, ids: list[int]) -> str:
    """The text of the ids, less the last ones where they are only a part of a character."""
    whole = text = _decode(tokenizer, ids)
    for dropped in range(1, min(LONGEST_CHARACTER_BYTES, len(ids) + 1)):
        if not text.endswith(BROKEN):
            return text
        text = _decode(tokenizer, ids[:-dropped])
    return whole if text.endswith(BROKEN) else text


def _draw_keys(prompts: Sequence[list[int]], seed: int) -> list[int]:
    """One key a prompt, of what it says: equal prompts differ by how many came before."""
    seen: Counter[int] = Counter()
    keys = []
    for prompt in prompts:
        content = randomness.key("prompt", *prompt)
        keys.append(randomness.key(seed, "sampling", content, seen[content]))
        seen[content] += 1
    return keys


class _KeyedSampling(LogitsProcessor):  # type: ignore[misc]
    """Draws the next token by inverting the distribution at one keyed number; greedy search finds only that token."""

    def __init__(self, keys: list[int], temperature: float, top_p: float) -> None:
        self.keys = keys
        self.temperature = temperature
        self.top_p = top_p
        self.prompt_tokens = 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """input_ids [B, T], scores [B, V]; the drawn token of each row gets 0, the others minus infinity."""
        position = input_ids.shape[1] - self.prompt_tokens
        numbers = [randomness.uniform(key, position) for key in self.keys]
        probabilities, tokens = torch.softmax(scores.double() / self.temperature, dim=-1).sort(
            dim=-1, descending=True, stable=True
        )
        until = probabilities.cumsum(dim=-1)
        before = until - probabilities
        mass = torch.where(before < self.top_p, until, 0.0).amax(dim=-1, keepdim=True)
        at = torch.tensor(numbers, dtype=torch.float64, device=scores.device)[:, None] * mass
        place = torch.searchsorted(until, at, right=True).clamp(max=scores.shape[-1] - 1)
        drawn = torch.full_like(scores, float("-inf"))
        return drawn.scatter_(1, tokens.gather(1, place), 0.0)


class _Clock(LogitsProcessor):  # type: ignore[misc]
    """Tells with each token how far a batch is; changes nothing."""

    def __init__(self, watch: Watch, prompts: int, done: int, batch: int, max_new_tokens: int) -> None:
        self.watch, self.prompts, self.done, self.batch, self.most = watch, prompts, done, batch, max_new_tokens
        self.token = 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """input_ids [B, T], scores [B, V], which are given back."""
        del input_ids
        self.token += 1
        words = f"{self.done:,} of {counted(self.prompts, 'prompt')} answered, {self.batch:,} at token {self.token:,}"
        self.watch(words, (self.done + self.batch * self.token / self.most) / self.prompts)
        return scores


class _TextStream(BaseStreamer):  # type: ignore[misc]
    """Hands on text as soon as it can no longer change."""

    def __init__(self, tokenizer: Any, stop_ids: Collection[int], on_text: Callable[[str], None]) -> None:
        self.tokenizer = tokenizer
        self.stop_ids = stop_ids
        self.on_text = on_text
        self.ids: list[int] | None = None
        self.sent = ""

    def put(self, value: torch.Tensor) -> None:
        """transformers hands over the prompt first, then token by token."""
        if self.ids is None:
            self.ids = []
            return
        self.ids += value.flatten().tolist()
        if self.ids[-1] not in self.stop_ids:
            self._send(_whole_characters(self.tokenizer, self.ids))

    def end(self) -> None:
        """Nothing: `finish` sends what is left."""

    def finish(self, answer: Generation | None) -> None:
        """Sends the rest of the finished answer."""
        if answer is not None:
            self._send(answer.text, last=True)

    def _send(self, text: str, last: bool = False) -> None:
        # a decoder may take back bytes that it had shown whole (a run of byte tokens): then wait until it agrees again
        if text.startswith(self.sent) and (last or not text.endswith(BROKEN)) and text != self.sent:
            self.on_text(text[len(self.sent) :])
            self.sent = text
