"""A conversation with an opened model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from luthier.errors import UserError
from luthier.inference.generation import Generation, generate
from luthier.inference.opened import Opened
from luthier.types import Message

DEFAULT_NEW_TOKENS = 512
NEARLY_FULL = 0.9


@dataclass(frozen=True)
class Settings:
    """How answers are drawn."""

    temperature: float = 0.0
    """0: the most likely token."""
    top_p: float = 1.0
    max_new_tokens: int = DEFAULT_NEW_TOKENS
    seed: int = 0


@dataclass
class Chat:
    """Turns of a user and a model, in order."""

    opened: Opened
    system: str | None = None
    """None: the one that the model was trained with, if there is one; empty: none."""
    settings: Settings = field(default_factory=Settings)
    messages: list[Message] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.system is None:
            self.system = self.opened.system
        self.reset()

    def reset(self) -> None:
        """Forgets everything but the system's text."""
        self.messages = [Message("system", self.system)] if self.system else []

    def say(self, text: str, on_text: Callable[[str], None] | None = None) -> Generation:
        """The model's answer to `text`, given what was said before; both are remembered.

        Raises:
            UserError: the model's context has no room for an answer; the conversation is as before.
        """
        conversation = [*self.messages, Message("user", text)]
        prompt = self.opened.prompt_ids(conversation)
        context = self.opened.context_tokens
        room = (
            self.settings.max_new_tokens
            if context is None
            else min(self.settings.max_new_tokens, context - len(prompt))
        )
        if room < 1:
            raise UserError(
                "chat",
                f"this conversation takes {len(prompt):,} tokens, the model's context has {context:,}",
                "room for an answer",
                "/reset starts anew",
            )
        # the number of the turn is part of the key, so that the same question twice may get two answers
        seed = self.settings.seed + len(conversation)
        (answer,) = generate(
            self.opened.model,
            self.opened.tokenizer,
            [prompt],
            max_new_tokens=room,
            stop_ids=self.opened.renderer.stop_ids,
            temperature=self.settings.temperature,
            top_p=self.settings.top_p,
            seed=seed,
            on_text=on_text,
        )
        self.messages = [*conversation, Message("assistant", answer.text)]
        self.used_tokens = len(prompt) + len(answer.ids)
        return answer

    used_tokens: int = 0
    """Of the context, after the last answer."""

    @property
    def warning(self) -> str | None:
        """What should be said after an answer: the context is full, or nearly."""
        context = self.opened.context_tokens
        if context is None or self.used_tokens < NEARLY_FULL * context:
            return None
        full = "full" if self.used_tokens >= context else "nearly full"
        return f"the context is {full}: {self.used_tokens:,} of {context:,} tokens; /reset starts anew"
